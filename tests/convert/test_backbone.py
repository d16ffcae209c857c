"""A backbone's weights are read from its files under the names that transformers gives them, whatever the files call
them."""

import pytest
import torch
from tiny_models import FAMILIES, tiny_backbone
from transformers import AutoConfig, AutoModel

from pdfx.config import ModelSection
from pdfx.convert.backbone import open_backbone
from pdfx.errors import UserError
from pdfx.host.tensor_files import TensorFile


def without_weights(path):
    with torch.device("meta"):
        return AutoModel.from_config(AutoConfig.from_pretrained(path))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["one file", "several files", "pickled"])
def test_every_weight_is_the_one_that_transformers_loads(tmp_path, family, kind):
    path = tiny_backbone(family, tmp_path / "backbone")
    whole = AutoModel.from_pretrained(path)
    if kind != "one file":
        (path / "model.safetensors").unlink()
    if kind == "several files":
        whole.save_pretrained(path, max_shard_size="50KB")
        assert len(list(path.glob("*.safetensors"))) > 1
    if kind == "pickled":
        torch.save(whole.state_dict(), path / "pytorch_model.bin")
    weights = open_backbone(ModelSection(path=str(path)), without_weights(path))
    owners = {type(read.func.__self__) for read in weights.values()}
    assert owners == {torch.Tensor if kind == "pickled" else TensorFile}
    expected = whole.state_dict()
    assert weights.keys() == set(expected)
    for name, value in expected.items():
        assert torch.equal(weights[name](0, value.numel()), value.reshape(-1)), name
        assert torch.equal(weights[name](value.numel() // 2, 1), value.reshape(-1)[value.numel() // 2 :][:1])


def test_a_backbone_without_weights_is_told_in_a_sentence(tmp_path):
    path = tiny_backbone("qwen2_vl", tmp_path / "backbone")
    backbone = without_weights(path)
    (path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="The weights of model.path '.*backbone' cannot be read"):
        open_backbone(ModelSection(path=str(path)), backbone)
