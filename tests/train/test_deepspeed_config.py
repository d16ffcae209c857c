"""What the recipe owns and what the DeepSpeed file may say."""

import json

import pytest
from tiny_runs import ROOT

from pdfx.config import TrainSection
from pdfx.errors import UserError
from pdfx.train.engine import load_deepspeed_config

SHIPPED = sorted((ROOT / "ds_configs").glob("*.json"))


def section(path, **values) -> TrainSection:
    return TrainSection(**{"output_dir": "run", "deepspeed": str(path), "per_device_train_batch_size": 4, "max_steps": 10, "max_grad_norm": 0.5} | values)


def load(tmp_path, settings, **values) -> dict:
    path = tmp_path / "file.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}} | settings))
    return load_deepspeed_config(path, section(path, **values), world_size=3)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_is_valid_for_any_deepspeed_program_and_for_ours(path):
    from deepspeed.runtime.config import DeepSpeedConfig

    settings = json.loads(path.read_text())
    assert DeepSpeedConfig(dict(settings)).zero_optimization_stage == int(path.stem[4])
    assert "auto" not in path.read_text()
    ours = DeepSpeedConfig(load_deepspeed_config(path, section(path, bf16=True), world_size=1))
    assert ours.bfloat16_config.enabled
    assert ours.gradient_clipping == 0.5


def test_precision_clipping_and_batch_sizes_come_from_the_recipe(tmp_path):
    settings = load(tmp_path, {"gradient_clipping": "auto", "bf16": {"enabled": "auto"}, "train_micro_batch_size_per_gpu": 1}, bf16=False)
    assert settings["gradient_clipping"] == 0.5
    assert settings["bf16"]["enabled"] is False
    assert settings["gradient_accumulation_steps"] == 1
    assert (settings["train_micro_batch_size_per_gpu"], settings["train_batch_size"]) == (4, 12)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"optimizer": {"type": "AdamW"}}, "remove 'optimizer'"),
        ({"scheduler": {"type": "WarmupLR"}}, "remove 'scheduler'"),
        ({"fp16": {"enabled": True}}, "remove 'fp16'"),
        ({"bf16": {"enabled": True}}, "'bf16.enabled' is True, but train.bf16 sets it to False"),
        ({"bf16": {"check_grad_overflow": False}}, "'bf16.check_grad_overflow' is False, but pdfx, which skips such updates, sets it to True"),
        ({"gradient_clipping": 1.0}, "'gradient_clipping' is 1.0, but train.max_grad_norm sets it to 0.5"),
        ({"gradient_accumulation_steps": 8}, "'gradient_accumulation_steps' is 8"),
        ({"train_batch_size": 64}, "'train_batch_size' is 64"),
        ({"zero_optimization": {"stage": 0}}, "ZeRO stage 1, 2 or 3"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "'zero_optimization.offload_param.device' is 'nvme'"),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.3}}}, "'zero_optimization.offload_optimizer.ratio' is 0.3"),
        ({"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}}, "'zero_optimization.reduce_bucket_size' is 'auto'"),
    ],
)
def test_a_file_that_contradicts_the_recipe_is_refused_with_the_key_and_the_cure(tmp_path, settings, sentence):
    with pytest.raises(UserError) as caught:
        load(tmp_path, settings, bf16=False)
    assert sentence in str(caught.value)
    assert str(tmp_path / "file.json") in str(caught.value)


def test_a_missing_or_broken_file_is_told(tmp_path):
    with pytest.raises(UserError, match="which is no file"):
        load_deepspeed_config(tmp_path / "none.json", section(tmp_path), 1)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        load_deepspeed_config(tmp_path / "broken.json", section(tmp_path), 1)
