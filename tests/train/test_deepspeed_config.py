"""What the recipe owns and what the DeepSpeed file may say."""

import json
import os
import re

import pytest
from tiny_runs import ROOT

from pdfx.config import TrainSection
from pdfx.config.deepspeed_file import load_deepspeed_config, unused_keys
from pdfx.errors import UserError

SHIPPED = sorted((ROOT / "ds_configs").glob("*.json"))


def section(path, **values) -> TrainSection:
    return TrainSection(
        **{
            "output_dir": "run",
            "deepspeed": str(path),
            "per_device_train_batch_size": 4,
            "max_steps": 10,
            "max_grad_norm": 0.5,
        }
        | values
    )


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
    settings = load(
        tmp_path,
        {"gradient_clipping": "auto", "bf16": {"enabled": "auto"}, "train_micro_batch_size_per_gpu": 1},
        bf16=False,
    )
    assert settings["gradient_clipping"] == 0.5
    assert settings["bf16"]["enabled"] is False
    assert settings["gradient_accumulation_steps"] == 1
    assert (settings["train_micro_batch_size_per_gpu"], settings["train_batch_size"]) == (4, 12)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "eps": "auto"}}},
            "remove 'optimizer'; the recipe's train section sets it, and its lr differs",
        ),
        ({"optimizer": {"type": "Lion", "params": {"lr": "auto"}}}, "its type 'Lion' differs"),
        ({"optimiser": {"type": "AdamW"}}, "'optimiser' has no effect in pdfx; remove it"),
        ({"curriculum_learning": {"enabled": True}}, "'curriculum_learning' has no effect in pdfx"),
        ({"zero_optimization": {"stage": 2, "overlap_com": True}}, "is not what DeepSpeed takes: .*overlap_com"),
        ({"zero_optimization": {"stage": 2, "overlap_comm": "auto"}}, "'zero_optimization.overlap_comm' is 'auto'"),
        (
            {"train_micro_batch_size_per_gpu": 8},
            "'train_micro_batch_size_per_gpu' is 8, but train.per_device_train_batch_size sets it to 4",
        ),
        ({"scheduler": {"type": "WarmupLR"}}, "remove 'scheduler'"),
        ({"fp16": {"enabled": True}}, "remove 'fp16'"),
        ({"bf16": {"enabled": True}}, "'bf16.enabled' is True, but train.bf16 sets it to False"),
        (
            {"bf16": {"check_grad_overflow": False}},
            "'bf16.check_grad_overflow' is False, but pdfx, which skips such updates, sets it to True",
        ),
        ({"gradient_clipping": 1.0}, "'gradient_clipping' is 1.0, but train.max_grad_norm sets it to 0.5"),
        ({"gradient_accumulation_steps": 8}, "'gradient_accumulation_steps' is 8"),
        ({"train_batch_size": 64}, "'train_batch_size' is 64"),
        ({"zero_optimization": {"stage": 0}}, "ZeRO stage 1, 2 or 3"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            "'zero_optimization.offload_param.device' is 'nvme'",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.3}}},
            "'zero_optimization.offload_optimizer.ratio' is 0.3",
        ),
        (
            {"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}},
            "'zero_optimization.reduce_bucket_size' is 'auto'",
        ),
    ],
)
def test_a_file_that_contradicts_the_recipe_is_refused_with_the_key_and_the_cure(tmp_path, settings, sentence):
    with pytest.raises(UserError) as caught:
        load(tmp_path, settings, bf16=False)
    assert re.search(re.sub(r"(?<!\.)([()*])", r"\\\1", sentence), str(caught.value))
    assert str(tmp_path / "file.json") in str(caught.value)


def test_a_missing_or_broken_file_is_told(tmp_path):
    with pytest.raises(UserError, match="which is not a file that can be read"):
        load_deepspeed_config(tmp_path / "none.json", section(tmp_path), 1)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        load_deepspeed_config(tmp_path / "broken.json", section(tmp_path), 1)
    (tmp_path / "twice.json").write_text('{"gradient_clipping": 1, "gradient_clipping": 0.5}')
    with pytest.raises(UserError, match="is not valid JSON: Duplicate keys.*gradient_clipping"):
        load_deepspeed_config(tmp_path / "twice.json", section(tmp_path), 1)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UserError, match="pipe.json is not valid JSON: it is not a regular file"):
        load_deepspeed_config(tmp_path / "pipe.json", section(tmp_path), 1)


USUAL = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
    "fp16": {
        "enabled": "auto",
        "loss_scale": 0,
        "loss_scale_window": 1000,
        "initial_scale_power": 16,
        "hysteresis": 2,
        "min_loss_scale": 1,
    },
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {
            "warmup_min_lr": "auto",
            "warmup_max_lr": "auto",
            "warmup_num_steps": "auto",
            "total_num_steps": "auto",
        },
    },
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": False,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "steps_per_print": 2000,
    "wall_clock_breakdown": False,
}
"""What users of other trainers bring: every key that transformers' Trainer fills in."""


def test_auto_is_filled_in_by_the_recipe_and_the_models_hidden_size(tmp_path):
    from deepspeed.runtime.config import DeepSpeedConfig

    (tmp_path / "file.json").write_text(json.dumps(USUAL))
    settings = load_deepspeed_config(tmp_path / "file.json", section(tmp_path, warmup_steps=3), 1, lambda: 100)
    assert "auto" not in json.dumps(settings) and not {"optimizer", "scheduler", "fp16"} & settings.keys()
    ours = DeepSpeedConfig(settings)
    assert (
        ours.zero_config.reduce_bucket_size,
        ours.zero_config.prefetch_bucket_size,
        ours.zero_config.param_persistence_threshold,
    ) == (10_000, 9000, 1000)
    assert (ours.gradient_clipping, ours.bfloat16_config.enabled, ours.train_micro_batch_size_per_gpu) == (0.5, True, 4)
    (sentence,) = unused_keys(tmp_path / "file.json")
    assert (
        "'zero_optimization.stage3_gather_16bit_weights_on_model_save' has no effect: models come from 'pdfx convert'"
        in sentence
    )
    assert all(unused_keys(path) == [] for path in SHIPPED)


def test_one_sentence_names_every_key_that_is_at_odds(tmp_path):
    wrong = {
        "gradient_clipping": 9,
        "elasticity": {},
        "fp16": {"enabled": True},
        "train_batch_size": 5,
        "scheduler": {"type": "WarmupLR", "params": {}},
    }
    with pytest.raises(UserError) as caught:
        load(tmp_path, wrong | {"optimizer": {"type": "AdamW", "params": {"lr": 3}}})
    assert all(f"'{key}'" in str(caught.value) for key in [*wrong, "optimizer"]) and "\n" not in str(caught.value)
