"""Training: the DeepSpeed engine, chunked backprop, and the loop that joins all other rooms."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pdfx.host import make_callable

if TYPE_CHECKING:
    from pdfx.config import Config
    from pdfx.faults.stopping import StopRequest


def train(config: Config, stop: StopRequest | None = None, dry_run: bool = False) -> None:
    """Train as a recipe says, from the newest whole checkpoint of its output directory if there is one.

    ``pdfx.train(config)`` calls this. Under a launcher, every rank calls it. After SIGTERM, SIGHUP or SIGUSR1 to any
    rank, all ranks save a checkpoint after the current step.

    Args:
        config: what ``pdfx.load_config`` returns.
        stop: handles these signals; by default, one that lasts as long as the run.
        dry_run: print the resolved settings, the parameters and the steps, and train nothing.

    Raises:
        UserError: a mistake in data, model, checkpoint or settings.
        SystemExit: a signal stopped the run, or another rank reports a user's mistake.

    >>> import pdfx
    >>> pdfx.train(pdfx.load_config("recipe.yaml", ["train.seed=1"]))
    pdfx ...
    Finished after step 3: ...
    """
    import torch

    if not torch.cuda.is_available():
        # DeepSpeed reads it when it is first imported; left to itself it warns of a GPU that it cannot find.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if dry_run:
        from pdfx.train.dry_run import dry_run as show_plan

        show_plan(config)
        return
    from pdfx.faults.stopping import StopRequest
    from pdfx.train.trainer import train as run

    if stop is not None:
        run(config, stop)
        return
    with StopRequest() as own:
        run(config, own)


make_callable(__name__, train)
