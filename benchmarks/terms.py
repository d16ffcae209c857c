"""What does each diversity term cost, against the decoder's step that it belongs to?

FLOPs are those of matrix products, forward and backward, that torch counts (not of the factorisations, of 128 x 128
matrices at most); a step's are what ``pdfx.telemetry.flops`` counts for 128 pairs of texts of 128 tokens, embedded
twice because they are cut into chunks. Time is that of this machine's CPU in float32. The figures of the paths, which
every run logs, are part of each term's cost and stand alone as ``none``.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import torch
from common import answer, at_most, in_turns, start
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from pdfx.config import ObjectiveSection, load_config
from pdfx.embedder.build import build_on_meta
from pdfx.objective.diversity.term import Diversity
from pdfx.telemetry.flops import StepCost

ROOT = Path(__file__).parent.parent
BACKBONES = {"qwen2-vl-2b": "Qwen2-VL-2B-Instruct", "qwen2-vl-7b": "Qwen2-VL-7B-Instruct"}
PATHS, PAIRS, TOKENS = 4, 128, 128
MOST = 0.001
"""Of a step, for the default."""
TERMS = {
    "none": {"diversity": "none"},
    "gaussian": {},
    "vclub, linear": {"mutual_information": {"bound": "vclub"}},
    "vclub, network": {"mutual_information": {"bound": "vclub", "predictor": "network"}},
    "l1out, linear": {"mutual_information": {"bound": "l1out"}},
    "l1out, network": {"mutual_information": {"bound": "l1out", "predictor": "network"}},
    "cross_correlation": {"diversity": "cross_correlation"},
    "cross_covariance": {"diversity": "cross_covariance"},
    "hsic": {"diversity": "hsic"},
    "orthogonality": {"diversity": "orthogonality"},
}


class Term:
    """One step of a term: its value, its gradient, and what it learns; with all pairs remembered that it may."""

    def __init__(self, settings: dict, dimension: int, rows: int):
        section = ObjectiveSection.model_validate(settings | {"recent": {"rows": rows}})
        self.term = Diversity(section, PATHS, dimension, seed=0)
        self.everyone = torch.ones(PAIRS, dtype=torch.bool)
        self.both = normalize(torch.randn(2, PAIRS, PATHS, dimension), dim=-1).requires_grad_()
        self.term.recent.add(normalize(torch.randn(2, rows, PATHS, dimension), dim=-1), torch.ones(rows).bool())

    def __call__(self) -> None:
        measured = self.term(self.both, self.everyone, step=1)
        if measured.loss is not None:
            # The weight may still be 0; the products are the same.
            torch.autograd.grad(measured.metrics["diversity"], self.both)
        self.term.learn(self.both.detach(), self.everyone)


def step_flops(recipe: str) -> tuple[int, int]:
    """D of a backbone, and the FLOPs of a step of its recipe."""
    config = load_config(ROOT / f"launch/recipes/{recipe}.yaml")
    config.model.path, config.model.paths = str(ROOT / "tests/recipes/model_configs" / BACKBONES[recipe]), PATHS
    embedder = build_on_meta(config)
    texts = {"attention_mask": torch.ones(2 * PAIRS, TOKENS, dtype=torch.long)}
    forward, backward = StepCost(embedder).of_pass(texts, PATHS)
    return embedder.config.hidden_size, 2 * forward + backward


def measure(recipe: str, options) -> tuple[list[dict], dict]:
    dimension, whole = step_flops(recipe)
    if options.tiny:
        dimension = 64
    terms = {name: Term(settings, dimension, 256 if options.tiny else 2048) for name, settings in TERMS.items()}
    seconds = in_turns(terms, options.pairs)
    details = {"dimension": dimension, "step_tflop": whole / 1e12}
    for name, term in terms.items():
        with FlopCounterMode(display=False) as counter:
            term()
        flops = counter.get_total_flops()
        details[name] = {
            "gflop": round(flops / 1e9, 2),
            "share_of_step": float(f"{flops / whole:.3g}"),
            "cpu_seconds": round(statistics.median(seconds.cpu[name]), 3),
        }
    share = details["gaussian"]["share_of_step"]
    return [at_most(f"D = {dimension}: FLOPs of the default over those of a step", share, MOST)], details


def main() -> None:
    options = start(__doc__, pairs=3)
    targets, details = [], {}
    for recipe in BACKBONES:
        found, details[recipe] = measure(recipe, options)
        targets += found
    answer(options, __doc__.partition("\n")[0], targets, details)


if __name__ == "__main__":
    main()
