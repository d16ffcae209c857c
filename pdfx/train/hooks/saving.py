"""When checkpoints are saved, and what is in them beside parameters and optimiser.

Each holds a probe: a few raw inputs with the trainer's own embeddings of them, on which the converter proves itself.
``probe/items.json`` is a list of ``{"side", "text", "images": [file names]}``, its pictures lie beside it as PNG, and
``probe/embeddings.safetensors`` holds ``paths`` ``[n, K, D]`` and ``fused`` ``[n, F]`` in the same order.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed

from pdfx.checkpoint.manifest import Metric
from pdfx.checkpoint.saver import Content
from pdfx.config import dump_config
from pdfx.data import SampleError, ShardedDataset
from pdfx.distributed.world import World
from pdfx.errors import UserError
from pdfx.evaluate.data_sets import Results, flattened, unknown_metric
from pdfx.host.tensor_files import Entry, write_tensors
from pdfx.model import InputProcessor
from pdfx.train.engine import embed_inputs
from pdfx.train.run import Hook, Run
from pdfx.train.step import was_skipped

SAMPLES = 3
"""Both sides of so many samples are probed."""
SEARCHED = 16
"""Samples looked at in search of usable ones."""


class Saving(Hook):
    """Saves every ``train.save_steps`` steps, after the last one, and before the run obeys an order to stop.

    Raises:
        UserError: no sample is usable as a probe.
    """

    def __init__(self, run: Run):
        with run.world.together():
            self.probe = Probe(run.loader.dataset, run.processor)
        self.due = False
        self.metrics: dict[str, float] = {}
        """Of an evaluation at this step."""

    def evaluated(self, run: Run, results: Results) -> None:
        self.metrics = flattened(results)

    def step_done(self, run: Run, metrics: dict[str, float]) -> None:
        run.say(*run.saver.advance())
        run.stopping = run.world.any(run.stop.asked)
        # After a skipped step there is nothing new to save, and what is saved pushes older checkpoints out, which a
        # roll-back may need; so it waits.
        self.due = self.due or run.step % run.config.train.save_steps == 0
        if (self.due and not was_skipped(metrics)) or run.is_last or run.stopping:
            self.save(run)
        self.metrics = {}

    def save(self, run: Run) -> None:
        """Begin to write a checkpoint of the current step."""
        run.progress.mark("save a checkpoint", "pause")
        with run.world.together():
            metric, state = self._metric(run), self._state(run)
        write_probe = partial(self.probe.write, engine=run.engine, world=run.world)
        objective, config = run.objective.state_dict(), dump_config(run.config)
        run.say(*run.saver.save(Content(run.step, state, objective, config, write_probe, metric)))
        self.due = False
        run.timer.reset()

    def went_back(self, run: Run, state: dict, repeat: bool) -> None:
        self.due = False

    def end(self, run: Run) -> None:
        run.progress.mark("save a checkpoint", "pause")
        run.say(*run.saver.finish())

    def _metric(self, run: Run) -> Metric | None:
        """The figure by which the best checkpoint is chosen, if the recipe names one and there was an evaluation.

        Raises:
            UserError: the evaluation does not give it.
        """
        name = run.config.train.metric_for_best_model
        if name is None or not self.metrics:
            return None
        if name not in self.metrics:
            raise UserError(unknown_metric(name, self.metrics))
        return Metric(name, self.metrics[name])

    def _state(self, run: Run) -> dict[str, Any]:
        """What ``Checkpoint.state`` gives. Raises UserError if JSON cannot hold the state of a hook."""
        state = {"step": run.step, "loader": run.loader.state_dict(), **run.constants}
        for hook in run.hooks:
            if hook.key is not None and (own := hook.state_dict()) is not None:
                try:
                    state[hook.key] = json.loads(json.dumps(own))
                except (TypeError, ValueError) as error:
                    raise UserError(
                        f"The state of the {hook.key} cannot be saved: {error}; return plain values from state_dict."
                    ) from error
        return state


class Probe:
    """The probe of a run; the same on every rank.

    Args:
        dataset: its first usable samples are taken, those with images before those without.
        processor: makes the inputs.

    Raises:
        UserError: no sample near the beginning is usable.
    """

    def __init__(self, dataset: ShardedDataset, processor: InputProcessor):
        samples = []
        for number in range(min(len(dataset), SEARCHED)):
            try:
                samples.append(dataset.read(number))
            except SampleError:
                continue
        if not samples:
            raise UserError(
                f"None of the first samples of {dataset.path} can be read; check the shards with 'pdfx shards check "
                "--full'."
            )
        samples.sort(key=lambda sample: not (sample.query["images"] or sample.target["images"]))
        self.items = [(side, getattr(sample, side)) for sample in samples[:SAMPLES] for side in ("query", "target")]
        self.processor = processor

    def write(self, directory: Path, engine: deepspeed.DeepSpeedEngine, world: World) -> None:
        """Embed the items on all ranks together and let rank 0 write them."""
        sides, items = zip(*self.items, strict=True)
        output = embed_inputs(engine, self.processor(list(items), list(sides))[0], world)
        if world.rank != 0:
            return
        directory.mkdir()
        entries = []
        for number, (side, item) in enumerate(self.items):
            names = [f"{number}.{place}.png" for place in range(len(item["images"]))]
            for name, image in zip(names, item["images"], strict=True):
                image.save(directory / name)
            entries.append({"side": side, "text": item["text"], "images": names})
        (directory / "items.json").write_text(json.dumps(entries, indent=1, ensure_ascii=False), encoding="utf-8")
        tensors = {name: output[name].cpu().contiguous() for name in ("paths", "fused")}
        write_tensors(
            directory / "embeddings.safetensors",
            [(Entry(name, value.dtype, tuple(value.shape)), [value]) for name, value in tensors.items()],
            {},
        )
