"""The quickstart's last table."""

import json

import run as quickstart


def test_one_embedding_stands_beside_the_paths(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quickstart, "ROOT", tmp_path)
    build = tmp_path / quickstart.BUILD
    (build / "single").mkdir(parents=True)
    ways, names = ("query_to_target", "target_to_query"), ("recall@1", "recall@10")
    scores = {"path_0": 0.25, "fused": 0.5, "chance": 0.1}
    metrics = {f"{way}/{score}/{name}": value for way in ways for score, value in scores.items() for name in names}
    (build / "metrics.json").write_text(json.dumps({**metrics, "targets": 7}))
    last = {"step": 50, **{f"evaluation/{way}/fused/{name}": 0.125 for way in ways for name in names}}
    (build / "single" / "metrics.jsonl").write_text(json.dumps({"step": 5}) + "\n" + json.dumps(last) + "\n")
    quickstart.print_results()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[3:7]] == [
        ["one", "embedding,", "no", "prefix", *["0.125"] * 4],
        ["path_0", *["0.250"] * 4],
        ["fused", *["0.500"] * 4],
        ["chance", *["0.100"] * 4],
    ]
