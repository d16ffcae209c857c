"""What the system refuses, as each library raises it, becomes one sentence that names the file."""

import errno
import os
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pdfx.errors import UserError
from pdfx.host.system_errors import naming, sentence_of


def write_to_a_full_device(path):
    with naming("metrics.jsonl"), open("/dev/full", "w") as stream:
        stream.write("step 1")


def make_a_mapping_too_large(path):
    raise RuntimeError("unable to write to file </torch_12_34_0>: No space left on device (28)")


def fail_in_a_worker(path):
    raise RuntimeError(
        f"Caught OSError in DataLoader worker 0.\n  File ...\nOSError: [Errno {errno.EMFILE}] Too many open files: "
        "'/data/00000.tar'"
    )


@pytest.mark.parametrize(
    ("work", "sentence"),
    [
        (write_to_a_full_device, r"metrics.jsonl: No space left on device; free some room there."),
        (lambda path: open(path / "none" / "file"), r".*none/file: No such file or directory."),
        (lambda path: shutil.copy(path, path / "copy"), r".*: Is a directory."),
        (
            lambda path: save_file({"a": torch.zeros(3)}, path / "none" / "file"),
            r".*none/.*: No such file or directory.",
        ),
        (lambda path: load_file(path / "none"), r"No such file or directory: .*none"),
        (lambda path: torch.save(torch.zeros(9999), "/dev/full"), r".*disk is full; free some room there."),
        (lambda path: torch.empty(10**15), r"Memory ran out; .*"),
        (lambda path: bytearray(10**17), r"Memory ran out; .*"),
        (make_a_mapping_too_large, r"/dev/shm/torch_12_34_0: No space left on device; use fewer worker processes .*"),
        (fail_in_a_worker, r"/data/00000.tar: Too many open files; raise the limit of open files \('ulimit -n'\)."),
    ],
)
def test_an_error_of_the_system_is_one_sentence_that_names_the_file(tmp_path, work, sentence):
    with pytest.raises(Exception) as raised:
        work(tmp_path)
    assert re.fullmatch(sentence, sentence_of(raised.value))


def test_a_fault_of_the_program_is_no_error_of_the_system():
    assert sentence_of(ZeroDivisionError("division by zero")) is None
    assert sentence_of(RuntimeError("shape [28] does not fit")) is None


@pytest.mark.parametrize(
    "error", [OSError("16 requested and 8 written"), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))]
)
def test_an_error_without_a_file_gets_the_one_that_is_being_written(error):
    with pytest.raises((OSError, UserError)) as raised, naming("out.npy"):
        raise error
    told = str(raised.value) if isinstance(raised.value, UserError) else sentence_of(raised.value)
    assert told.startswith("out.npy") and told.endswith("free some room there.")
