"""The estimates and terms of ``objective.diversity`` on data whose dependence is known.

Everything is measured through ``Diversity``, the class that a run uses. Legend: D dimension, B pairs of a step. Values
of ``gaussian``, ``vclub`` and ``l1out`` are in nats per dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch

from pdfx.config import ObjectiveSection
from pdfx.objective.diversity.term import Diversity
from pdfx.study.encoder_race import race
from pdfx.study.gradient_quality import gradient_quality
from pdfx.study.known_dependence import Known, cubed, gaussian, noisy, student, unit

Row = dict[str, Any]

DEFAULT, LOGGED = "gaussian", "vclub, linear"
"""The term that is minimised by default, and the estimate that the metrics show as ``mutual_information`` then."""
ESTIMATORS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    LOGGED: {"mutual_information": {"bound": "vclub"}},
    "vclub, network": {"mutual_information": {"bound": "vclub", "predictor": "network"}},
    "l1out, linear": {"mutual_information": {"bound": "l1out"}},
    "l1out, network": {"mutual_information": {"bound": "l1out", "predictor": "network"}},
    "cross_correlation": {"diversity": "cross_correlation"},
    "hsic": {"diversity": "hsic"},
    "orthogonality": {"diversity": "orthogonality"},
}
"""Settings of the section ``objective``."""
NETWORK = ("vclub, network", "l1out, network")
CLOSED = (DEFAULT, LOGGED, "l1out, linear", "cross_correlation", "hsic")
"""Those that estimate dependence: by a network, or in closed form."""
SCALING = (DEFAULT, LOGGED, "cross_correlation")
"""Those that are measured at large D too."""
TUNED = "gaussian, tuned"
"""The default as a race of 128 pairs a step needs it: ``recent.share`` 0.1, as they are few beside those remembered,
and at most 32 remembered rows a dimension, as older ones are soon out of date."""
RACERS = ("none", *ESTIMATORS, TUNED)
"""Encoders that race: without a term, with each term, and with the default tuned."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        small: D of the comparison of all estimators.
        large: D of unit vectors, with a common mean and without, flat and uneven.
        marks: steps after which an estimate is taken; at large D without the last one, as what is in closed form knows
            no more than 2,048 pairs.
        races: D and learning rates at which encoders race; ``race_steps`` steps each, at the lowest rate of several
            three times as many.
    """

    small: int = 64
    large: tuple[int, ...] = (64, 768, 1536, 3584)
    seeds: int = 4
    large_seeds: int = 3
    marks: tuple[int, ...] = (10, 50, 200)
    batch: int = 128
    other_batches: tuple[int, ...] = (32,)
    rates: tuple[float, ...] = (1e-4, 1e-2)
    gradients: tuple[int, ...] = (32, 192)
    races: tuple[tuple[int, tuple[float, ...]], ...] = ((32, (3e-4, 3e-3, 1e-2)), (256, (3e-3,)), (768, (3e-3,)))
    race_steps: int = 200


QUICK = Plan(4, (8,), 2, 2, (2, 4), 16, (32,), (1e-2,), (4,), ((4, (1e-2,)),), 4)
"""To see that all of it works; its figures mean nothing."""


def follow(
    known: Known, estimators: Iterable[str], batch: int, marks: tuple[int, ...], seed: int, rate: float | None = None
) -> dict[str, list[float]]:
    """Values of terms, without weight, on the pairs of some steps of a model that does not move.

    Args:
        known: where the pairs come from.
        estimators: all without a network, or all with one: they share what is learned, which depends on that alone.
        batch: pairs of a step.
        marks: the steps, which count from 1.
        seed: of the pairs, and of what a term draws.
        rate: learning rate of the network, if not the default.
    """
    terms = {name: Diversity(_section(name, rate), 2, known.dimension, seed) for name in estimators}
    learning = next(iter(terms.values()))
    generator, everyone = torch.Generator().manual_seed(seed), torch.ones(batch, dtype=torch.bool)
    found: dict[str, list[float]] = {name: [] for name in terms}
    for step in range(1, max(marks) + 1):
        both = known.draw(batch, generator)
        for name, term in terms.items() if step in marks else ():
            if term is not learning:
                term.load_state_dict(learning.state_dict())
            with torch.no_grad():
                found[name].append(float(term(both, everyone, step).metrics["diversity"]))
        learning.learn(both, everyone)
    return found


def _section(estimator: str, rate: float | None) -> ObjectiveSection:
    section = ObjectiveSection.model_validate(ESTIMATORS[estimator])
    if rate is not None:
        section.mutual_information.learning_rate = rate
    return section


def limit_of(estimator: str, known: Known) -> float | None:
    """What the estimate comes to with endless rows, or None if that is not known: ``-1/2 log(1 - R^2)`` of the best
    linear map for ``gaussian``, ``R^2 / (1 - R^2)`` for vCLUB with a linear predictor."""
    odds = known.linear_r2 / (1 - known.linear_r2)
    return {DEFAULT: 0.5 * math.log1p(odds), LOGGED: odds}.get(estimator)


def estimate_rows(
    known: Known,
    estimators: tuple[str, ...],
    marks: tuple[int, ...],
    seeds: int,
    batch: int,
    rate: float | None = None,
) -> list[Row]:
    """Mean over seeds, its standard error, and the standard deviation over seeds, after each number of steps."""
    found = [follow(known, estimators, batch, marks, seed, rate) for seed in range(seeds)]
    rows = []
    for name, number in product(estimators, range(len(marks))):
        values = torch.tensor([one[name][number] for one in found], dtype=torch.float64)
        mean, deviation, limit = float(values.mean()), float(values.std()), limit_of(name, known)
        row = {"case": known.name, "dimension": known.dimension, "estimator": name, "batch": batch}
        row |= {"steps": marks[number], "learning_rate": rate, "truth": known.information, "limit": limit}
        row |= {"mean": mean, "deviation": deviation, "error": deviation / math.sqrt(seeds), "seeds": seeds}
        row |= {"bias": mean - known.information if _in_nats(name) else None}
        rows.append(row | {"share_of_limit": mean / limit if limit else None})
    return rows


def _in_nats(estimator: str) -> bool:
    return "mutual_information" in ESTIMATORS[estimator] or not ESTIMATORS[estimator]


def small_cases(dimension: int) -> list[Known]:
    """Kinds of dependence on which all estimators are compared."""
    return [
        gaussian(dimension, 0.0),
        gaussian(dimension, 0.5),
        gaussian(dimension, 0.9),
        cubed(dimension, 0.9),
        student(dimension, 0.6, 3.0),
        noisy(dimension, "sign", torch.sign, 0.5),
        noisy(dimension, "absolute value", torch.abs, 0.5),
        noisy(dimension, "square", torch.square, 0.5),
    ]


def large_cases(dimension: int) -> list[Known]:
    """Unit vectors with and without what real embeddings have: a common mean, an uneven spectrum, a rotation."""
    looks = [(uneven, mean) for uneven in (False, True) for mean in (False, True)]
    dependent = [unit(dimension, 0.5, uneven, mean) for uneven, mean in looks]
    independent = [unit(dimension, 0.0, uneven, mean) for uneven, mean in (looks[0], looks[-1])]
    return [*dependent, unit(dimension, 0.5, rotated=True), *independent]


Job = Callable[[], list[Row]]


def estimate_jobs(plan: Plan) -> Iterator[Job]:
    """All measurements of estimates: cases, dimensions, batch sizes, learning rates."""
    for known, estimators in product(small_cases(plan.small), (CLOSED, NETWORK)):
        yield partial(estimate_rows, known, estimators, plan.marks, plan.seeds, plan.batch)
    for dimension in plan.large:
        for known in large_cases(dimension):
            yield partial(estimate_rows, known, SCALING, plan.marks[:-1], plan.large_seeds, plan.batch)
    for known in (gaussian(plan.small, 0.0), gaussian(plan.small, 0.5)):
        for batch, estimators in product(plan.other_batches, (CLOSED, NETWORK)):
            yield partial(estimate_rows, known, estimators, plan.marks, plan.seeds, batch)
    for rate in plan.rates:
        yield partial(estimate_rows, gaussian(plan.small, 0.5), NETWORK[:1], plan.marks, plan.seeds, plan.batch, rate)


def gradient_rows(estimator: str, dimension: int, uneven: bool, plan: Plan) -> list[Row]:
    """Means over seeds, and their standard errors."""
    settings, seeds, steps = ESTIMATORS[estimator], 2, plan.marks[-2]
    found = [gradient_quality(settings, dimension, uneven, plan.batch, steps, seed) for seed in range(seeds)]
    row: Row = {"estimator": estimator, "dimension": dimension, "uneven": uneven, "steps": steps, "seeds": seeds}
    for name in found[0]:
        values = torch.tensor([one[name] for one in found], dtype=torch.float64)
        row |= {name: float(values.mean()), f"{name}_error": float(values.std()) / math.sqrt(seeds)}
    return [row]


def gradient_jobs(plan: Plan) -> Iterator[Job]:
    """All measurements of gradients."""
    for dimension in plan.gradients:
        for uneven in (False, True):
            for estimator in ESTIMATORS:
                yield partial(gradient_rows, estimator, dimension, uneven, plan)


def race_rows(racer: str, dimension: int, rate: float, steps: int, offset: bool) -> list[Row]:
    """One race."""
    settings = ESTIMATORS.get(racer)
    if racer == TUNED:
        settings = {"recent": {"share": 0.1, "rows": min(2048, 32 * dimension)}}
    keys = {"estimator": racer, "dimension": dimension, "learning_rate": rate, "steps": steps, "offset": offset}
    return [keys | race(settings, dimension, rate, steps, offset)]


def race_jobs(plan: Plan) -> Iterator[Job]:
    """All races: every term at the first D, the default, tuned and not, at the larger ones."""
    for number, (dimension, rates) in enumerate(plan.races):
        for rate in rates:
            steps = plan.race_steps * (3 if rate == rates[0] and len(rates) > 1 else 1)
            for racer in ("none", DEFAULT, TUNED) if number else RACERS:
                for offset in (False, True) if racer == TUNED else (False,):
                    yield partial(race_rows, racer, dimension, rate, steps, offset)


def run_study(plan: Plan, tell: Callable[[int, int | None], None]) -> dict[str, list[Row]]:
    """All rows by part: ``estimates``, ``gradients``, ``races``.

    Args:
        plan: how much is measured.
        tell: called with the number of jobs that are done, and of all.
    """
    parts = {"estimates": estimate_jobs, "gradients": gradient_jobs, "races": race_jobs}
    jobs = [(part, job) for part, of in parts.items() for job in of(plan)]
    rows: dict[str, list[Row]] = {part: [] for part in parts}
    tell(0, len(jobs))
    for number, (part, job) in enumerate(jobs, 1):
        rows[part] += job()
        tell(number, len(jobs))
    return rows
