import tracemalloc

from tiny_formats import write_jsonl

from data_tools.sources.rows import open_rows
from data_tools.sources.tevatron import Corpus


def test_texts_and_pictures_do_not_stay_in_memory(tmp_path):
    path = write_jsonl(tmp_path / "corpus.jsonl", [{"docid": n, "text": f"{n} " * 4000} for n in range(1000)])
    tracemalloc.start()
    corpus = Corpus(open_rows(path))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(corpus) == 1000 and corpus[corpus.find("700")].side["text"] == "700 " * 4000
    assert kept < 200_000 and peak < path.stat().st_size / 4


def test_an_id_that_is_not_there_is_not_found(tmp_path):
    corpus = Corpus(open_rows(write_jsonl(tmp_path / "corpus.jsonl", [{"docid": "a", "text": "x"}])))
    assert corpus.find("a") == 0 and corpus.find("b") is None
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    nothing = Corpus(open_rows(empty))
    assert len(nothing) == 0 and nothing.find("a") is None
