"""MMEB's data sets, and how its table averages them (Jiang et al., "VLM2Vec", 2024).

36 data sets of four meta-tasks; 20 of them have a training split (in distribution, IND), 16 have none (out of
distribution, OOD). The score of a data set is precision@1 over each query's own candidates. Every average is the plain
mean over data sets, whatever their sizes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pdfx.errors import UserError


@dataclass(frozen=True)
class MmebSet:
    """One data set of MMEB."""

    name: str
    """As MMEB's evaluation data has it; its training data writes ``ImageNet_1K`` for ``ImageNet-1K``."""
    meta_task: str
    in_distribution: bool
    """Whether MMEB has training data of it."""


CLASSIFICATION, VQA, RETRIEVAL, GROUNDING = META_TASKS = ("Classification", "VQA", "Retrieval", "Visual grounding")

_IN_DISTRIBUTION = {
    CLASSIFICATION: ("ImageNet-1K", "N24News", "HatefulMemes", "VOC2007", "SUN397"),
    VQA: ("OK-VQA", "A-OKVQA", "DocVQA", "InfographicsVQA", "ChartQA", "Visual7W"),
    RETRIEVAL: ("VisDial", "CIRR", "VisualNews_t2i", "VisualNews_i2t", "MSCOCO_t2i", "MSCOCO_i2t", "NIGHTS", "WebQA"),
    GROUNDING: ("MSCOCO",),
}
_OUT_OF_DISTRIBUTION = {
    CLASSIFICATION: ("Place365", "ImageNet-A", "ImageNet-R", "ObjectNet", "Country211"),
    VQA: ("ScienceQA", "VizWiz", "GQA", "TextVQA"),
    RETRIEVAL: ("FashionIQ", "Wiki-SS-NQ", "OVEN", "EDIS"),
    GROUNDING: ("RefCOCO", "RefCOCO-Matching", "Visual7W-Pointing"),
}

SETS = tuple(
    MmebSet(name, task, split is _IN_DISTRIBUTION)
    for task in META_TASKS
    for split in (_IN_DISTRIBUTION, _OUT_OF_DISTRIBUTION)
    for name in split[task]
)
"""All 36 in the order of MMEB's table."""

GROUPS: dict[str, tuple[MmebSet, ...]] = {
    **{task: tuple(item for item in SETS if item.meta_task == task) for task in META_TASKS},
    "IND": tuple(item for item in SETS if item.in_distribution),
    "OOD": tuple(item for item in SETS if not item.in_distribution),
    "Overall": SETS,
}
"""What MMEB's table averages over, in its order."""


def find_set(name: str) -> MmebSet | None:
    """The data set of that name, however it writes capitals, hyphens and underscores."""
    return _BY_PLAIN_NAME.get(_plain(name))


def present_sets(names: Iterable[str]) -> dict[MmebSet, str]:
    """Which of MMEB's data sets are among ``names``, each with the name that it has there; in the order of MMEB's
    table.

    Raises:
        UserError: two names mean the same data set, so that an average would count it twice.
    """
    found: dict[MmebSet, str] = {}
    for name in names:
        item = find_set(name)
        if item is not None:
            if item in found:
                raise UserError(
                    f"'{found[item]}' and '{name}' are both MMEB's {item.name}, so averages would count it twice; "
                    "evaluate them one at a time."
                )
            found[item] = name
    return {item: found[item] for item in SETS if item in found}


def _plain(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


_BY_PLAIN_NAME = {_plain(item.name): item for item in SETS}
