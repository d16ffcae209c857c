"""The training loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import transformers

from pdfx.checkpoint.choice import retention_of
from pdfx.checkpoint.directory import Checkpoint
from pdfx.checkpoint.frozen import FROZEN, check_same_frozen_weights, fingerprint
from pdfx.checkpoint.identity import identity
from pdfx.checkpoint.lineage import ORIGIN, origin, set_aside
from pdfx.checkpoint.resume import agree_on_checkpoint, check_same_model, load_checkpoint
from pdfx.checkpoint.run_directory import open_run_directory, write_config
from pdfx.checkpoint.saver import CheckpointSaver, Content
from pdfx.checkpoint.settings import settings_changes
from pdfx.checkpoint.zero_shards import frozen_sums
from pdfx.config import Config, dump_config
from pdfx.config.deepspeed_file import load_deepspeed_config
from pdfx.data import TrainLoader
from pdfx.data.batch import filler
from pdfx.distributed.agreement import require_agreement, settings_of_start, state_of_step, tell_environment
from pdfx.distributed.world import PeerFailure, World, join_world, leave_world
from pdfx.embedder.build import backbone_width, build_embedder
from pdfx.errors import UserError
from pdfx.evaluate.data_sets import evaluate_data_sets, flattened, open_evaluation
from pdfx.faults.shutdown import watched
from pdfx.faults.stopping import EXIT_STOPPED, StopRequest
from pdfx.faults.watchdog import END, Progress
from pdfx.host.memory import keep_large_blocks
from pdfx.objective import Objective
from pdfx.telemetry.flops import StepCost
from pdfx.telemetry.metrics import StepTimer, Telemetry
from pdfx.telemetry.peak import shared_peak_tflops
from pdfx.train.best import check_metric_name, metric_among
from pdfx.train.elastic import SHARDING, sharding, take_over
from pdfx.train.engine import TrainingModule, peak_memory, set_learning_rate, sharded_loading, start_engine
from pdfx.train.export_probe import Probe, embed_inputs
from pdfx.train.ineffective import tell_settings
from pdfx.train.processor_check import PROCESSOR, check_same_processor, processed_sample
from pdfx.train.profile import TRACE, profiled
from pdfx.train.reduction import choose_reduction, gradient_bytes, rank_memory
from pdfx.train.rollback import checkpoint_before, remove_later_checkpoints
from pdfx.train.schedule import count_steps, derived_seed, global_batch, learning_rate_factor, settle_warm_ups
from pdfx.train.step import Stepper, chunk_tokens_per_path, was_skipped
from pdfx.train.step_batches import Feed
from pdfx.train.step_guards import RollBack, StepGuards


def train(config: Config, stop: StopRequest | None = None) -> None:
    """Train as the recipe says, from the newest whole checkpoint of its output directory if there is one.

    Every rank calls this. On SIGTERM, SIGHUP or SIGUSR1 to any rank all ranks save a checkpoint after the current step.

    Args:
        stop: made here where None.

    Raises:
        UserError: a mistake in data, model, checkpoint or settings.
        SystemExit: ``EXIT_STOPPED`` after a signal; ``EXIT_USER_ERROR`` on ranks whose peer tells the mistake.
    """
    world = join_world()
    if world.device.type == "cpu":
        keep_large_blocks()
    if world.rank != 0:
        transformers.utils.logging.disable_progress_bar()
    stop = stop or StopRequest()
    with watched(config, world, stop) as progress:
        tell_environment(world)
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


class Trainer:
    """Everything that a run consists of, built from its configuration.

    Args:
        config: the recipe.
        world: this run's ranks.
        progress: marked wherever the run gets on.

    Raises:
        UserError: a mistake in data, model, checkpoint or settings.
    """

    def __init__(self, config: Config, world: World, progress: Progress | None = None):
        self.config = config
        self.world = world
        self.telemetry = None
        self.evaluated = {}
        self.progress = progress or Progress()
        with world.together():
            # Rank 0 is first, so that the others find its directory instead of racing to make it.
            self.run_path = open_run_directory(config.train) if world.rank == 0 else None
        self.run_path = world.from_first(self.run_path)
        with world.together():
            settings = load_deepspeed_config(
                config.train.deepspeed, config.train, world.size, partial(backbone_width, config)
            )
            self.evaluation = open_evaluation(config)
            check_metric_name(config, self.evaluation)
        stage = settings["zero_optimization"]["stage"]
        checkpoint, passed_over = agree_on_checkpoint(self.run_path, config.train.resume, world)
        state = checkpoint.state() if checkpoint else {"step": 0, "truncated": 0, "loader": None}
        self.step, self.origin = state["step"], origin(config.train.resume, state)
        with world.together():
            self.notes = take_over(config, state[SHARDING], stage, world.size, checkpoint.path) if checkpoint else []
            # New adapters draw from torch's own generator.
            torch.manual_seed(derived_seed(config.train.seed, "adapters"))
            with sharded_loading(settings) as gathered:
                embedder = build_embedder(config, torch.bfloat16 if config.train.bf16 else torch.float32, gathered)
            self.identity, self.processed = identity(embedder, config), processed_sample(embedder.processor)
            if checkpoint:
                check_same_model(checkpoint, self.identity)
                self.notes += settings_changes(checkpoint, config)
                check_same_processor(checkpoint, self.processed, config.model.path)
            self.processor = embedder.processor
            self._open_data(state, StepCost(embedder, config.train.chunk_paths, config.model.cache_vision))
            self.probe = Probe(self.loader.dataset, self.processor)
            self.total_steps, plan = count_steps(config.train, self.loader.epoch_samples, world.size)
            self.notes += (
                tell_settings(config, self.loader.sets, self.total_steps, world.size) if world.rank == 0 else []
            )
            self.notes[:0] = settle_warm_ups(config, self.total_steps)
            self.objective = Objective(
                config.objective,
                config.model.paths,
                embedder.config.hidden_size,
                config.train.seed,
                config.model.matryoshka_dims,
            )
            self.objective.to(world.device)
        self._start_engine(embedder, settings, checkpoint)
        reduce_once = self._choose_reduction(stage)
        nothing, _ = self.processor([filler()], ["query"])
        self.stepper = Stepper(self.engine, self.objective, world, config.train, nothing, reduce_once)
        self.stepper.phases.enter = self.progress.phase
        self.guards = StepGuards(config.guards, self.objective, self._say, state.get("guards"))
        self.sharding = sharding(config, stage, world.size)
        self.saver = CheckpointSaver(
            self.run_path, self.engine, world, config.train.save_in_background, retention_of(config.train)
        )
        with world.together():
            if checkpoint and config.train.resume != "auto" and self.origin != state.get(ORIGIN) and world.rank == 0:
                self.notes += set_aside(self.run_path, checkpoint)
        self._open_telemetry(checkpoint, passed_over, plan)

    def _open_data(self, state: dict, cost: StepCost) -> None:
        config, train = self.config, self.config.train
        shape = (train.per_device_train_batch_size, train.gradient_accumulation_steps)
        tokens = chunk_tokens_per_path(train, config.model.paths)
        self.loader = TrainLoader(
            config.data, self.processor, self.world.rank, self.world.size, *shape, train.seed, state["loader"], tokens
        )
        self.feed = Feed(self.loader, self.world, cost, state["truncated"])

    def _start_engine(self, embedder, settings: dict, checkpoint: Checkpoint | None) -> None:
        config = self.config
        if self.world.size > 1:
            embedder.vision_agreement = self.world.any
        module = TrainingModule(embedder, config.objective.temperature, config.objective.learn_temperature)
        self.engine = start_engine(module, config, settings)
        self.frozen = fingerprint(self.world.gather(frozen_sums(self.engine)))
        if checkpoint:
            with self.world.together():
                check_same_frozen_weights(checkpoint, self.frozen, config.model.path)
            objective_state = load_checkpoint(checkpoint, self.engine, self.world)
            with self.world.together():
                self.objective.load_state_dict(objective_state)

    def _choose_reduction(self, stage: int) -> bool:
        """Whether gradients are reduced once per step, the same on all ranks."""
        train, world = self.config.train, self.world
        smallest = -world.largest([-rank_memory(world.device, world.size)])[0]
        once, sentence = choose_reduction(train.gradient_reduction, stage, gradient_bytes(self.engine.module), smallest)
        if train.gradient_accumulation_steps > 1 or train.chunk_tokens is not None or train.chunk_paths is not None:
            self.notes.append(sentence)
        return once

    def _open_telemetry(self, checkpoint: Checkpoint | None, passed_over: list[str], plan: str) -> None:
        if self.world.rank != 0:
            return
        write_config(self.run_path, self.config)
        self.telemetry = Telemetry(self.run_path, self.total_steps, self.step + 1, self.config.train.tensorboard)
        self._say(*(f"Passed over: {sentence}" for sentence in passed_over))
        self._say(
            f"Going on from {checkpoint.path} after step {self.step}." if checkpoint else "Starting a new run.",
            plan,
            *self.notes,
        )

    def run(self, stop: StopRequest) -> bool:
        """Train to the last step. Returns False if it stopped before, after saving a checkpoint."""
        with profiled(
            self.run_path / TRACE, self.config.train.profile_steps if self.world.rank == 0 else None
        ) as advance:
            return self._run(stop, advance)

    def _run(self, stop: StopRequest, advance: Callable[[], None]) -> bool:
        train, saved, due = self.config.train, self.step, False
        timer = StepTimer(
            self.world.size,
            shared_peak_tflops(train.peak_tflops, self.world, self.engine.module.embedder.dtype, self._say),
        )
        while self.step < self.total_steps:
            metrics = self._train_step(timer)
            advance()
            with self.world.together():
                trouble = self.guards.check(self.step, metrics)
                self._compare_ranks(metrics)
            if trouble:
                saved, due = self._roll_back(trouble), False
                timer.reset()
                continue
            last = self.step == self.total_steps
            if self.telemetry:
                self.telemetry.advance(self.step)
            if self.step % train.logging_steps == 0 or last:
                self._log(metrics, timer)
            self._log_coverage(last)
            self.evaluated = {}
            if self.evaluation is not None and (
                last or (train.eval_steps is not None and self.step % train.eval_steps == 0)
            ):
                self._evaluate()
                timer.reset()
            self._say(*self.saver.advance())
            stopping = self.world.any(stop.asked)
            # After a skipped step there is nothing new to save, and what is saved pushes older checkpoints out, which a
            # roll-back may need; so it waits.
            due = due or self.step % train.save_steps == 0
            if (due and not was_skipped(metrics)) or last or stopping:
                self.save()
                saved, due = self.step, False
                timer.reset()
            if stopping and not last:
                self._say(*self.saver.finish())
                self.progress.mark(END)
                self._say(f"Stopped by a signal after step {saved}; the same command goes on from there.")
                return False
        self.progress.mark("save a checkpoint", "pause")
        self._say(*self.saver.finish())
        self.progress.mark(END)
        self._say(f"Finished after step {self.step}: {self.run_path}")
        return True

    def _train_step(self, timer: StepTimer) -> dict[str, float]:
        step = self.step + 1
        self.progress.begin(step)
        pairs = global_batch(self.config.train, self.world.size)
        batch = self.feed.next(step, pairs, timer, self.engine.module.embedder, self._say)
        with self.world.together():
            factor = learning_rate_factor(step, self.config.train, self.total_steps)
            set_learning_rate(self.engine, factor)
            metrics = self.stepper(batch, step)
        self.step = step
        return {**metrics, "learning_rate": self.config.train.learning_rate * factor}

    def _compare_ranks(self, metrics: dict[str, float]) -> None:
        """Raises UserError where a rank is out of step; looked at from time to time."""
        turn, rest = divmod(self.step, self.config.guards.agreement_steps or self.step + 1)
        if rest == 0 and self.world.size > 1:
            state = state_of_step(
                self.step, self.loader.state_dict(), metrics, self.engine.module, self.objective.variational, turn
            )
            require_agreement(self.world, state, f"after step {self.step}")

    def _roll_back(self, trouble: RollBack) -> int:
        """Go on from the newest checkpoint from before the trouble; returns its step."""
        self.progress.mark("go back to a checkpoint", "pause")
        self._say(*self.saver.finish())
        checkpoint = checkpoint_before(self.run_path, trouble, self.world)
        state, repeat = checkpoint.state(), self.guards.take_back(checkpoint.step)
        objective_state = load_checkpoint(checkpoint, self.engine, self.world)
        with self.world.together():
            self.objective.load_state_dict(objective_state)
            if repeat:
                self._open_data(state, self.feed.cost)
        self.step = checkpoint.step
        if self.telemetry:
            remove_later_checkpoints(self.run_path, checkpoint.step)
            self.telemetry.go_back(self.step + 1)
        samples = "with the same samples" if repeat else "without the samples that led there twice"
        self._say(f"Going back to {checkpoint.path} {samples}: {trouble.reason}. Roll-back {self.guards.roll_backs}.")
        return checkpoint.step

    def _log(self, metrics: dict[str, float], timer: StepTimer) -> None:
        if not self.telemetry:
            return
        figures = metrics | self.feed.figures() | self.guards.figures()
        self.telemetry.log_step(
            self.step, figures, timer.report(peak_memory(self.world.device), self.stepper.phases.take())
        )

    def _log_coverage(self, last: bool) -> None:
        """At the end of each epoch, and of the run."""
        epoch = self.feed.finished_epoch()
        if self.telemetry and (epoch is not None or last):
            self.telemetry.log_coverage(self.step, self.feed.figures(), self.loader.coverage_report())

    def _evaluate(self) -> None:
        def embed(inputs: dict[str, torch.Tensor]):
            self.progress.mark("embed a batch of the evaluation")
            output = embed_inputs(self.engine, inputs, self.world)
            self.progress.mark("read a batch of the evaluation", "data")
            return output

        def advance(done: int, total: int) -> None:
            if done == total:
                self.progress.mark("score the evaluation", "pause")

        config, world, workers = self.config, self.world, self.config.data.num_workers
        self.progress.mark("list the items of the evaluation", "pause")
        ranks = world.rank, world.size
        results = evaluate_data_sets(
            embed, self.evaluation, self.processor, config.evaluate, *ranks, workers, lambda name: advance, self._say
        )
        self.evaluated = flattened(results)
        if self.telemetry:
            self.telemetry.log_evaluation(self.step, results)

    def save(self) -> None:
        """Begin to write a checkpoint of the current step."""
        self.progress.mark("save a checkpoint", "pause")
        state = {
            "step": self.step,
            "truncated": self.feed.truncated,
            "loader": self.loader.state_dict(),
            "model": self.identity,
            SHARDING: self.sharding,
        }
        state |= {
            "guards": self.guards.state_dict(),
            ORIGIN: self.origin,
            FROZEN: self.frozen,
            PROCESSOR: self.processed,
        }
        with self.world.together():
            metric = metric_among(self.evaluated, self.config.train)
        probe = partial(self.probe.write, engine=self.engine, world=self.world)
        self._say(
            *self.saver.save(
                Content(self.step, state, self.objective.state_dict(), dump_config(self.config), probe, metric)
            )
        )

    def _say(self, *sentences: str) -> None:
        for sentence in sentences if self.telemetry else ():
            self.telemetry.say(sentence)

    def close(self) -> None:
        """Close the files; the console is a plain one again."""
        if self.telemetry:
            self.telemetry.close()
