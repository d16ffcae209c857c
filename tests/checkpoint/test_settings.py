"""No setting changes in silence between a checkpoint and a run that takes it up: what decides an embedding is refused,
all else is reported."""

from collections.abc import Iterator

import pytest
import torch
import yaml
from checkpoint.made import make_checkpoint
from hypothesis import given
from hypothesis import strategies as st

from pdfx.checkpoint.directory import open_checkpoint
from pdfx.checkpoint.identity import DECISIVE, EVIDENT, FREE, bit_sum, fingerprint, settings_changes
from pdfx.config import Config, parse_config
from pdfx.errors import UserError

TREE = {
    "model": {"path": "backbone"},
    "data": {"train": "shards"},
    "train": {"output_dir": "run", "deepspeed": "zero.json", "max_steps": 9, "per_device_train_batch_size": 2},
}


def config(**sections: dict) -> Config:
    return parse_config({name: TREE.get(name, {}) | sections.get(name, {}) for name in TREE.keys() | sections.keys()})


def leaves(tree: dict, prefix: tuple = ()) -> Iterator[tuple]:
    for name, value in tree.items():
        yield from leaves(value, (*prefix, name)) if isinstance(value, dict) else [(*prefix, name)]


KEYS = list(leaves(config().model_dump(mode="json")))


def saved_with(folder, tree: dict):
    return open_checkpoint(make_checkpoint(folder, 1, files={"config.yaml": yaml.safe_dump(tree).encode()}))


def test_the_same_settings_need_no_word(tmp_path):
    assert settings_changes(saved_with(tmp_path, config().model_dump(mode="json")), config()) == []


def with_others(keys: list[tuple]) -> dict:
    """A run's settings with other values of these keys."""
    tree = config().model_dump(mode="json")
    for *sections, last in keys:
        section = tree
        for name in sections:
            section = section[name]
        section[last] = "something else"
    return tree


def test_each_setting_that_changed_is_refused_or_told(tmp_path):
    names = {key: ".".join(key) for key in KEYS}
    # A name that no setting bears would except nothing.
    assert FREE | EVIDENT <= set(names.values())
    decisive = {key for key, name in names.items() if name.startswith(DECISIVE)} - {
        key for key, name in names.items() if name in FREE
    }
    told = settings_changes(saved_with(tmp_path, with_others([key for key in KEYS if key not in decisive])), config())
    assert [sentence.split(" is ")[0] for sentence in told] == [
        name for key, name in names.items() if key not in decisive and name not in EVIDENT
    ]
    assert all(sentence.endswith("from here on; it was something else up to the checkpoint.") for sentence in told)
    checkpoint = open_checkpoint(tmp_path / "checkpoints/step-00000001")
    for key in decisive:
        checkpoint.file("config.yaml").write_text(yaml.safe_dump(with_others([key])))
        with pytest.raises(
            UserError, match=rf"^{names[key]} is .* and was 'something else' up to .*, which changes every embedding"
        ):
            settings_changes(checkpoint, config())


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        (
            {"inputs": {"query_instruction": "find: "}},
            "inputs.query_instruction is 'find: ' and was '' up to .*step-00000001, which changes every embedding",
        ),
        ({"inputs": {"max_text_tokens": 64}}, "inputs.max_text_tokens is '64' and was '512'"),
        ({"model": {"lora": None}}, "model.lora is 'null' and was '{alpha: 64"),
        ({"model": {"pooling": "mean"}}, "model.pooling is 'mean' and was 'last'"),
    ],
)
def test_what_decides_an_embedding_is_refused_with_both_values(tmp_path, sections, sentence):
    with pytest.raises(UserError, match=sentence):
        settings_changes(saved_with(tmp_path, config().model_dump(mode="json")), config(**sections))


def test_a_choice_is_told_with_both_values_and_without_secrets(tmp_path):
    saved = saved_with(tmp_path, config(data={"train": "https://me:secret@host/a?sig=secret"}).model_dump(mode="json"))
    told = settings_changes(
        saved, config(train={"learning_rate": 1e-3}, data={"train": ["https://host/a?sig=other"], "hard_negatives": 2})
    )
    assert told == [
        "data.train is [https://host/a] from here on; it was https://host/a up to the checkpoint.",
        "data.hard_negatives is 2 from here on; it was null up to the checkpoint.",
        "train.learning_rate is 0.001 from here on; it was 2.0e-05 up to the checkpoint.",
    ]


def test_a_setting_that_the_checkpoints_pdfx_did_not_know_is_no_change(tmp_path):
    tree = config().model_dump(mode="json")
    del tree["guards"], tree["data"]["read_threads"]
    assert settings_changes(saved_with(tmp_path, tree | {"gone": {"a": 1}}), config()) == []


@given(
    cuts=st.lists(st.integers(0, 30), max_size=4).map(sorted),
    place=st.integers(0, 29),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_frozen_weights_have_one_fingerprint_in_any_pieces_and_another_after_any_change(cuts, place, dtype):
    weight = torch.linspace(-1, 1, 30).to(dtype)
    pieces = [weight[start:end] for start, end in zip([0, *cuts], [*cuts, 30], strict=True)]
    assert fingerprint({"a": bit_sum(piece)} for piece in pieces) == fingerprint(
        [{"a": bit_sum(weight.view(5, 6).t())}]
    )
    other = weight.clone()
    other[place] = torch.nextafter(other[place], torch.tensor(9.0, dtype=dtype))
    assert (
        fingerprint([{"a": bit_sum(other)}])
        != fingerprint([{"a": bit_sum(weight)}])
        != fingerprint([{"b": bit_sum(weight)}])
    )
