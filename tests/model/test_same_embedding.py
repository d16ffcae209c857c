"""One input embeds alike however it is batched."""

import pytest
import torch
from tiny_models import FAMILIES, items

# Rounding of float32 sums of a few hundred terms, well below it for two tiny layers; the guarantee asked for is 1e-5.
TOLERANCE = 1e-5


def pad(inputs: dict, side: str, extra: int) -> dict:
    """The same inputs with all padding, and ``extra`` places more, on one side."""
    keep = inputs["attention_mask"].bool()
    rows, width = keep.shape
    result = dict(inputs)
    for name, tensor in inputs.items():
        if tensor.shape != keep.shape:
            continue
        # Padding holds a real token's number (the end token), so that a leak through the mask would change the
        # embedding.
        padded = torch.full((rows, width + extra), 0 if name != "input_ids" else int(tensor[0, keep[0]][-1]))
        for row in range(rows):
            values = tensor[row, keep[row]]
            if side == "left":
                padded[row, -len(values) :] = values
            else:
                padded[row, : len(values)] = values
        result[name] = padded
    return result


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("kind", ["text", "image", "mixed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_input_embeds_alike_alone_padded_left_padded_right_and_packed(embedder_of, family, kind, pooling):
    embedder = embedder_of(family, pooling=pooling)
    batch = items(kind, 5)
    packed, _ = embedder.processor(batch, ["query"] * 5)
    with torch.no_grad():
        alone = torch.cat([embedder(embedder.processor([item], ["query"])[0]).paths for item in batch])
        for name, inputs in {
            "packed": packed,
            "left": pad(packed, "left", 3),
            "right": pad(packed, "right", 3),
        }.items():
            error = (embedder(inputs).paths - alone).abs().max().item()
            assert error < TOLERANCE, f"{name}: {error}"
    # The comparison means something only where different inputs and paths differ by far more than the tolerance.
    assert (alone[0] - alone[1]).abs().max() > 100 * TOLERANCE
    assert (alone[:, 0] - alone[:, 1]).abs().amax(-1).min() > 100 * TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_one_path_alone_equals_that_path_among_all(embedder_of, family):
    embedder = embedder_of(family)
    inputs, _ = embedder.processor(items("mixed", 4), ["query"] * 4)
    with torch.no_grad():
        every, some = embedder(inputs).paths, embedder(inputs, paths=[2, 0]).paths
    torch.testing.assert_close(some, every[:, [2, 0]], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stand_in_image_changes_nothing_and_reaches_the_vision_tower_in_both_passes(embedder_of, family):
    embedder = embedder_of(family)
    inputs, _ = embedder.processor(items("text", 3), ["query"] * 3)
    plain = embedder(inputs).paths
    embedder.vision_agreement = lambda need: True
    joined = embedder(inputs).paths
    torch.testing.assert_close(joined, plain, atol=TOLERANCE, rtol=0)
    joined.square().sum().backward()
    gradients = [parameter.grad for parameter in embedder.family.vision_of(embedder.backbone).parameters()]
    assert any(gradient is not None for gradient in gradients)
    assert all(gradient is None or not gradient.any() for gradient in gradients)
