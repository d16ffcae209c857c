"""One pair of ranks for all tests that need one: starting two processes with DeepSpeed takes seconds, a training run in them does not."""

from pathlib import Path

import pytest
from distributed.ranks import Ranks

LONGEST = ("slurm/test_slurm.py", "distributed/test_chaos.py", "test_readme.py", "distributed/test_elastic_resume.py", "convert/test_convert.py", "distributed")
"""Files and folders that take longest, which come first, so that no worker ends with one of them alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        file = item.path.relative_to(Path(__file__).parent)
        return next((number for number, name in enumerate(LONGEST) if file.is_relative_to(name)), len(LONGEST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def two_ranks():
    with Ranks(2) as ranks:
        yield ranks
