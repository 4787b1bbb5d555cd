"""Recipes of policies, and their registration by projects."""

from __future__ import annotations

import pytest

from glipv2_d2.engine.finetune import recipes
from glipv2_d2.engine.finetune.recipes import model_recipe, recipe, register_recipe


@pytest.fixture(autouse=True)
def restored_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "RECIPES", dict(recipes.RECIPES))


def test_a_project_can_register_a_recipe() -> None:
    register_recipe("my_policy", {"SOLVER.BASE_LR": 0.5})
    registered = recipe("my_policy", few_shot=True)
    assert (registered["SOLVER.BASE_LR"], registered["MODEL.TUNING.NAME"]) == (0.5, "my_policy")
    assert registered["SOLVER.BEST_METRIC"] == recipes.COMMON["SOLVER.BEST_METRIC"]


def test_a_second_recipe_for_a_policy_is_an_error() -> None:
    with pytest.raises(ValueError, match="'full' already has a recipe"):
        register_recipe("full", {})


def test_a_policy_without_a_recipe_gets_that_of_full() -> None:
    without_name = {k: v for k, v in recipe("full", few_shot=False).items() if "TUNING" not in k}
    other = recipe("no_such_policy", few_shot=False)
    assert other == {**without_name, "MODEL.TUNING.NAME": "no_such_policy"}


@pytest.mark.parametrize("policy", ["mask_heads", "text_heads"])
def test_the_recipe_of_a_model_for_boxes_is_not_for_other_heads(policy: str) -> None:
    assert model_recipe(policy, ["MODEL.MASK_ON", False, "SOLVER.BASE_LR", 0.1]) == {}
