"""Which parameters each policy trains, measured with real training steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from helpers import tuning
from helpers.masks import MASKS
from helpers.models import tiny_model
from helpers.text_tasks import TEXT_TASKS, caption_input, question_input
from helpers.tuning import (
    CLASSES,
    build_tuned_model,
    changed_tensors,
    detection_inputs,
    detections,
    train_steps,
)
from torch import nn

from glipv2_d2.engine.finetune import policies
from glipv2_d2.engine.finetune.policies import (
    TUNING_REGISTRY,
    FrozenModulesEvalHook,
    frozen_modules,
)
from glipv2_d2.engine.parameter_prefixes import TEXT_HEADS

POLICIES = (
    *("class_prompt", "full", "linear_probe", "lora", "mask_heads", "prompt"),
    *("text_heads", "text_only"),
)
# Config keys of the modules that a policy needs.
MODULES = {
    "mask_heads": MASKS,
    "text_heads": TEXT_TASKS,
    "class_prompt": ("MODEL.TUNING.PROMPT.CLASS_NAMES", CLASSES),
}
LORA_TARGETS = ("qkv", "query", "value", "language_key", "language_value", "language_out")


def tuned_cfg(base: str, policy: str, *opts: Any) -> CfgNode:
    return tuning.tuned_cfg(base, policy, *MODULES.get(policy, ()), *opts)


def test_every_policy_has_a_test() -> None:
    registered = {name for name, obj in TUNING_REGISTRY if obj.__module__ == policies.__name__}
    assert registered == set(POLICIES)


def test_full_trains_every_part(base: str) -> None:
    changed, _ = changed_tensors(tuned_cfg(base, "full"))
    for part in ("backbone.bottom_up", "backbone.fpn", "language_backbone", "fused_head"):
        assert any(name.startswith(part) for name in changed), part
    assert {"proposal_generator.bbox_pred.weight", "proposal_generator.region_word.bias"} <= changed


def test_full_keeps_what_the_config_freezes(base: str) -> None:
    changed, names = changed_tensors(tuned_cfg(base, "full", "MODEL.SWIN.FROZEN_STAGES", 0))
    patch_embedding = {n for n in names if n.startswith("backbone.bottom_up.patch_embed.proj")}
    assert patch_embedding and changed.isdisjoint(patch_embedding)


def test_linear_probe_trains_all_parameters_of_the_last_layers_only(base: str) -> None:
    changed, _ = changed_tensors(tuned_cfg(base, "linear_probe"))
    head = "proposal_generator."
    assert changed == {
        *(
            f"{head}{layer}.{kind}"
            for layer in ("bbox_pred", "centerness")
            for kind in ("weight", "bias")
        ),
        *(f"{head}region_word.projection.{kind}" for kind in ("weight", "bias")),
        *(f"{head}region_word.{name}" for name in ("log_scale", "bias_language", "bias")),
    }


def test_text_only_trains_the_whole_text_encoder_only(base: str) -> None:
    changed, names = changed_tensors(tuned_cfg(base, "text_only"))
    assert changed == {name for name in names if name.startswith("language_backbone.")}


def test_prompt_trains_the_table_only(base: str) -> None:
    changed, _ = changed_tensors(tuned_cfg(base, "prompt"))
    assert changed == {"language_backbone.table"}


def test_class_prompt_trains_the_vectors_of_names_only(base: str) -> None:
    changed, _ = changed_tensors(tuned_cfg(base, "class_prompt"))
    assert changed == {"language_backbone.table"}


def test_lora_trains_all_adapters_only(base: str) -> None:
    changed, names = changed_tensors(tuned_cfg(base, "lora"))
    assert changed == {name for name in names if ".lora_" in name}


def test_each_default_target_of_lora_gets_adapters(base: str) -> None:
    state = build_tuned_model(tuned_cfg(base, "lora")).state_dict()
    adapted = {name.split(".")[-4] for name in state if ".lora_A." in name}
    assert adapted == set(LORA_TARGETS)


def test_the_text_encoder_gets_no_adapters(base: str) -> None:
    model = build_tuned_model(tuned_cfg(base, "lora"))
    names = [name for name, _ in model.language_backbone.named_parameters()]
    assert not any("lora_" in name for name in names)


def test_mask_heads_trains_all_mask_heads_only(base: str) -> None:
    changed, names = changed_tensors(tuned_cfg(base, "mask_heads"))
    assert changed == {name for name in names if name.startswith("roi_heads.")}
    assert len(changed) > 0


def test_text_heads_trains_all_text_heads_only(base: str) -> None:
    inputs = [question_input(), caption_input()]
    changed, names = changed_tensors(tuned_cfg(base, "text_heads"), inputs)
    assert all(name.startswith(TEXT_HEADS) for name in changed)
    for head in TEXT_HEADS:
        assert any(name.startswith(head) for name in changed), head
    # A constant added to all logits does not change a softmax.
    unchanged = {name for name in names if name.startswith(TEXT_HEADS)} - changed
    assert all(name.endswith(("attention.bias", "key.bias")) for name in unchanged)


def test_mask_heads_disables_word_masking(base: str) -> None:
    model = build_tuned_model(tuned_cfg(base, "mask_heads", "MODEL.MLM.WEIGHT", 1.0)).train()
    assert set(model(detection_inputs())) == {"loss_mask"}


def test_mask_heads_needs_a_model_with_masks(base: str) -> None:
    with pytest.raises(ValueError, match=r"MODEL\.MASK_ON"):
        build_tuned_model(tuned_cfg(base, "mask_heads", "MODEL.MASK_ON", False))


@pytest.mark.parametrize("policy", POLICIES)
def test_detections_before_training_are_those_of_the_base(base: str, policy: str) -> None:
    opts = ("MODEL.GROUNDING.SCORE_THRESH", 0.0)
    tuned = build_tuned_model(tuned_cfg(base, policy, *opts))
    for found, expected in zip(detections(tuned), detections(tiny_model(*opts)), strict=True):
        assert torch.equal(found, expected)


def test_a_prompt_may_be_longer_than_the_prompt_table(base: str) -> None:
    cfg = tuned_cfg(base, "prompt", "MODEL.TUNING.PROMPT.NUM_ROWS", 2)
    train_steps(cfg, model := build_tuned_model(cfg), detection_inputs(), count=1)
    assert model.language_backbone.table.abs().sum() > 0


def test_an_unknown_policy_is_an_error_with_the_known_ones(base: str) -> None:
    with pytest.raises(ValueError, match=r"'everything'.*linear_probe"):
        build_tuned_model(tuned_cfg(base, "everything"))


def test_text_only_with_a_frozen_text_encoder_is_an_error(base: str) -> None:
    cfg = tuned_cfg(base, "text_only", "MODEL.LANGUAGE_BACKBONE.FREEZE", True)
    with pytest.raises(ValueError, match=r"MODEL\.LANGUAGE_BACKBONE\.FREEZE"):
        build_tuned_model(cfg)


def test_adapters_of_layers_that_are_never_called_are_an_error(base: str) -> None:
    with pytest.raises(ValueError, match=r"visual_query.*MODEL\.TUNING\.LORA\.TARGETS"):
        build_tuned_model(tuned_cfg(base, "lora", "MODEL.TUNING.LORA.TARGETS", ["visual_query"]))


def test_lora_targets_without_a_layer_are_an_error(base: str) -> None:
    with pytest.raises(ValueError, match=r"no_such_layer.*MODEL\.TUNING\.LORA\.TARGETS"):
        build_tuned_model(tuned_cfg(base, "lora", "MODEL.TUNING.LORA.TARGETS", ["no_such_layer"]))


def test_frozen_modules_are_the_largest_without_trainable_parameters() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Linear(1, 1), nn.Dropout()), nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    )
    model[0].requires_grad_(False)
    assert frozen_modules(model) == [model[0]]


def test_frozen_batch_norm_keeps_its_statistics_during_training() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1), nn.BatchNorm1d(1)).train()
    model[0].requires_grad_(False)
    FrozenModulesEvalHook(model).before_step()
    model(torch.full((2, 1), 7.0))
    assert (model[0].running_mean.item(), model[1].num_batches_tracked.item()) == (0.0, 1)
