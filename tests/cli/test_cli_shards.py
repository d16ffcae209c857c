import json
from functools import partial

import pytest
from command_line import run_pdfx, told
from tiny_shards import damage_image, make_shards

from data_tools.inspect.describe import describe_shards


@pytest.fixture
def shards_command(capfd):
    """Runs ``pdfx shards``; gives its exit code, stdout and stderr."""
    return partial(run_pdfx, capfd, "shards")


@pytest.mark.parametrize("command", ["check", "describe", "split", "merge"])
def test_help_has_examples_and_tells_exit_codes_where_they_matter(shards_command, command):
    code, out, _ = shards_command(command, "--help")
    assert code == 0
    assert f"pdfx shards {command} shards/" in out
    assert command != "check" or "Ends with 0 if the shards are sound, 1 if there are problems, and 2" in " ".join(
        out.split()
    )


def test_check_ends_with_0_1_or_2_and_writes_the_same_as_json(shards_command, tmp_path):
    shards = make_shards(tmp_path)
    report = tmp_path / "problems.json"
    assert shards_command("check", shards, "--full", "--workers", 1, "--json", report) == (
        0,
        f"{shards} is sound.\n",
        "",
    )
    assert json.loads(report.read_text()) == {"shards": str(shards), "full": True, "sound": True, "problems": []}
    damage_image(shards, 3)
    assert shards_command("check", shards)[0] == 0
    code, out, _ = shards_command("check", shards, "--full", "--workers", 1, "--json", report)
    assert code == 1
    assert out.splitlines() == json.loads(report.read_text())["problems"]
    code, out, _ = shards_command("check", shards, "--full", "--workers", 1, "--json", "-")
    assert (code, json.loads(out)) == (1, json.loads(report.read_text()))
    assert "no directory of shards" in told(shards_command("check", tmp_path / "absent"))
    assert "no folder" in told(shards_command("check", shards, "--json", tmp_path / "absent" / "a.json"))


def test_describe_gives_tables_json_and_a_contact_sheet(shards_command, tmp_path):
    shards = make_shards(tmp_path)
    words = (
        "describe",
        shards,
        "--workers",
        1,
        "--json",
        tmp_path / "description.json",
        "--contact-sheet",
        tmp_path / "pairs.html",
        "--pairs",
        4,
    )
    code, out, _ = shards_command(*words)
    assert code == 0
    assert "Equal by content" in out and "languages: undetermined 25" in out
    assert json.loads((tmp_path / "description.json").read_text()) == describe_shards(shards)
    assert out.splitlines()[-1] == f"{tmp_path / 'pairs.html'}: 4 samples"
    assert (tmp_path / "pairs.html").read_text().count("<article>") == 4
    code, out, _ = shards_command("describe", shards, "--workers", 1, "--json", "-")
    assert (code, json.loads(out)) == (0, describe_shards(shards))
    assert "HTML page" in told(shards_command("describe", shards, "--contact-sheet", tmp_path / "pairs.png"))


def test_split_and_merge_tell_exact_counts_and_give_everything_back(shards_command, tmp_path):
    shards = make_shards(tmp_path)
    parts = [tmp_path / "train", tmp_path / "test"]
    code, out, _ = shards_command(
        "split", shards, "--out", f"{parts[0]}=0.8", "--out", f"{parts[1]}=0.2", "--json", tmp_path / "split.json"
    )
    assert code == 0
    told_parts = json.loads((tmp_path / "split.json").read_text())
    assert sum(part["samples"] for part in told_parts) == 25
    for part, line in zip(told_parts, out.splitlines(), strict=True):
        assert line.startswith(
            f"{part['path']}: {part['samples']} samples in 1 shards, {part['bytes']} bytes, fingerprint "
            f"{part['fingerprint'][:12]}; "
        )
        assert line.endswith(f"{part['samples'] / 25:.2%} of all samples, with {part['targets']} targets")
    code, out, _ = shards_command("merge", *parts, "--out", tmp_path / "all", "--link")
    assert code == 0
    assert out.startswith(f"{tmp_path / 'all'}: 25 samples in 2 shards, ")
    assert shards_command("check", tmp_path / "all", "--full", "--workers", 1)[0] == 0
    assert "Give --prefix-keys" in told(shards_command("merge", shards, *parts, "--out", tmp_path / "twice"))
    assert "sum to 0.9 and must sum to 1" in told(shards_command("split", shards, "--out", f"{tmp_path / 'a'}=0.9"))
    assert "'everything' names no part" in told(shards_command("split", shards, "--out", "everything"))
