"""A disk that fills up while a checkpoint is written: one sentence, the checkpoint before it stays whole, and what was
half written is gone."""

import contextlib
import io
import shutil
import subprocess
from pathlib import Path

import pytest
from tiny_runs import tiny_config

from pdfx.checkpoint.directory import PARTIAL, newest_whole
from pdfx.config import Config
from pdfx.config.run_files import CHECKPOINTS


@pytest.fixture
def small_disk(tmp_path):
    """A folder with room for 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def run_telling(config: Config) -> str:
    """In a rank: the whole run; what it printed and how it ended."""
    from pdfx.distributed.world import join_world
    from pdfx.errors import UserError
    from pdfx.train.trainer import StopRequest, Trainer

    trainer = None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            trainer = Trainer(config, join_world())
            end = "finished" if trainer.run(StopRequest()) else "stopped"
        except UserError as error:
            end = str(error)
        except SystemExit as error:
            end = f"exit code {error.code}"
        finally:
            if trainer is not None:
                trainer.close()
                trainer.engine.destroy()
    return f"{printed.getvalue()}{end}"


@pytest.mark.parametrize("background", [False, True], ids=["blocking", "background"])
def test_the_run_ends_with_one_sentence_and_goes_on_from_the_whole_checkpoint_before_when_there_is_room(
    tmp_path, two_ranks, small_disk, background
):
    train = {"output_dir": str(small_disk / "run"), "max_steps": 4, "save_steps": 2, "save_in_background": background}
    config = tiny_config(Path(tmp_path), "qwen2_vl", "zero3", train=train, model={"lora": {"r": 2}})
    two_ranks.run(run_telling, config.model_copy(update={"train": config.train.model_copy(update={"max_steps": 2})}))
    # Room for a part of the next checkpoint only.
    room = shutil.disk_usage(small_disk).free
    size = sum(path.stat().st_size for path in (small_disk / "run" / CHECKPOINTS).rglob("*") if path.is_file())
    (small_disk / "ballast").write_bytes(bytes(room - size // 2))

    told, other = two_ranks.run(run_telling, config)
    sentence = told.splitlines()[-1]
    assert sentence.startswith(f"The checkpoint {small_disk / 'run' / CHECKPOINTS}/step-00000004")
    assert "could not be written: No space left on device" in sentence and "the same command resumes" in sentence
    assert other == "exit code 2"
    assert newest_whole(small_disk / "run")[0].step == 2
    assert not list((small_disk / "run" / CHECKPOINTS).glob(f"*{PARTIAL}"))

    (small_disk / "ballast").unlink()
    assert two_ranks.run(run_telling, config)[0].endswith("finished")
    assert newest_whole(small_disk / "run")[0].step == 4
