"""The cost model against what torch counts while the real model runs.

Torch counts whole score matrices, padding of buckets included, and no lookups; the formulas count visible pairs only,
and a gradient of inputs also for the first modules, which need none. On these shapes attention and first modules are a
few per cent each: 10 % holds both, and no missing factor 2 or K fits in it.
"""

import pytest
import torch
from make_model import make_model
from tiny_models import FAMILIES, items, tiny_backbone
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pdfx.config import LoraSection
from pdfx.data.batch import Batch, Chunk
from pdfx.embedder.lora import apply_lora
from pdfx.model import ParallelEmbedder, cache_vision_tower
from pdfx.telemetry.flops import StepCost, padding_share
from pdfx.telemetry.timing import Phases

TOLERANCE = 0.10


@pytest.fixture(scope="module")
def backbone_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    return lambda family: tiny_backbone(family, folder / family, layers=3, hidden=128)


def counted(embedder, inputs) -> tuple[int, int]:
    """Of a forward pass, and of it with its backward pass if there is a gradient."""
    # Only the unfused kernel is made of products that torch counts on the CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = embedder(inputs).paths.sum()
        forward = counter.get_total_flops()
        if loss.requires_grad:
            loss.backward()
    return forward, counter.get_total_flops()


@pytest.mark.parametrize("trained", ["all", "frozen vision", "lora"])
@pytest.mark.parametrize("first_layer", [0, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_flops_of_a_step_are_those_that_torch_counts(backbone_of, family, first_layer, trained):
    embedder = ParallelEmbedder.from_backbone(
        backbone_of(family), paths=3, prefix_length=4, prefix_layers=first_layer
    ).train()
    vision = embedder.family.vision_of(embedder.backbone)
    projector = embedder.backbone.get_submodule(embedder.family.projector)
    if trained != "all":
        vision.requires_grad_(False)
        projector.requires_grad_(False)
    if trained == "lora":
        for parameter in embedder.decoder.parameters():
            parameter.requires_grad_(False)
        apply_lora(embedder, LoraSection())
        for name, parameter in embedder.named_parameters():
            parameter.requires_grad_("lora_" in name or "prefix" in name)
    inputs, _ = embedder.processor(items("mixed", 6), ["query"] * 6)
    forward, backward = StepCost(embedder).of_pass(inputs, 3)
    assert (forward, forward + backward) == pytest.approx(counted(embedder, inputs), rel=TOLERANCE)


def test_a_second_forward_is_counted_where_there_are_several_passes(backbone_of):
    embedder = ParallelEmbedder.from_backbone(backbone_of("qwen2_vl"), paths=3, prefix_length=4).train()
    inputs, _ = embedder.processor(items("mixed", 4), ["query"] * 4)
    forward, backward = StepCost(embedder).of_pass(inputs, 3)
    none = torch.empty(2, 0, dtype=torch.long)
    chunk = Chunk(inputs, torch.arange(4))

    def batch(count):
        return Batch([chunk] * count, 2, 0, torch.arange(2), none, torch.ones(2, dtype=torch.bool), none.bool())

    assert StepCost(embedder).of(batch(1)) == forward + backward
    assert StepCost(embedder).of(batch(2)) == 2 * (2 * forward + backward)
    by_path = StepCost(embedder, chunk_paths=1)
    one_forward, one_backward = by_path.of_pass(inputs, 1)
    assert by_path.of(batch(1)) == 3 * (2 * one_forward + one_backward)


def test_a_cached_tower_counts_nothing(backbone_of):
    embedder = ParallelEmbedder.from_backbone(backbone_of("qwen2_vl"), paths=2, prefix_length=4).train()
    embedder.family.vision_of(embedder.backbone).requires_grad_(False)
    inputs, _ = embedder.processor(items("image", 2), ["query"] * 2)
    seen, cached = (StepCost(embedder, cached=cached).of_pass(inputs, 2) for cached in (False, True))
    assert seen[0] > cached[0] and seen[1] == cached[1]


def test_of_a_tower_that_is_no_plain_transformer_only_the_projector_counts(tmp_path):
    make_model(tmp_path)
    embedder = ParallelEmbedder.from_backbone(str(tmp_path), paths=2, prefix_length=4).train()
    embedder.family.vision_of(embedder.backbone).requires_grad_(False)
    inputs, _ = embedder.processor(items("image", 4), ["query"] * 4)
    run_each_time = StepCost(embedder).of_pass(inputs, 2)
    cache_vision_tower(embedder, gigabytes=1)
    with torch.no_grad():
        embedder(inputs)
        assert run_each_time[0] == pytest.approx(counted(embedder, inputs)[0], rel=TOLERANCE)
    assert StepCost(embedder, cached=True).of_pass(inputs, 2) == run_each_time


def test_the_padding_share_is_that_of_the_places_in_buckets(backbone_of):
    embedder = ParallelEmbedder.from_backbone(backbone_of("qwen2_vl"), paths=2, prefix_length=4)
    none = torch.empty(1, 0, dtype=torch.long)

    def share(*lengths: int) -> float:
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        chunks = [Chunk({"attention_mask": mask}, torch.arange(len(lengths)))]
        return padding_share(
            Batch(chunks, 1, 0, torch.zeros(1), none, torch.ones(1).bool(), none.bool()), embedder, torch.device("cpu")
        )

    assert share(10, 10) == 0
    # 8 and 10 tokens share a bucket of two rows of 10; 2 is alone.
    assert share(10, 2, 8) == pytest.approx(2 / 22)


def test_a_phase_within_another_counts_for_itself_alone(monkeypatch):
    clock = iter([1.0, 2.0, 5.0, 9.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    phases = Phases(torch.device("cpu"))
    with phases("backward"), phases("embed"):
        pass
    assert phases.take() == {"backward": 1.0 + 4.0, "embed": 3.0}
    assert phases.take() == {}
