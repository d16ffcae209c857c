"""Every example of docs/importers.md does what it says: its files are written, its command is run, and the shards are
compared."""

import json
import re
import shlex
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest
from tiny_shards import picture

from data_tools.sources.registry import FORMATS
from pdfx.cli.app import main
from pdfx.data import ShardedDataset

TEXT = (Path(__file__).parents[2] / "docs" / "importers.md").read_text(encoding="utf-8")
SECTIONS = {
    match[1]: match[2] for match in re.finditer(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
}
FENCE = re.compile(r"^(?:`([^`\n]+)`:|(gives|and quarantines)|[^\n]*)\n```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def run(block: str) -> None:
    for line in block.splitlines():
        words = shlex.split(line)
        if words[0] != "pdfx":
            subprocess.run(words, check=True)
            continue
        with pytest.raises(SystemExit) as ended:
            main([*words[1:], "--workers", "0"])
        assert ended.value.code == 0, line


def without_content_hash(stored: dict, documented: dict) -> dict:
    """The stored record, without identities that the documented one leaves out because they are hashes of the
    content."""
    negatives = [
        without_content_hash(negative, shown or {}) if negative else negative
        for negative, shown in zip_longest(stored.get("negatives", []), documented.get("negatives", []))
    ]
    kept = {
        name: value
        for name, value in stored.items()
        if name in documented or not (name == "target_id" and re.fullmatch("[0-9a-f]{32}", value))
    }
    return {**kept, "negatives": negatives} if "negatives" in stored else kept


def check(role: str, lines: list[dict], shards: Path) -> None:
    if role == "gives":
        stored = [
            json.loads(record.model_dump_json(exclude_none=True)) for _, record in ShardedDataset(shards).records()
        ]
        assert len(stored) == len(lines)
        assert [without_content_hash(record, line) for record, line in zip(stored, lines, strict=True)] == lines
    else:
        quarantined = [json.loads(line) for line in (shards / "quarantine.jsonl").read_text().splitlines()]
        assert [{name: record[name] for name in ("origin", "reason")} for record in quarantined] == lines


@pytest.mark.process
@pytest.mark.parametrize("name", SECTIONS)
def test_the_example_of_each_importer_gives_what_it_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = SECTIONS[name]
    for number, path in enumerate(
        path
        for line in re.findall(r"^Pictures: (.*)\.$", section, re.MULTILINE)
        for path in re.findall("`(.*?)`", line)
    ):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(picture(number))
    shards, seen = None, set()
    for path, role, language, block in FENCE.findall(section):
        if path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(block, encoding="utf-8")
        elif language == "python":
            subprocess.run([sys.executable, "-c", block], check=True)
        elif language == "bash":
            run(block)
            (shards,) = re.findall(r"--out (\S+)", block)
        else:
            check(role, [json.loads(line) for line in block.splitlines()], Path(shards))
        seen |= {role, language}
    assert {"gives", "bash"} <= seen
    if (Path(shards) / "quarantine.jsonl").exists():
        assert "and quarantines" in seen


def test_every_format_has_a_section_and_each_of_its_options_is_in_it():
    assert set(SECTIONS) == set(FORMATS)
    for name, format in FORMATS.items():
        named = [
            option
            for line in re.findall(r"^\| (`.*?) \|", SECTIONS[name], re.MULTILINE)
            for option in re.findall("`(.*?)`", line)
        ]
        assert sorted(named) == sorted(format.options), name
        assert f"| [`{name}`](#{name}) |" in TEXT


def test_every_link_leads_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if not link.startswith("http")]
    folder = Path(__file__).parents[2] / "docs"
    assert all(link[1:] in SECTIONS if link.startswith("#") else (folder / link).exists() for link in links)
