import pytest
from source_checks import check_source, problems_of
from tiny_formats import write_jsonl, write_parquet, write_tevatron
from tiny_shards import picture

from data_tools.sources.tevatron import TevatronSource
from pdfx.errors import UserError

QUERY = {"query_id": "q", "query_text": "find it", "positive_document_ids": ["a"], "negative_document_ids": ["b"]}
CORPUS = [{"docid": name, "document_text": f"text {name}"} for name in "abc"]


def source_of(folder, queries: list[dict], corpus: list[dict] = CORPUS, **options) -> TevatronSource:
    return TevatronSource(
        write_jsonl(folder / "queries.jsonl", queries), write_jsonl(folder / "corpus.jsonl", corpus), **options
    )


def test_queries_and_documents_as_published_are_joined_by_id(tmp_path):
    queries, corpus = write_tevatron(tmp_path, 6)
    records = [source.record for source in check_source(TevatronSource(queries, corpus), 6, 0)]
    assert [(record.query.text, record.target_id, record.target.text) for record in records[:2]] == [
        ("find document 0", "d0", "document 0"),
        ("find document 1", "d2", "document 2"),
    ]
    assert [[side.target_id for side in record.negatives] for record in records[:3]] == [[], ["d3"], ["d5", "d6"]]
    assert records[2].negatives[1].images == ["pictures/6.png"]


def test_parquet_that_holds_its_pictures_gives_the_same_records_with_their_bytes(tmp_path):
    named, held = (TevatronSource(*write_tevatron(tmp_path, 6, as_parquet)) for as_parquet in (False, True))
    for one, other in zip(check_source(named, 6, 0), check_source(held, 6, 0), strict=True):
        assert [(name, side.text) for name, side in one.record.sides()] == [
            (name, side.text) for name, side in other.record.sides()
        ]
        for (_, side), (_, holder) in zip(one.record.sides(), other.record.sides(), strict=True):
            assert [(tmp_path / name).read_bytes() for name in side.images] == [
                other.pictures[name] for name in holder.images
            ]


def test_the_older_layout_holds_its_passages_itself(tmp_path):
    query = {
        "query_id": "q",
        "query": "who",
        "positive_passages": [{"docid": "7", "title": "Title", "text": "body"}, {"docid": "8", "text": "other"}],
        "negative_passages": [{"docid": "9", "title": "", "text": "wrong"}],
    }
    path = write_jsonl(
        tmp_path / "queries.jsonl", [query, query | {"positive_passages": []}, query | {"negative_passages": ["9"]}]
    )
    first, *bad = check_source(TevatronSource(path), 3, 2)
    assert (first.record.query.text, first.record.target.text, first.record.target_id) == ("who", "Title body", "7")
    assert [(side.text, side.target_id) for side in first.record.negatives] == [("wrong", "9")]
    assert problems_of(bad) == [
        "'positive_passages' is empty: the query has no target",
        "'negative_passages.0' is '9': it must be an object with 'docid', 'title' and 'text'",
    ]
    assert [
        source.record.target_id for source in TevatronSource(path, positives="each").records() if source.record
    ] == ["7", "8"]


def test_several_positives_give_the_first_or_a_record_each(tmp_path):
    queries = [QUERY | {"positive_document_ids": ["c", "a", "missing"]}, QUERY]
    assert [source.record.target_id for source in check_source(source_of(tmp_path, queries), 2, 0)] == ["c", "a"]
    each = check_source(source_of(tmp_path, queries, positives="each"), 4, 1)
    assert [source.record and source.record.target_id for source in each] == ["c", "a", None, "a"]


def test_the_rest_of_the_corpus_follows_without_queries_to_be_searched_in(tmp_path):
    corpus = [
        *CORPUS,
        {"docid": "b", "text": "again"},
        {"docid": "d", "text": None},
        {"docid": None, "text": "nameless"},
    ]
    queries = [QUERY | {"positive_document_ids": ["b"], "negative_document_ids": None}, QUERY | {"query_text": ""}]
    everything = check_source(source_of(tmp_path, queries, corpus, documents="all"), 7, 4)
    assert [source.record and (source.record.query is not None, source.record.target_id) for source in everything] == [
        (True, "b"), None, (False, "a"), (False, "c"), None, None, None,
    ]  # fmt: skip
    assert problems_of(everything) == [
        "'query_text' holds neither a text nor a picture",
        f"the docid 'b' is already that of {tmp_path}/corpus.jsonl line 2",
        "'document_text' holds neither a text nor a picture",
        "'docid' is None: it must be a name or a whole number",
    ]


@pytest.mark.parametrize(
    "query, problem",
    [
        (QUERY | {"positive_document_ids": []}, "'positive_document_ids' is empty: the query has no target"),
        (QUERY | {"positive_document_ids": None}, "'positive_document_ids' is empty: the query has no target"),
        (QUERY | {"positive_document_ids": "a"}, "'positive_document_ids' is 'a': it must be a list"),
        (
            QUERY | {"positive_document_ids": [True]},
            "'positive_document_ids.0' is True: it must be a name or a whole number",
        ),
        (
            QUERY | {"positive_document_ids": ["z"]},
            "'positive_document_ids.0' names the document 'z', which is not in the corpus",
        ),
        (
            QUERY | {"positive_document_ids": ["bad"]},
            "names the document 'bad' ({corpus} line 4), which cannot be used: 'document_text' is 5: it must be a text",
        ),
        (
            QUERY | {"negative_document_ids": ["b", "z"]},
            "'negative_document_ids.1' names the document 'z', which is not in the corpus",
        ),
        (
            QUERY | {"negative_document_ids": ["empty"]},
            "which cannot be used: 'document_text' holds neither a text nor a picture",
        ),
        (QUERY | {"query_text": None}, "'query_text' holds neither a text nor a picture"),
        (QUERY | {"query_text": ["who"]}, "'query_text' is ['who']: it must be a text"),
        (QUERY | {"query_image": 5}, "'query_image' is 5: it must be the path of a picture, or its bytes"),
    ],
)
def test_a_malformed_query_is_a_problem_that_names_the_field(tmp_path, query, problem):
    corpus = [*CORPUS, {"docid": "bad", "document_text": 5}, {"docid": "empty"}]
    (found,) = problems_of(check_source(source_of(tmp_path, [QUERY, query, QUERY], corpus), 3, 1))
    assert problem.replace("{corpus}", str(tmp_path / "corpus.jsonl")) in found


def test_negatives_that_are_missing_can_be_left_out_and_their_number_bounded(tmp_path):
    query = QUERY | {"negative_document_ids": ["z", "b", "c"]}
    assert len(problems_of(check_source(source_of(tmp_path, [query]), 1, 1))) == 1
    for most, kept in ((None, ["b", "c"]), (1, ["b"]), (0, [])):
        (source,) = check_source(source_of(tmp_path, [query], missing_negatives="skip", negatives=most), 1, 0)
        assert [side.target_id for side in source.record.negatives] == kept


def test_whole_numbers_as_ids_find_documents_that_are_named_alike(tmp_path):
    query = QUERY | {"positive_document_ids": [7], "negative_document_ids": ["8"]}
    (source,) = check_source(
        source_of(tmp_path, [query], [{"docid": "7", "text": "seven"}, {"docid": 8, "text": "eight"}]), 1, 0
    )
    assert source.record.target.text == "seven" and source.record.negatives[0].text == "eight"


def test_ids_whose_hashes_collide_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr("data_tools.sources.tevatron.identity_number", lambda identity: len(identity))
    assert [
        source.record.target.text
        for source in check_source(source_of(tmp_path, [QUERY, QUERY | {"positive_document_ids": ["c"]}]), 2, 0)
    ] == [
        "text a",
        "text c",
    ]


def test_pictures_that_query_and_documents_hold_do_not_mix(tmp_path):
    corpus = [{"docid": name, "image": {"bytes": picture(seed), "path": "0.png"}} for seed, name in enumerate("ab")]
    query = QUERY | {"query_text": None, "query_image": {"bytes": picture(5), "path": "0.png"}}
    source = TevatronSource(
        write_parquet(tmp_path / "queries.parquet", [query]), write_parquet(tmp_path / "corpus.parquet", corpus)
    )
    (read,) = check_source(source, 1, 0)
    assert [read.pictures[side.images[0]] for _, side in read.record.sides()] == [picture(5), picture(0), picture(1)]


def test_what_the_files_lack_as_a_whole_is_told_at_once(tmp_path):
    queries = write_jsonl(tmp_path / "queries.jsonl", [QUERY])
    with pytest.raises(UserError, match=r"names documents by id; say where these are, as in corpus=corpus\.jsonl"):
        TevatronSource(queries)
    with pytest.raises(UserError, match=r"There is no column 'docid' in .*other\.jsonl"):
        TevatronSource(queries, write_jsonl(tmp_path / "other.jsonl", [{"id": 1}]))
    with pytest.raises(UserError, match="There is no column 'positive_document_ids'"):
        TevatronSource(write_jsonl(tmp_path / "other.jsonl", [{"id": 1}]), queries)


def test_the_identity_changes_with_files_and_options(tmp_path):
    queries, corpus = write_tevatron(tmp_path, 2)
    options = [{}, {"positives": "each"}, {"negatives": 1}, {"missing_negatives": "skip"}, {"documents": "all"}]
    identities = [TevatronSource(queries, corpus, **given).identity() for given in options]
    write_jsonl(corpus, CORPUS)
    identities.append(TevatronSource(queries, corpus).identity())
    assert len({str(identity) for identity in identities}) == 6
