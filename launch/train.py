"""What ``deepspeed``, ``torchrun``, ``srun`` or plain ``python`` starts: ``launch/train.py RECIPE.yaml [section.key=value ...] [--dry-run]``."""

import argparse
import os
import sys


def main() -> None:
    parser = argparse.ArgumentParser(description="Train parallel embeddings as a recipe says.")
    parser.add_argument("recipe", help="YAML file with the run's settings")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings to change")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved settings and the parameters, then stop")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args()

    from pdfx.config import ConfigError, load_config
    from pdfx.errors import UserError

    try:
        config = load_config(arguments.recipe, arguments.overrides)
        if arguments.dry_run:
            from pdfx.train.dry_run import dry_run

            dry_run(config)
        else:
            from pdfx.train.trainer import train

            train(config)
    except (ConfigError, UserError) as error:
        print(error, file=sys.stderr, flush=True)
        # Not sys.exit: whatever waits for a peer while the interpreter ends would hold this rank, and its launcher, back.
        sys.stdout.flush()
        os._exit(2)


if __name__ == "__main__":
    main()
