"""An export says in which type of number it was written, loads so, and in another type where that is asked for."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_checkpoints import checkpoint_of, recipe, trained
from tiny_models import items, tiny_backbone
from transformers import AutoModelForImageTextToText, PretrainedConfig

from pdfx.convert.adapter import write_adapter
from pdfx.convert.documents import write_documents
from pdfx.convert.weights import WeightSource, write_shards
from pdfx.embedder.build import build_on_meta
from pdfx.embedder.exports import load_export
from pdfx.embedder.lora import remove_adapters
from pdfx.model import ParallelEmbedder

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ASKED = [None, "auto", *TYPES, *TYPES.values()]


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """Writes the export of one trained model, whose backbone's own configuration says bfloat16 throughout."""
    folder = tmp_path_factory.mktemp("types")
    path = tiny_backbone("qwen2_vl", folder / "backbone")
    AutoModelForImageTextToText.from_pretrained(path, dtype=torch.bfloat16).save_pretrained(path)
    config = recipe(path, lora={"r": 2, "targets": ["q_proj"]})
    checkpoint = checkpoint_of(trained(config), folder / "checkpoint", ranks=2)

    def write(form: str, dtype: torch.dtype) -> Path:
        export = folder / f"{form}-{dtype}"
        if not export.exists():
            weights = WeightSource(build_on_meta(config).eval(), config.model, checkpoint)
            if form == "adapter":
                write_adapter(weights, export, config, checkpoint, dtype)
            else:
                write_documents(remove_adapters(build_on_meta(config)), export, config, checkpoint, dtype)
                write_shards(export, weights.merged_weights(dtype), 10**9 if form == "one" else 50_000)
        return export

    return write


def types_in(settings) -> set:
    """Every type that a configuration, or its JSON, and all inside it name; None if one names none."""
    if isinstance(settings, PretrainedConfig):
        settings = vars(settings)
    inside = [
        value
        for value in settings.values()
        if isinstance(value, PretrainedConfig) or (isinstance(value, dict) and "model_type" in value)
    ]
    return {settings.get("dtype")}.union(*map(types_in, inside))


@pytest.mark.parametrize("form", ["one", "shards", "adapter"])
@pytest.mark.parametrize("written", TYPES)
def test_an_export_loads_as_written_or_as_asked_and_says_so(write, written, form):
    export = write(form, TYPES[written])
    assert types_in(json.loads((export / "config.json").read_text())) == {written}
    files = {name: value for path in export.rglob("*.safetensors") for name, value in load_file(path).items()}
    assert {value.dtype for value in files.values()} == {TYPES[written]}
    assert len(list(export.glob("model*.safetensors"))) > 1 if form == "shards" else True
    # How a type is asked for does not depend on the files, so its names are enough for most of them.
    for asked in ASKED if form == "one" else ASKED[: -len(TYPES)]:
        expected = TYPES[written] if asked in (None, "auto") else TYPES.get(asked, asked)
        model = ParallelEmbedder.from_pretrained(export, **({} if asked is None else {"dtype": asked}))
        assert {parameter.dtype for parameter in model.parameters()} == types_in(model.config) == {expected}, asked
        state = model.state_dict()
        for name in files.keys() & state.keys():
            assert torch.equal(state[name], files[name].to(expected)), name
    # What 'pdfx embed', 'evaluate' and 'report' use.
    assert load_export(export).dtype == TYPES[written]


@pytest.mark.parametrize("form", ["one", "shards", "adapter"])
def test_a_type_that_is_none_is_refused(write, form):
    for asked in ("float33", torch.int8, "nn"):
        with pytest.raises(ValueError, match="dtype must be a floating-point type of torch, its name or 'auto', not"):
            ParallelEmbedder.from_pretrained(write(form, torch.float32), dtype=asked)


def test_a_bfloat16_export_embeds_in_float32_as_its_rounded_weights_do(write):
    export = write("one", torch.bfloat16)
    model = ParallelEmbedder.from_pretrained(export, dtype="float32")
    plain = ParallelEmbedder.from_pretrained(export).float()
    assert torch.equal(model.embed(items("mixed")).paths, plain.embed(items("mixed")).paths)
