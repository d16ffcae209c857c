"""What all tests share. One pair of ranks serves all that need one: starting two processes with DeepSpeed takes
seconds, a training run in them does not."""

import os

import pytest
from distributed.ranks import Ranks
from hypothesis import settings

# The time that an example takes says nothing on a busy machine.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def same_environment():
    """Variables that a test sets, such as those of a process group that it joins, must not reach the next one."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def two_ranks():
    with Ranks(2) as ranks:
        yield ranks
