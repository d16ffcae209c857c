import json
from pathlib import Path

import pytest
from tiny_exports import tiny_export
from tiny_models import items, picture

from data_tools.build.builder import build_shards

SAMPLES = 13


@pytest.fixture(scope="session")
def export(tmp_path_factory) -> Path:
    return tiny_export(tmp_path_factory.mktemp("evaluated"))


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """13 samples with 12 distinct targets: three have one identity (samples 0, 5 and 7), and 3 and 11 share theirs. A
    text that would be HTML is among them."""
    folder = tmp_path_factory.mktemp("evaluation_data")
    lines = []
    for i, item in enumerate(items("mixed", SAMPLES)):
        names = [f"{i}-{j}.png" for j in range(len(item["images"]))]
        for name, image in zip(names, item["images"], strict=True):
            image.save(folder / name)
        query = {"text": f"<b>query</b> {i}" if i == 0 else f"query {i} {item['text']}", "images": names}
        line = {"key": f"sample{i}", "query": query, "target": {"text": f"target {3 if i == 11 else i}"}}
        lines.append(line | ({"target_id": "shared"} if i in (0, 5, 7) else {}))
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    build_shards(folder / "records.jsonl", folder, folder / "shards", samples_per_shard=5)
    return folder / "shards"


@pytest.fixture(scope="session")
def candidate_shards(tmp_path_factory) -> Path:
    """7 queries, each with candidates of its own among 5 targets that are some query's and 4 that are none's; one of
    these is a picture."""
    folder = tmp_path_factory.mktemp("candidates")
    picture(3).save(folder / "3.png")
    lines = [{"key": f"only{i}", "target": {"text": f"nobody's {i}"}, "target_id": f"t{i}"} for i in range(5, 8)]
    lines.append({"key": "only8", "target": {"images": ["3.png"]}, "target_id": "t8"})
    for i in range(7):
        candidates = [f"t{(i % 5 + step) % 9}" for step in range(2 + i)]
        lines.append(
            {
                "key": f"ask{i}",
                "query": {"text": f"query {i}"},
                "target": {"text": f"answer {i % 5}"},
                "target_id": f"t{i % 5}",
                "candidates": candidates,
            }
        )
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    build_shards(folder / "records.jsonl", folder, folder / "shards", samples_per_shard=5)
    return folder / "shards"
