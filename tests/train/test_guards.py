"""What the guards of a run decide, from metrics alone."""

import math

import pytest
import torch

from pdfx.config import ObjectiveSection
from pdfx.config.train_sections import GuardsSection
from pdfx.errors import UserError
from pdfx.objective import Objective
from pdfx.train.hooks.guards import RollBack, StepGuards

NAN = math.nan
SOUND = {"loss": 2.0, "loss_path_0": 0.5, "loss_path_1": 0.5, "loss_fused": 1.0, "grad_norm": 1.0}
BROKEN = dict.fromkeys(SOUND, NAN)
ZERO = SOUND | {"loss_path_0": 0.0, "loss_path_1": 0.0, "loss_fused": 0.0}
"""The diversity term is what is left of the loss."""


def guards_of(state: dict | None = None, objective: dict | None = None, **sections) -> StepGuards:
    told = []
    settings = ObjectiveSection(**(objective or {}))
    guards = StepGuards(GuardsSection.model_validate(sections), Objective(settings, 2, 6, 0, []), told.append)
    guards.load_state_dict(state or {})
    guards.told = told
    return guards


def run(guards: StepGuards, outcomes: str) -> RollBack | None:
    """Steps 1, 2, ... as ``.`` (sound) or ``x`` (not finite); the last one's decision."""
    for step, outcome in enumerate(outcomes, start=1):
        decision = guards.check(step, BROKEN if outcome == "x" else SOUND)
    return decision


def test_single_steps_that_are_not_finite_are_skipped_counted_and_told():
    guards = guards_of(non_finite={"in_a_row": 2})
    assert run(guards, ".x.x") is None
    assert guards.figures() == {"skipped": 2, "roll_backs": 0}
    assert "step 2 is not finite" in guards.told[0]
    assert "2 steps skipped so far" in guards.told[1]


def test_a_gradient_alone_that_is_not_finite_is_told_as_one():
    guards = guards_of()
    guards.check(7, SOUND | {"loss": 1.5, "grad_norm": math.inf})
    assert "The gradient's norm in step 7 is not finite, though the loss was 1.5" in guards.told[0]


def test_skipped_steps_in_a_row_lead_back_to_before_the_first_of_them():
    assert run(guards_of(non_finite={"in_a_row": 3}), "x.xx") is None
    decision = run(guards_of(non_finite={"in_a_row": 3}), "x.xxx")
    assert decision.step == 3
    assert "3 steps in a row up to step 5" in decision.reason


def test_skipped_steps_within_a_window_lead_back_to_before_the_first_of_them():
    settings = {"in_a_row": 3, "in_window": 3, "window_steps": 5}
    assert run(guards_of(non_finite=settings), "x.x..x") is None
    assert run(guards_of(non_finite=settings), ".x.x.x").step == 2


def test_the_first_roll_back_repeats_the_samples_and_the_next_one_to_the_same_checkpoint_leaves_them_out():
    guards = guards_of()
    assert guards.take_back(100) is True
    assert guards.take_back(100) is False
    assert guards.take_back(200) is True


def test_a_run_stops_where_it_would_go_back_once_too_often_and_the_sentence_says_what_to_change():
    guards = guards_of(non_finite={"in_a_row": 2, "roll_backs": 1})
    assert run(guards, "xx") is not None
    guards.take_back(0)
    with pytest.raises(
        UserError, match=r"2 steps in a row up to step 2 were not finite.*after 1 roll-backs.*lower train.learning_rate"
    ):
        run(guards, "xx")


def test_the_action_stop_ends_the_run_at_the_first_one():
    with pytest.raises(UserError, match="The loss of step 1 is not finite"):
        run(guards_of(non_finite={"action": "stop"}), "x")


def test_counters_go_on_after_a_resume():
    first = guards_of(non_finite={"in_a_row": 3})
    run(first, ".xx")
    assert guards_of(first.state_dict(), non_finite={"in_a_row": 3}).check(4, BROKEN).step == 2


def test_a_loss_of_exactly_zero_stops_or_is_told_once():
    with pytest.raises(UserError, match="The contrastive loss of step 3 is exactly 0.*distinct targets"):
        guards_of().check(3, ZERO)
    guards = guards_of(zero_loss="warn")
    for step in (3, 4):
        guards.check(step, ZERO)
    assert len(guards.told) == 1


def test_only_terms_that_count_are_looked_at_for_a_loss_of_zero():
    guards_of().check(3, ZERO | {"loss_path_1": 0.1})
    with pytest.raises(UserError, match="exactly 0"):
        guards_of(objective={"path_weight": 0.0}).check(3, ZERO | {"loss_path_1": 0.1})
    guards_of(objective={"fused_weight": 0.0, "path_weight": 0.0, "maxsim_weight": 1.0}).check(
        3, ZERO | {"loss_maxsim": 0.1}
    )


@pytest.mark.parametrize("action", ["warn", "stop", "off"])
def test_paths_that_stay_alike_for_the_set_number_of_steps_are_told_once_or_stop_the_run(action):
    guards = guards_of(collapsed_paths={"cosine": 0.9, "steps": 3, "action": action})
    cosines = [0.95, 0.95, 0.8, 0.95, 0.95, NAN, 0.95]
    for step, cosine in enumerate(cosines[:-1], start=1):
        guards.check(step, SOUND | {"path_cosine_max": cosine})
    assert not guards.told
    if action == "stop":
        with pytest.raises(UserError, match="Two paths are nearly the same function.*raise objective.diversity_weight"):
            guards.check(7, SOUND | {"path_cosine_max": 0.95})
        return
    for step in (7, 8, 9, 10):
        guards.check(step, SOUND | {"path_cosine_max": 0.95})
    assert len(guards.told) == (action == "warn")


def test_paths_that_predict_each_other_are_collapsed_whatever_their_cosine():
    guards = guards_of(collapsed_paths={"r2": 0.9, "steps": 2})
    for step, r2 in enumerate([0.95, 0.85, 0.95], start=1):
        guards.check(step, SOUND | {"path_cosine_max": 0.1, "path_r2": r2})
    assert not guards.told
    guards.check(4, SOUND | {"path_cosine_max": 0.1, "path_r2": 0.95})
    assert len(guards.told) == 1 and "predicted more than 0.9 of another" in guards.told[0]


def test_paths_that_were_alike_for_longer_than_the_recipe_now_allows_stop_a_resumed_run():
    before = guards_of(collapsed_paths={"cosine": 0.9, "steps": 8})
    for step in range(1, 6):
        before.check(step, SOUND | {"path_cosine_max": 0.95})
    with pytest.raises(UserError, match="in the 6 steps up to step 6"):
        guards_of(before.state_dict(), collapsed_paths={"cosine": 0.9, "steps": 3, "action": "stop"}).check(
            6, SOUND | {"path_cosine_max": 0.95}
        )


@pytest.mark.parametrize("likelihood", [NAN, math.inf, 10.5])
def test_diverged_variational_networks_are_reset_and_not_for_ever(likelihood):
    networks = {"mutual_information": {"bound": "vclub", "predictor": "network"}}
    guards = guards_of(variational={"resets": 1}, non_finite={"in_a_row": 1}, objective=networks)
    before = guards.objective.diversity.networks.hidden_weight.detach().clone()
    # They are the reason for a loss that is not finite, so nothing needs to go back.
    assert guards.check(20, BROKEN | {"mi_negative_log_likelihood": likelihood}) is None
    assert not torch.equal(guards.objective.diversity.networks.hidden_weight, before)
    with pytest.raises(UserError, match="lower objective.mutual_information.learning_rate.*reset 1 times before"):
        guards.check(21, SOUND | {"mi_negative_log_likelihood": likelihood})


def test_networks_within_the_bound_stay_and_the_action_stop_ends_the_run():
    guards = guards_of(variational={"action": "stop"})
    guards.check(1, SOUND | {"mi_negative_log_likelihood": 9.5})
    with pytest.raises(UserError, match="The variational networks diverged in step 2"):
        guards.check(2, SOUND | {"mi_negative_log_likelihood": 10.5})


def test_a_window_that_could_never_fill_is_refused():
    with pytest.raises(ValueError, match="in_window is larger than window_steps"):
        GuardsSection.model_validate({"non_finite": {"in_window": 9, "window_steps": 8}})
