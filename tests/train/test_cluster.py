"""Which variables join the ranks under each launcher."""

import pytest

from pdfx.distributed.world import device_number, launch_variables
from pdfx.errors import UserError


def test_a_launcher_that_sets_rank_and_world_size_is_left_alone():
    environment = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node", "MASTER_PORT": "1234"}
    assert launch_variables(environment) == {}


def test_no_launcher_means_one_process():
    variables = launch_variables({})
    assert (variables["RANK"], variables["WORLD_SIZE"], variables["LOCAL_RANK"], variables["MASTER_ADDR"]) == (
        "0",
        "1",
        "0",
        "127.0.0.1",
    )
    assert 1024 <= int(variables["MASTER_PORT"]) < 65536


def test_srun_tasks_of_a_job_meet_at_its_first_node_on_a_port_of_its_own(tmp_path, monkeypatch):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$1 $2 $3" = "show hostnames gpu[07-08]" ] && printf "gpu07\\ngpu08\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    task = {
        "SLURM_PROCID": "5",
        "SLURM_NTASKS": "8",
        "SLURM_LOCALID": "1",
        "SLURM_JOB_NODELIST": "gpu[07-08]",
        "SLURM_JOB_ID": "4711",
    }
    variables = launch_variables(task)
    assert {name: variables[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")} == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "gpu07",
    }
    assert launch_variables(task | {"SLURM_PROCID": "0"})["MASTER_PORT"] == variables["MASTER_PORT"]
    assert launch_variables(task | {"SLURM_JOB_ID": "4712"})["MASTER_PORT"] != variables["MASTER_PORT"]
    assert launch_variables(task | {"MASTER_ADDR": "chosen", "MASTER_PORT": "77"})["MASTER_ADDR"] == "chosen"


def test_a_node_list_that_slurm_cannot_resolve_is_told_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"'gpu\[1-2\]' needs 'scontrol'.*set MASTER_ADDR"):
        launch_variables({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "gpu[1-2]"})


def test_a_rank_takes_its_own_gpu_or_the_only_visible_one_and_too_many_ranks_are_refused():
    assert [device_number(local, 4) for local in range(4)] == [0, 1, 2, 3]
    assert device_number(3, 1) == 0
    with pytest.raises(UserError, match="shows 2 GPUs"):
        device_number(2, 2)
