from pathlib import Path

import pytest

from pdfx.config import Config, ConfigError, DataSection, dump_config, load_config, parse_config, shown_settings
from pdfx.errors import UserError
from pdfx.host.urls import is_url, without_secrets


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
        ("https://me:se/cr@et@host/train", "https://host/train", "train"),
        ("HTTPS://me:secret@host/train?a=b#token", "HTTPS://host/train", "train"),
        ("https://host/@team/train#token", "https://host/@team/train", "train"),
        ("simplecache::https://me:secret@host/train?signature=secret", "simplecache::https://host/train", "train"),
        ("abfs://box/train?sig=secret", "abfs://box/train", "train"),
    ],
)
def test_secrets_of_urls_are_neither_shown_nor_part_of_a_data_sets_name(url, shown, name):
    assert without_secrets(url) == shown
    assert [data_set.name for data_set in DataSection(train=url).training_sets()] == [name]


URLS = (
    "https://me:pa55word@host/train?X-Amz-Signature=pa55word",
    "simplecache::https://me:pa55word@host/a",
    "s3://bucket/train?token=pa55word",
)
RECIPE = {
    "model": {"path": "m"},
    "train": {"output_dir": "o", "deepspeed": "d", "max_steps": 1, "per_device_train_batch_size": 1},
}


@pytest.mark.parametrize("url", URLS)
def test_no_setting_of_data_shows_a_secret_and_the_run_still_has_it(url):
    tree = RECIPE | {
        "data": {
            "train": [{"path": url, "name": "a"}, url.replace("train", "b").replace("host/a", "host/c")],
            "evaluation": [url],
        }
    }
    config = parse_config(tree)
    assert config.data.training_sets()[0].path == url
    for shown in (dump_config(config), str(shown_settings(config))):
        assert "pa55word" not in shown and "//host/" in shown or "//bucket/" in shown
    assert Config.model_validate(shown_settings(config)).inputs == config.inputs


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("kind", [UserError, ConfigError])
def test_no_error_shows_a_secret(kind, url):
    message = str(kind(f"There is nothing at '{url}', or at {url}: look there."))
    assert "pa55word" not in message and "look there" in message


def test_a_mistake_in_a_recipe_does_not_show_the_secret_beside_it(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {path: m}")
    for override in (
        f"data.train.x={URLS[0]}",
        f"data.num_workers={URLS[0]}",
        f"data.read_threads={{a: '{URLS[0]}'}}",
        f"data.traim={URLS[0]}",
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(recipe, [override])
        assert "pa55word" not in str(caught.value)
