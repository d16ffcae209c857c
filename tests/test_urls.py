from pathlib import Path

import pytest

from pdfx.config import DataSection
from pdfx.urls import is_url, without_secrets


@pytest.mark.parametrize("place", ["s3://bucket/train", "https://host/x", "memory://x", "simplecache::s3://bucket/x"])
def test_urls_are_told_from_paths(place):
    assert is_url(place)


@pytest.mark.parametrize("place", ["shards/train", "/data/train", "C:/train", "a:b", Path("shards/train"), "./s3:/x"])
def test_paths_are_told_from_urls(place):
    assert not is_url(place)


@pytest.mark.parametrize(
    "url, shown, name",
    [
        ("https://me:secret@host/sets/train?signature=secret", "https://host/sets/train", "train"),
        ("https://me:secret@host:8080", "https://host:8080", "host:8080"),
        ("s3://bucket/sets/train@v2", "s3://bucket/sets/train@v2", "train@v2"),
        ("s3://bucket/why?", "s3://bucket/why?", "why?"),
        ("s3://bucket/train/", "s3://bucket/train/", "train"),
        ("sftp://me:secret@host/train", "sftp://host/train", "train"),
        ("shards/mail@home?", "shards/mail@home?", "mail@home?"),
    ],
)
def test_secrets_of_urls_are_neither_shown_nor_part_of_a_data_sets_name(url, shown, name):
    assert without_secrets(url) == shown
    assert [data_set.name for data_set in DataSection(train=url).training_sets()] == [name]
