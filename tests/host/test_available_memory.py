"""How much memory a process may take, in containers and batch jobs too."""

from pathlib import Path

import pytest

from pdfx.host.memory import available_bytes


def machine(folder: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/meminfo").write_text("MemTotal:       900 kB\nMemAvailable:   500 kB\n")
    (folder / "proc/self/cgroup").write_text(membership)
    for name, text in files.items():
        (folder / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "groups" / name).write_text(text)
    return folder / "proc", folder / "groups"


LIMITED = {
    "memory.max": "300000",
    "memory.current": "250000",
    "memory.stat": "anon 1\nactive_file 20000\ninactive_file 30000\n",
}
OLD = {
    "memory.limit_in_bytes": "200000",
    "memory.usage_in_bytes": "150000",
    "memory.stat": "cache 5\ntotal_active_file 1000\ntotal_inactive_file 2000\n",
}


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {}, 512_000),
        ("0::/job/task\n", {f"job/{name}": text for name, text in LIMITED.items()}, 100_000),
        ("0::/job\n", {f"job/{name}": text for name, text in (LIMITED | {"memory.max": "max"}).items()}, 512_000),
        ("4:memory:/job\n3:cpuset:/\n0::/\n", {f"memory/job/{name}": text for name, text in OLD.items()}, 53_000),
    ],
)
def test_a_container_leaves_what_its_limit_leaves_with_cached_files_counted_as_free(
    tmp_path, membership, files, expected
):
    assert available_bytes(*machine(tmp_path, membership, files)) == expected


def test_this_machine_has_some():
    assert 0 < available_bytes() < 2**50
