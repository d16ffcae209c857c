"""Work is shared between paths, recomputed only where asked, and cached only where exact."""

import pytest
import torch
from tiny_models import FAMILIES, items

from pdfx.model import cache_vision_tower, modeling
from pdfx.model.packing import packed_decoder


def gradients(embedder, inputs) -> dict[str, torch.Tensor]:
    embedder.zero_grad()
    torch.manual_seed(0)
    output = embedder(inputs)
    weights = torch.randn(output.paths.shape, generator=torch.Generator().manual_seed(1), dtype=output.paths.dtype)
    (output.paths * weights).sum().backward()
    return {
        name: parameter.grad.clone() for name, parameter in embedder.named_parameters() if parameter.grad is not None
    }


@pytest.mark.parametrize("frozen_embedding", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_activation_checkpointing_leaves_the_gradients_as_they_are(embedder_of, family, frozen_embedding):
    embedder = embedder_of(family).train()
    embedder.backbone.get_input_embeddings().requires_grad_(not frozen_embedding)
    inputs, _ = embedder.processor(items("mixed", 3), ["query"] * 3)
    plain = gradients(embedder, inputs)
    embedder.backbone.activation_checkpointing_enable({"use_reentrant": False})
    checkpointed = gradients(embedder, inputs)
    assert plain.keys() == checkpointed.keys()
    assert any("prefix" in name for name in plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(
            checkpointed[name], gradient, atol=1e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("paths", [1, 2, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_vision_tower_runs_once_per_image_whatever_the_number_of_paths(embedder_of, family, paths):
    embedder = embedder_of(family, paths=paths)
    batch = items("mixed", 5)
    inputs, _ = embedder.processor(batch, ["query"] * 5)
    seen = []
    tower = embedder.family.vision_of(embedder.backbone)
    tower.register_forward_pre_hook(lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    with torch.no_grad():
        embedder(inputs)
    assert len(seen) == 1
    images = sum(len(item["images"]) for item in batch)
    if family == "qwen2_vl":
        assert len(seen[0][1]["grid_thw"]) == images
    else:
        crops = seen[0][0][0].shape[0]
        # Every picture has its whole view and at least one tile; padded crops are not run.
        assert images * 2 <= crops < inputs["pixel_values"].shape[:2].numel()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cached_frozen_tower_gives_the_same_embeddings_without_running_again(embedder_of, family):
    embedder = embedder_of(family)
    vision = embedder.family.vision_of(embedder.backbone).requires_grad_(False)
    batch = items("mixed", 5)
    first, _ = embedder.processor(batch[:3], ["query"] * 3)
    every, _ = embedder.processor(batch, ["query"] * 5)
    with torch.no_grad():
        expected = [embedder(first).paths, embedder(every).paths]
    cache = cache_vision_tower(embedder, gigabytes=1)
    assert not any("vision_tower" in name or "visual" in name for name in embedder.state_dict())
    runs = []
    vision.register_forward_pre_hook(lambda module, args: runs.append(1))
    with torch.no_grad():
        for inputs, reference in zip([first, every, every], [*expected, expected[1]], strict=True):
            torch.testing.assert_close(embedder(inputs).paths, reference, atol=1e-6, rtol=0)
    assert len(runs) == cache.computed > 0
    assert cache.found > cache.computed


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cached_output_has_the_same_bits_whatever_was_missing_beside_it(embedder_of, family):
    batch = items("mixed", 5)
    embedder = embedder_of(family)
    embedder.family.vision_of(embedder.backbone).requires_grad_(False)
    entries = []
    tower = embedder.family.vision_of(embedder.backbone)
    for sizes in ((5,), (2, 5), (4, 3, 5)):
        embedder.backbone.set_submodule(embedder.family.vision, tower)
        cache = cache_vision_tower(embedder, gigabytes=1)
        for size in sizes:
            embedder.embed(batch[:size], batch_size=size)
        entries.append(cache.entries)
    for other in entries[1:]:
        assert other.keys() == entries[0].keys()
        for key, parts in entries[0].items():
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(parts, other[key], strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_gives_the_same_bits_to_a_later_tower_and_nothing_to_another_one(embedder_of, family, tmp_path):
    batch, path = items("mixed", 5), tmp_path / "folder" / "outputs"
    found = []
    for change in (0.0, 0.0, 0.5):
        embedder = embedder_of(family)
        tower = embedder.family.vision_of(embedder.backbone).requires_grad_(False)
        with torch.no_grad():
            next(iter(tower.parameters())).add_(change)
        cache = cache_vision_tower(embedder, gigabytes=1, path=path)
        output = embedder.embed(batch, batch_size=5).paths
        found.append((cache.computed, output))
    (first, expected), (second, again), (third, other) = found
    assert first == third > 0 and second == 0
    assert torch.equal(expected, again) and not torch.equal(expected, other)


def test_a_file_that_is_something_else_is_refused_by_name(embedder_of, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("These are not a tower's outputs. " * 100)
    embedder = embedder_of("llava_next")
    embedder.family.vision_of(embedder.backbone).requires_grad_(False)
    with pytest.raises(ValueError, match="notes.txt cannot be used: file is not a database"):
        cache_vision_tower(embedder, gigabytes=1, path=path)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_keeps_within_its_bytes_and_stays_right(embedder_of, family):
    embedder = embedder_of(family)
    embedder.family.vision_of(embedder.backbone).requires_grad_(False)
    inputs, _ = embedder.processor(items("image", 5), ["query"] * 5)
    with torch.no_grad():
        expected = embedder(inputs).paths
        cache = cache_vision_tower(embedder, gigabytes=3e-6)
        for _ in range(2):
            torch.testing.assert_close(embedder(inputs).paths, expected, atol=1e-6, rtol=0)
    assert 0 < cache.bytes <= 3000 or len(cache.entries) == 1


def test_a_trained_tower_is_never_cached(embedder_of):
    with pytest.raises(ValueError, match="vision tower is trained"):
        cache_vision_tower(embedder_of("llava_next"), gigabytes=1)


def test_a_frozen_tower_stays_in_evaluation_mode(embedder_of):
    embedder = embedder_of("llava_next")
    tower = embedder.family.vision_of(embedder.backbone)
    assert embedder.train() and tower.training
    tower.requires_grad_(False)
    assert embedder.train().training and not tower.training


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_below_the_first_prefix_run_once_for_all_paths_and_change_nothing(
    embedder_of, family, checkpointing, monkeypatch
):
    # Zero prefixes in layer 0 would still draw attention to themselves, so the unshared computation is that of K rows
    # from the door on.
    embedder = embedder_of(family, prefix_layers=[1]).train()
    if checkpointing:
        embedder.backbone.activation_checkpointing_enable()
    inputs, _ = embedder.processor(items("mixed", 3), ["query"] * 3)
    rows = []
    for layer in embedder.decoder.layers:
        layer.mlp.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[1]))
    shared = gradients(embedder, inputs)
    shared_rows = rows[:2]
    monkeypatch.setattr(
        modeling, "packed_decoder", lambda mask, paths, share, attention: packed_decoder(mask, paths, False, attention)
    )
    rows.clear()
    unshared = gradients(embedder, inputs)
    assert shared_rows[1] == 3 * shared_rows[0] and rows[:2] == [shared_rows[1]] * 2
    for name, gradient in unshared.items():
        # Sums over paths are taken in another order.
        torch.testing.assert_close(
            shared[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
