"""One pair of ranks for all tests that need one: starting two processes with DeepSpeed takes seconds, a training run in them does not."""

import pytest
from distributed.ranks import Ranks


@pytest.fixture(scope="session")
def two_ranks():
    with Ranks(2) as ranks:
        yield ranks
