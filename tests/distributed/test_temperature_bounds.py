"""A learned temperature stays within CLIP's bounds, and leaves a bound as soon as its gradient says so."""

import pytest
from pydantic import ValidationError
from tiny_runs import tiny_config

from pdfx.config import ObjectiveSection


def temperatures(config) -> list[float]:
    """In a rank: the temperature before each of 40 steps; 12 push it down, 28 up."""
    from pdfx.config.deepspeed_file import load_deepspeed_config
    from pdfx.distributed.world import join_world
    from pdfx.embedder.build import build_embedder
    from pdfx.train.engine import TrainingModule, bound_temperature, sharded_loading, start_engine

    world = join_world()
    settings = load_deepspeed_config(config.train.deepspeed, config.train, world.size)
    with sharded_loading(settings) as gathered:
        embedder = build_embedder(config, gathered=gathered)
    inputs, _ = embedder.processor([{"text": "a", "images": []}], ["query"])
    engine = start_engine(TrainingModule(embedder, config.objective.temperature, learned=True), config, settings)
    seen = []
    for step in range(40):
        paths, log_temperature, _ = engine(inputs)
        seen.append(log_temperature.exp().item())
        engine.backward(log_temperature * (1 if step < 12 else -1) + 0 * paths.sum())
        engine.step()
        bound_temperature(engine)
    engine.destroy()
    return seen


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3"])
def test_it_stops_at_each_bound_and_leaves_it_again(tmp_path, two_ranks, stage):
    config = tiny_config(
        tmp_path,
        "qwen2_vl",
        stage,
        train={"learning_rate": 0.4},
        objective={"temperature": 0.02, "learn_temperature": True},
    )
    first, second = two_ranks.run(temperatures, config, timeout=100)
    assert first == second
    assert all(0.01 - 1e-6 <= value <= 1 + 1e-6 for value in first)
    low, high = (
        [step for step, value in enumerate(first) if value == pytest.approx(bound, rel=1e-5)] for bound in (0.01, 1)
    )
    # Some steps at the lower bound, from which only Adam's momentum keeps it for a while; then up to the upper one.
    assert 12 in low and low[-1] < 25 and high and high[-1] == 39
    assert all(step in low or step in high or first[step] > first[step - 1] for step in range(low[-1] + 1, 40))


def test_a_start_beyond_the_bounds_is_refused_where_it_is_learned():
    assert ObjectiveSection(temperature=0.005).temperature == 0.005
    for temperature in (0.005, 1.5):
        with pytest.raises(ValidationError, match="temperature must be from 0.01 to 1 if it is learned"):
            ObjectiveSection(temperature=temperature, learn_temperature=True)
