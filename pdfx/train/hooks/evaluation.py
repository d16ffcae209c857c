"""Evaluation between steps, on the shards that ``data.evaluation`` names."""

from __future__ import annotations

from torch import Tensor

from pdfx.data import ShardedDataset
from pdfx.evaluate.data_sets import evaluate_data_sets
from pdfx.evaluate.embedding import EmbeddedItems, Evaluator
from pdfx.evaluate.kept import kept_file, write_items
from pdfx.model import EmbedderOutput
from pdfx.train.engine import embed_inputs
from pdfx.train.run import Hook, Run


class Evaluation(Hook):
    """Evaluates every ``train.eval_steps`` steps and after the last one."""

    def step_done(self, run: Run, metrics: dict[str, float]) -> None:
        every = run.config.train.eval_steps
        if run.evaluation is None or not (run.is_last or (every is not None and run.step % every == 0)):
            return

        def embed(inputs: dict[str, Tensor]) -> EmbedderOutput:
            run.progress.mark("embed a batch of the evaluation")
            output = embed_inputs(run.engine, inputs, run.world)
            run.progress.mark("read a batch of the evaluation", "data")
            return output

        def advance(done: int, total: int | None) -> None:
            if done == total:
                run.progress.mark("score the evaluation", "pause")

        def keep(dataset: ShardedDataset, queries: EmbeddedItems, targets: EmbeddedItems) -> None:
            names = {id(known): name for name, known in data_sets.items()}
            if run.world.rank == 0:
                write_items(kept_file(run.path, names[id(dataset)]), queries, targets)

        data_sets = run.evaluation
        run.progress.mark("list the items of the evaluation", "pause")
        settings, workers = run.config.evaluate, run.config.data.num_workers
        keeps = keep if settings.keep_embeddings and run.is_last else None
        evaluator = Evaluator(embed, run.processor, settings, run.world, workers, run.say, keeps)
        results = evaluate_data_sets(evaluator, data_sets, lambda name: advance)
        for hook in run.hooks:
            hook.evaluated(run, results)
        run.timer.reset()
