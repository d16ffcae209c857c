"""What all tests share. One pair of ranks serves all that need one: starting two processes with DeepSpeed takes
seconds, a training run in them does not."""

import pytest
from distributed.ranks import Ranks
from hypothesis import settings

# The time that an example takes says nothing on a busy machine.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def two_ranks():
    with Ranks(2) as ranks:
        yield ranks
