"""Large host blocks are kept: what a process frees it gets back without the system's help."""

import subprocess
import sys

import pytest

from pdfx.host.memory import keep_large_blocks

pytestmark = pytest.mark.process

SCRIPT = """
import resource, sys
from pdfx.host.memory import keep_large_blocks
done = keep_large_blocks() if sys.argv[1] == "keep" else False
for number in range(12):
    if number == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(64 * 2**20)
    block[:: 4096] = b"x" * (len(block) // 4096)
    del block
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 64 * 2**20 // 4096
"""Of one block. Without keeping blocks, each of the ten that are counted faults in all of them anew."""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_blocks_that_are_freed_and_taken_again_cost_no_page_faults():
    output = subprocess.run(
        [sys.executable, "-c", SCRIPT, "keep"], capture_output=True, text=True, check=True
    ).stdout.split()
    if output[0] == "False":
        pytest.skip("this C library is not glibc, or its own variables are set")
    assert int(output[1]) < PAGES / 10


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_a_users_own_choice_for_glibc_is_left_alone(name):
    assert keep_large_blocks({name: "1"}) is False
