"""The training loop."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from pdfx.build import build_embedder
from pdfx.checkpoint.choice import retention_of
from pdfx.checkpoint.directory import Checkpoint
from pdfx.config import Config, dump_config
from pdfx.data import ShardedDataset, TrainLoader
from pdfx.data.collate import filler
from pdfx.errors import UserError
from pdfx.evaluate.data_sets import evaluate_data_sets, flattened, open_data_sets
from pdfx.host_memory import keep_large_blocks
from pdfx.objective import Objective
from pdfx.train.best import check_metric_name, metric_among
from pdfx.train.cluster import World, join_world, leave_world
from pdfx.train.cost import StepCost
from pdfx.train.elastic import SHARDING, sharding, take_over
from pdfx.train.engine import TrainingModule, load_deepspeed_config, peak_memory, set_learning_rate, sharded_loading, start_engine
from pdfx.train.feed import Feed
from pdfx.train.peak import measured_peak_tflops
from pdfx.train.probe import Probe, embed_inputs
from pdfx.train.profile import TRACE, profiled
from pdfx.train.reduction import choose_reduction, gradient_bytes, rank_memory
from pdfx.train.resume import agree_on_checkpoint, check_same_model, load_checkpoint
from pdfx.train.run_directory import identity, open_run_directory, write_config
from pdfx.train.saver import CheckpointSaver, Content
from pdfx.train.schedule import count_steps, derived_seed, global_batch, learning_rate_factor
from pdfx.train.step import Stepper, chunk_tokens_per_path
from pdfx.train.telemetry import StepTimer, Telemetry

EXIT_STOPPED = 75
"""Exit code of a run that saved a checkpoint and stopped because it was told to (SIGTERM or SIGUSR1); the same command goes on from there.

DeepSpeed's launcher hands SIGTERM on to its ranks, waits 30 s for each of them, and then exits with 1 whatever they say.
"""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def train(config: Config) -> None:
    """Train as the recipe says, from the newest whole checkpoint of its output directory if there is one.

    Every rank calls this. On SIGTERM or SIGUSR1 to any rank all ranks save a checkpoint after the current step.

    Raises:
        UserError: a mistake in data, model, checkpoint or settings.
        SystemExit: ``EXIT_STOPPED`` after a signal; ``EXIT_USER_ERROR`` on ranks whose peer tells the mistake.
    """
    world = join_world()
    if world.device.type == "cpu":
        keep_large_blocks()
    if world.rank != 0:
        transformers.utils.logging.disable_progress_bar()
    stop = StopRequest()
    trainer = Trainer(config, world)
    try:
        finished = trainer.run(stop)
    except (UserError, SystemExit):
        trainer.saver.rescue()
        raise
    finally:
        trainer.close()
    leave_world()
    if not finished:
        raise SystemExit(EXIT_STOPPED)


class StopRequest:
    """Remembers that this process was asked to stop."""

    def __init__(self):
        self.asked = False
        for number in STOP_SIGNALS:
            signal.signal(number, self._ask)

    def _ask(self, *_) -> None:
        self.asked = True


class Trainer:
    """Everything that a run consists of, built from its configuration.

    Args:
        config: the recipe.
        world: this run's ranks.

    Raises:
        UserError: a mistake in data, model, checkpoint or settings.
    """

    def __init__(self, config: Config, world: World):
        self.config, self.world, self.telemetry = config, world, None
        self.evaluated: dict[str, float] = {}
        with world.together():
            # Rank 0 is first, so that the others find its directory instead of racing to make it.
            self.run_path = open_run_directory(config.train) if world.rank == 0 else None
        self.run_path = world.from_first(self.run_path)
        with world.together():
            settings = load_deepspeed_config(config.train.deepspeed, config.train, world.size)
            self.evaluation = open_evaluation(config)
            check_metric_name(config, self.evaluation)
        stage = settings["zero_optimization"]["stage"]
        checkpoint, passed_over = agree_on_checkpoint(self.run_path, config.train.resume, world)
        state = checkpoint.state() if checkpoint else {"step": 0, "truncated": 0, "loader": None}
        self.step = state["step"]
        with world.together():
            self.notes = take_over(config, state[SHARDING], stage, world.size, checkpoint.path) if checkpoint else []
        with world.together():
            # New adapters draw from torch's own generator.
            torch.manual_seed(derived_seed(config.train.seed, "adapters"))
            with sharded_loading(settings) as gathered:
                embedder = build_embedder(config, torch.bfloat16 if config.train.bf16 else torch.float32, gathered)
            self.identity = identity(embedder, config)
            if checkpoint:
                check_same_model(checkpoint, self.identity)
            self.processor = embedder.processor
            self.loader = self._open_loader(state["loader"])
            self.feed = Feed(self.loader, world, StepCost(embedder, config.train.chunk_paths, config.model.cache_vision), state["truncated"])
            self.probe = Probe(self.loader.dataset, self.processor)
            self.total_steps, plan = count_steps(config.train, self.loader.epoch_samples, world.size)
            self.objective = Objective(config.objective, config.model.paths, embedder.config.hidden_size, config.train.seed, config.model.matryoshka_dims)
            self.objective.to(world.device)
        self._start_engine(embedder, settings, checkpoint)
        reduce_once = self._choose_reduction(stage)
        nothing, _ = self.processor([filler()], ["query"])
        self.stepper = Stepper(self.engine, self.objective, world, config.train, nothing, reduce_once)
        self.sharding = sharding(config, stage, world.size)
        self.saver = CheckpointSaver(self.run_path, self.engine, world, config.train.save_in_background, retention_of(config.train))
        self._open_telemetry(checkpoint, passed_over, plan)

    def _open_loader(self, state: dict | None) -> TrainLoader:
        config, train = self.config, self.config.train
        shape = (train.per_device_train_batch_size, train.gradient_accumulation_steps)
        tokens = chunk_tokens_per_path(train, config.model.paths)
        return TrainLoader(config.data, self.processor, self.world.rank, self.world.size, *shape, train.seed, state, tokens)

    def _start_engine(self, embedder, settings: dict, checkpoint: Checkpoint | None) -> None:
        config = self.config
        if self.world.size > 1:
            embedder.vision_agreement = self.world.any
        module = TrainingModule(embedder, config.objective.temperature, config.objective.learn_temperature)
        self.engine = start_engine(module, config, settings)
        if checkpoint:
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
        self._say(f"Going on from {checkpoint.path} after step {self.step}." if checkpoint else "Starting a new run.", plan, *self.notes)

    def run(self, stop: StopRequest) -> bool:
        """Train to the last step. Returns False where it stopped before, after saving a checkpoint."""
        with profiled(self.run_path / TRACE, self.config.train.profile_steps if self.world.rank == 0 else None) as advance:
            return self._run(stop, advance)

    def _run(self, stop: StopRequest, advance: Callable[[], None]) -> bool:
        train, saved = self.config.train, self.step
        timer = StepTimer(self.world.size, self._peak_tflops())
        while self.step < self.total_steps:
            metrics = self._train_step(timer)
            advance()
            last = self.step == self.total_steps
            if self.telemetry:
                self.telemetry.advance(self.step)
            if self.step % train.logging_steps == 0 or last:
                self._log(metrics, timer)
            self._log_coverage(last)
            self.evaluated = {}
            if self.evaluation is not None and (self.step % train.eval_steps == 0 or last):
                self._evaluate()
                timer.reset()
            self._say(*self.saver.advance())
            stopping = self.world.any(stop.asked)
            if self.step % train.save_steps == 0 or last or stopping:
                self.save()
                saved = self.step
                timer.reset()
            if stopping and not last:
                self._say(*self.saver.finish())
                self._say(f"Stopped by a signal after step {saved}; the same command goes on from there.")
                return False
        self._say(*self.saver.finish())
        self._say(f"Finished after step {self.step}: {self.run_path}")
        return True

    def _peak_tflops(self) -> float:
        stated = self.config.train.peak_tflops
        if stated != "measure":
            return stated
        # All ranks measure at once: those that share a machine share its power in training as well.
        self.world.barrier()
        peak = self.world.from_first(measured_peak_tflops(self.world.device, self.engine.module.embedder.dtype))
        self._say(f"A large matrix product reaches {peak:.3g} TFLOP/s per device; MFU is told against that.")
        return peak

    def _train_step(self, timer: StepTimer) -> dict[str, float]:
        step = self.step + 1
        pairs = global_batch(self.config.train, self.world.size)
        batch = self.feed.next(step, pairs, timer, self.engine.module.embedder, self._say)
        with self.world.together():
            factor = learning_rate_factor(step, self.config.train, self.total_steps)
            set_learning_rate(self.engine, factor)
            metrics = self.stepper(batch, step)
        self.step = step
        return {**metrics, "learning_rate": self.config.train.learning_rate * factor}

    def _log(self, metrics: dict[str, float], timer: StepTimer) -> None:
        if not self.telemetry:
            return
        self.telemetry.log_step(self.step, {**metrics, **self.feed.figures()}, timer.report(peak_memory(self.world.device), self.stepper.phases.take()))

    def _log_coverage(self, last: bool) -> None:
        """At the end of each epoch, and of the run."""
        epoch = self.feed.finished_epoch()
        if self.telemetry and (epoch is not None or last):
            self.telemetry.log_coverage(self.step, self.feed.figures(), self.loader.coverage_report())

    def _evaluate(self) -> None:
        def embed(inputs: dict[str, torch.Tensor]):
            return embed_inputs(self.engine, inputs, self.world)

        config, world = self.config, self.world
        results = evaluate_data_sets(embed, self.evaluation, self.processor, config.evaluate, world.rank, world.size, config.data.num_workers)
        self.evaluated = flattened(results)
        if self.telemetry:
            self.telemetry.log_evaluation(self.step, results)

    def save(self) -> None:
        """Begin to write a checkpoint of the current step."""
        state = {"step": self.step, "truncated": self.feed.truncated, "loader": self.loader.state_dict(), "model": self.identity, SHARDING: self.sharding}
        metric = metric_among(self.evaluated, self.config.train)
        content = Content(self.step, state, self.objective.state_dict(), dump_config(self.config), self._write_probe, metric)
        self._say(*self.saver.save(content))

    def _write_probe(self, directory: Path) -> None:
        self.probe.write(directory, self.engine, self.world)

    def _say(self, *sentences: str) -> None:
        for sentence in sentences if self.telemetry else ():
            self.telemetry.say(sentence)

    def close(self) -> None:
        """Close the files; the console is a plain one again."""
        if self.telemetry:
            self.telemetry.close()


def open_evaluation(config: Config) -> dict[str, ShardedDataset] | None:
    """The shards to evaluate on by name, where the recipe asks for evaluation. Raises UserError where it asks without naming any."""
    if config.train.eval_steps is None:
        return None
    if config.data.evaluation is None:
        raise UserError("train.eval_steps is set, but data.evaluation names no shards to evaluate on; set it, or remove train.eval_steps.")
    named = config.data.evaluation
    return open_data_sets([named] if isinstance(named, str) else named, config.data.max_image_pixels)

