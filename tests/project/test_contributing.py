"""What contributors read names files, targets and versions that exist."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

import pdfx

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/installing.md", "CHANGELOG.md"])
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert links and all((ROOT / page).parent.joinpath(link).exists() for link in links if not link.startswith("http"))


def test_the_paths_and_names_in_the_guide_exist():
    paths = re.findall(r"`((?:tests|benchmarks|pdfx|data_tools)/[\w/.]+)`", GUIDE)
    assert len(paths) >= 5 and all((ROOT / path).exists() for path in paths)
    for name, file in (
        ("FAMILIES", "pdfx/model/families.py"),
        ("_dependence", "pdfx/objective/diversity/term.py"),
        ("check_source", "tests/support/source_checks.py"),
        ("problem", "data_tools/sources/base.py"),
    ):
        assert name in GUIDE and name in (ROOT / file).read_text(encoding="utf-8")


def test_the_tour_has_seven_files():
    tour = GUIDE.partition("## A tour in seven files")[2].partition("\n## ")[0]
    assert re.findall(r"^(\d)\. \[", tour, re.MULTILINE) == list("1234567")


@pytest.mark.process
def test_the_commands_of_the_guide_are_targets_of_make():
    (block,) = re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL)
    for line in block.splitlines():
        words = line.partition("#")[0].split()
        assert words[0] == "make"
        subprocess.run([*words, "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def test_the_changelog_knows_the_version():
    assert re.search(rf"^## {re.escape(pdfx.__version__)}$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_a_citation_names_software_and_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    paper = citation["preferred-citation"]
    assert paper["authors"] and paper["title"] in (ROOT / "docs/method.md").read_text(encoding="utf-8")


def test_the_hooks_before_a_commit_check_what_make_lint_checks():
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    for hook in local["hooks"]:
        command, check = hook["entry"].split()[:2]
        assert f"{command} {check}" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.md")), ids=lambda path: path.stem)
def test_an_issue_template_has_the_fields_that_github_needs(path):
    _, head, body = path.read_text(encoding="utf-8").split("---\n", 2)
    assert {"name", "about"} <= yaml.safe_load(head).keys() and body.count("**") >= 6
