"""What a run consists of, built from recipe and checkpoint, and the moments of its life, at which hooks are called."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from pdfx.checkpoint.directory import Checkpoint, open_run_directory, write_config
from pdfx.checkpoint.identity import (
    FROZEN,
    MODEL,
    PROCESSOR,
    check_same_frozen_weights,
    check_same_processor,
    fingerprint,
    identity,
    processed_sample,
    settings_changes,
)
from pdfx.checkpoint.resume import ORIGIN, agree_on_checkpoint, check_same_model, load_checkpoint, origin, set_aside
from pdfx.checkpoint.retention import retention_of
from pdfx.checkpoint.saver import CheckpointSaver
from pdfx.checkpoint.zero_shards import frozen_sums
from pdfx.config import Config
from pdfx.config.deepspeed_file import load_deepspeed_config
from pdfx.data import Batch, TrainLoader
from pdfx.data.batch import filler
from pdfx.distributed.world import World
from pdfx.embedder.build import backbone_width, build_embedder
from pdfx.evaluate.data_sets import Results, open_evaluation
from pdfx.faults.progress import Progress
from pdfx.faults.stopping import StopRequest
from pdfx.model import ParallelEmbedder
from pdfx.objective import Objective
from pdfx.telemetry.metrics import Telemetry
from pdfx.telemetry.timing import StepTimer
from pdfx.train.engine import TrainingModule, sharded_loading, start_engine
from pdfx.train.ineffective import settings_notes
from pdfx.train.reduction import choose_reduction, gradient_bytes, rank_memory
from pdfx.train.schedule import SHARDING, count_steps, derived_seed, settle_warm_ups, sharding, take_over
from pdfx.train.step import Stepper, chunk_tokens_per_path


class Hook:
    """One concern of a run. A subclass overrides the moments that it needs.

    Every rank calls the same hooks in the same order, so a moment may hold collectives that all ranks call alike.

    Attributes:
        key: under which checkpoints keep the hook's state; None if it has none.
    """

    key: str | None = None

    def start(self, run: Run) -> None:
        """The next thing is the first step of this process. What must be closed however the run ends is given to
        ``run.resources``."""

    def batch_ready(self, run: Run, batch: Batch) -> None:
        """This rank's batch of step ``run.step + 1`` is read and will be trained on next."""

    def step_done(self, run: Run, metrics: dict[str, float]) -> None:
        """Optimiser step ``run.step`` is done. What a hook adds to ``metrics`` is logged with them."""

    def evaluated(self, run: Run, results: Results) -> None:
        """The model after step ``run.step`` was evaluated; ``results`` are alike on every rank."""

    def went_back(self, run: Run, state: dict[str, Any], repeat: bool) -> None:
        """The run went back to a checkpoint with this state. ``repeat``: the samples since then come again."""
        self.restore(state)

    def end(self, run: Run) -> None:
        """There are no more steps: the last one is done, or the run was asked to stop."""

    def state_dict(self) -> Any:
        """What a checkpoint keeps of the hook: plain values that JSON can hold, alike on every rank."""

    def load_state_dict(self, state: Any) -> None:
        """Continue from what ``state_dict`` returned."""

    def restore(self, state: dict[str, Any]) -> None:
        """Load the hook's own part of a checkpoint's state, if there is one."""
        if self.key in state:
            self.load_state_dict(state[self.key])


class Run:
    """The parts of a run, which the trainer and its hooks work on.

    Args:
        config: the recipe; what it leaves open is settled in place.
        world: this run's ranks.
        progress: marked wherever the run makes progress.

    Attributes:
        path: the run's directory.
        step: optimiser steps behind it.
        total_steps: of the whole run.
        engine: DeepSpeed's, around a ``TrainingModule``.
        loader: this rank's batches; a roll-back may replace it.
        evaluation: shards to evaluate on by name; None without.
        timer: what happened since the last record, pauses left out.
        telemetry: on rank 0 once ``announce`` was called, None otherwise.
        constants: the part of a checkpoint's state that is the same in all checkpoints of this process.
        hooks: in the order in which they are called.
        resources: closed when the steps end, however they end.
        stop: asked to stop, by a signal.
        stopping: some rank was asked to stop, and all of them do after this step.

    Raises:
        UserError: a mistake in data, model, checkpoint or settings.
    """

    hooks: list[Hook]
    resources: ExitStack
    stop: StopRequest
    stopping = False

    def __init__(self, config: Config, world: World, progress: Progress | None = None):
        self.config, self.world, self.progress = config, world, progress or Progress()
        self.telemetry: Telemetry | None = None
        self.timer = StepTimer(world.size)
        with world.together():
            # Rank 0 is first, so that the others find its directory instead of racing to make it.
            path = open_run_directory(config.train) if world.rank == 0 else None
        self.path = world.from_first(path)
        with world.together():
            settings = load_deepspeed_config(
                config.train.deepspeed, config.train, world.size, partial(backbone_width, config)
            )
            self.evaluation = open_evaluation(config)
        self.checkpoint, self.passed_over = agree_on_checkpoint(self.path, config.train.resume, world)
        self.saved: dict[str, Any] = self.checkpoint.state() if self.checkpoint else {"step": 0, "loader": None}
        self.step: int = self.saved["step"]
        with world.together():
            embedder = self._build(settings)
        self._start_engine(embedder, settings)
        self.stepper = self._make_stepper(settings["zero_optimization"]["stage"])
        self.saver = CheckpointSaver(
            self.path, self.engine, world, config.train.save_in_background, retention_of(config.train)
        )

    def _build(self, settings: dict) -> ParallelEmbedder:
        """Build what needs no engine, and check it against the checkpoint."""
        config, world, checkpoint = self.config, self.world, self.checkpoint
        stage = settings["zero_optimization"]["stage"]
        notes = take_over(config, self.saved[SHARDING], stage, world.size, checkpoint.path) if checkpoint else []
        # New adapters draw from torch's own generator.
        torch.manual_seed(derived_seed(config.train.seed, "adapters"))
        with sharded_loading(settings) as gathered:
            embedder = build_embedder(config, torch.bfloat16 if config.train.bf16 else torch.float32, gathered)
        self.processor = embedder.processor
        self.constants: dict[str, Any] = {
            MODEL: identity(embedder, config),
            SHARDING: sharding(config, stage, world.size),
            ORIGIN: origin(config.train.resume, self.saved),
            PROCESSOR: processed_sample(self.processor),
        }
        if checkpoint:
            check_same_model(checkpoint, self.constants[MODEL])
            notes += settings_changes(checkpoint, config)
            check_same_processor(checkpoint, self.constants[PROCESSOR], config.model.path)
        self.open_loader(self.saved["loader"])
        self.total_steps, plan = count_steps(config.train, self.loader.epoch_samples, world.size)
        if world.rank == 0:
            notes += settings_notes(config, self.loader.sets, self.total_steps, world.size)
        self.notes = [plan, *settle_warm_ups(config, self.total_steps), *notes]
        sizes = config.model.paths, embedder.config.hidden_size, config.train.seed, config.model.matryoshka_dims
        self.objective = Objective(config.objective, *sizes).to(world.device)
        return embedder

    def open_loader(self, position: dict | None) -> None:
        """Read batches from a position in the data that a checkpoint holds; from the beginning if it is None."""
        config, train, world = self.config, self.config.train, self.world
        shape = (train.per_device_train_batch_size, train.gradient_accumulation_steps)
        tokens = chunk_tokens_per_path(train, config.model.paths)
        self.loader = TrainLoader(
            config.data, self.processor, world.rank, world.size, *shape, train.seed, position, tokens
        )

    def _start_engine(self, embedder: ParallelEmbedder, settings: dict) -> None:
        config, world = self.config, self.world
        if world.size > 1:
            embedder.vision_agreement = world.any
        module = TrainingModule(embedder, config.objective.temperature, config.objective.learn_temperature)
        self.engine = start_engine(module, config, settings)
        self.constants[FROZEN] = fingerprint(world.gather(frozen_sums(self.engine)))
        if self.checkpoint:
            with world.together():
                check_same_frozen_weights(self.checkpoint, self.constants[FROZEN], config.model.path)
            self.load(self.checkpoint)

    def load(self, checkpoint: Checkpoint) -> None:
        """Give engine and objective a checkpoint's state; the loader stays where it is."""
        objective_state = load_checkpoint(checkpoint, self.engine, self.world)
        with self.world.together():
            self.objective.load_state_dict(objective_state)
        self.step = checkpoint.step

    def _make_stepper(self, stage: int) -> Stepper:
        train, world = self.config.train, self.world
        smallest = -world.largest([-rank_memory(world.device, world.size)])[0]
        once, sentence = choose_reduction(train.gradient_reduction, stage, gradient_bytes(self.engine.module), smallest)
        if train.gradient_accumulation_steps > 1 or train.chunk_tokens is not None or train.chunk_paths is not None:
            self.notes.append(sentence)
        nothing, _ = self.processor([filler()], ["query"])
        stepper = Stepper(self.engine, self.objective, world, train, nothing, once)
        stepper.phases.enter = self.progress.phase
        return stepper

    def announce(self) -> None:
        """Make the run's directory that of this run, and log how it begins; after this ``say`` prints."""
        checkpoint, resume = self.checkpoint, self.config.train.resume
        with self.world.together():
            if checkpoint and resume != "auto" and self.constants[ORIGIN] != self.saved.get(ORIGIN):
                self.notes += set_aside(self.path, checkpoint) if self.world.rank == 0 else []
        if self.world.rank != 0:
            return
        write_config(self.path, self.config)
        self.telemetry = Telemetry(self.path, self.total_steps, self.step + 1, self.config.train.tensorboard)
        self.say(*(f"Passed over: {sentence}" for sentence in self.passed_over))
        self.say(f"Going on from {checkpoint.path} after step {self.step}." if checkpoint else "Starting a new run.")
        self.say(*self.notes)

    @property
    def is_last(self) -> bool:
        """Whether the last step is done."""
        return self.step >= self.total_steps

    def say(self, *sentences: str) -> None:
        """Print sentences on the console of rank 0."""
        if self.telemetry:
            for sentence in sentences:
                self.telemetry.say(sentence)

    def close(self) -> None:
        """Close the files; the console is a plain one again."""
        if self.telemetry:
            self.telemetry.close()
