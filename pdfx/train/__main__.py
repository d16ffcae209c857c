"""``python -m pdfx.train RECIPE.yaml [section.key=value ...] [--dry-run]``, for launchers: ``torchrun -m pdfx.train``,
``deepspeed --module pdfx.train``, ``srun python -m pdfx.train``."""

import argparse
import faulthandler
import os
import sys
import traceback


def main() -> None:
    from pdfx.faults.stopping import StopRequest

    # Before all slow imports: a batch system may end a job that has just started.
    stop = StopRequest(attended=False)
    parser = argparse.ArgumentParser("python -m pdfx.train", description="Train parallel embeddings as a recipe says.")
    parser.add_argument("recipe", help="YAML file with the run's settings")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings to change")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved settings and the parameters, then stop"
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="write a profiler trace of 3 steps into the run's directory (train.profile_steps=3)",
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args()

    from pdfx.host.console import open_streams, outlive_stdout

    open_streams()
    outlive_stdout()
    # A crash in C code leaves its stack.
    faulthandler.enable()
    from pdfx.config import ConfigError, load_config
    from pdfx.errors import UserError
    from pdfx.host.system_errors import sentence_of
    from pdfx.train import train

    try:
        config = load_config(arguments.recipe, arguments.overrides + ["train.profile_steps=3"] * arguments.profile)
        train(config, stop, arguments.dry_run)
    except (ConfigError, UserError) as error:
        leave(str(error), 2)
    except SystemExit as error:
        code = error.code or 0
        leave("", code) if isinstance(code, int) else leave(str(code), 1)
    except KeyboardInterrupt:
        leave("Interrupted.", 130)
    except Exception as error:
        sentence = sentence_of(error)
        leave(sentence or traceback.format_exc(), 2 if sentence else 1)


def leave(message: str, code: int) -> None:
    """End this rank at once: nothing that waits for a peer may hold it, and its launcher, back."""
    sys.stdout.flush()
    if message:
        print(message, file=sys.stderr, flush=True)
    os._exit(code)


if __name__ == "__main__":
    main()
