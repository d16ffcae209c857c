"""The training loop."""

from __future__ import annotations

import time
from contextlib import ExitStack

import transformers

from pdfx.config import Config
from pdfx.distributed.agreement import log_environment, require_agreement, settings_of_start
from pdfx.distributed.world import PeerFailure, World, join_world, leave_world
from pdfx.errors import UserError
from pdfx.faults.progress import END, Progress
from pdfx.faults.shutdown import watched
from pdfx.faults.stopping import EXIT_STOPPED, StopRequest
from pdfx.host.memory import keep_large_blocks
from pdfx.train.engine import set_learning_rate
from pdfx.train.hooks.registry import hooks_in_order, load_hooks
from pdfx.train.run import Run
from pdfx.train.schedule import learning_rate_factor


def train(config: Config, stop: StopRequest | None = None) -> None:
    """Train as the recipe says, from the newest whole checkpoint of its output directory if there is one.

    Every rank calls this. On SIGTERM, SIGHUP or SIGUSR1 to any rank all ranks save a checkpoint after the current step.

    Args:
        stop: made here if None.

    Raises:
        UserError: a mistake in data, model, checkpoint or settings.
        SystemExit: ``EXIT_STOPPED`` after a signal; ``EXIT_USER_ERROR`` on ranks whose peer reports the mistake.
    """
    world = join_world()
    if world.device.type == "cpu":
        keep_large_blocks()
    if world.rank != 0:
        transformers.utils.logging.disable_progress_bar()
    stop = stop or StopRequest()
    with watched(config, world, stop) as progress:
        log_environment(world)
        with world.together():
            require_agreement(world, settings_of_start(config), "at the start")
        trainer = Trainer(config, world, progress)
        try:
            finished = trainer.run(stop)
        except (UserError, PeerFailure):
            progress.mark("finish a checkpoint", "pause")
            trainer.saver.rescue()
            raise
        finally:
            trainer.close()
        leave_world()
    if not finished:
        raise SystemExit(EXIT_STOPPED)


class Trainer(Run):
    """A run with its hooks, and the loop that makes its steps. All ranks make one, in one process each.

    ``pdfx.train`` does this and more: it handles signals, a watchdog and the failures of single ranks.

    >>> import pdfx
    >>> from pdfx.distributed.world import join_world
    >>> from pdfx.faults.stopping import StopRequest
    >>> from pdfx.train.trainer import Trainer
    >>> trainer = Trainer(pdfx.load_config("recipe.yaml", ["train.output_dir=other"]), join_world())
    Starting a new run...
    >>> trainer.run(StopRequest())
    step ...
    True
    >>> trainer.close()

    Args:
        config: the recipe; what it leaves open is settled in place.
        world: this run's ranks.
        progress: marked wherever the run makes progress.

    Raises:
        UserError: a mistake in data, model, checkpoint or settings.
    """

    def __init__(self, config: Config, world: World, progress: Progress | None = None):
        with world.together():
            own = load_hooks(config)
        super().__init__(config, world, progress)
        self.hooks = hooks_in_order(self, own)
        for hook in self.hooks:
            hook.restore(self.saved)
        self.announce()

    def run(self, stop: StopRequest) -> bool:
        """Train to the last step. Returns False if it stopped before, after saving a checkpoint."""
        self.stop = stop
        with ExitStack() as self.resources:
            for hook in self.hooks:
                hook.start(self)
            while not (self.is_last or self.stopping):
                metrics = self.train_step()
                step = self.step
                for hook in self.hooks:
                    hook.step_done(self, metrics)
                    if self.step != step:
                        # It went back to a checkpoint, so the step is void.
                        break
            for hook in self.hooks:
                hook.end(self)
        self.progress.mark(END)
        self.say(
            f"Finished after step {self.step}: {self.path}"
            if self.is_last
            else f"Stopped by a signal after step {self.step}; the same command resumes from there."
        )
        return self.is_last

    def train_step(self) -> dict[str, float]:
        """Make the next optimiser step; returns its metrics, which are alike on every rank."""
        step, train = self.step + 1, self.config.train
        self.progress.begin(step)
        started = time.perf_counter()
        with self.world.together():
            batch = next(self.loader)
        self.timer.waited += time.perf_counter() - started
        for hook in self.hooks:
            hook.batch_ready(self, batch)
        with self.world.together():
            factor = learning_rate_factor(step, train, self.total_steps)
            set_learning_rate(self.engine, factor)
            metrics = self.stepper(batch, step)
        self.step = step
        return {**metrics, "learning_rate": train.learning_rate * factor}
