"""Which parameters a policy lets move, seen after real training steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from helpers.masks import ELL, MASKS, masked_input
from helpers.models import random_image, tiny_cfg, tiny_model
from helpers.text_tasks import REGIONS, TEXT_TASKS, caption_input, question_input
from torch import Tensor, nn

from glipv2_d2.checkpoint import save_weights
from glipv2_d2.engine.param_groups import build_optimizer
from glipv2_d2.engine.policies import FrozenPartsRest, frozen_parts, policy_names
from glipv2_d2.engine.tuning import build_tuned_model

NAMES = ["cat", "traffic light"]
POLICIES = (
    *("comparison", "full", "linear_probe", "lora", "mask_heads", "prompt", "text_heads"),
    "text_only",
)
COMPARING = ("MODEL.PROPOSAL_GENERATOR.NAME", "ComparingGroundingRPN")
SAYING = (*TEXT_TASKS, *REGIONS)
LORA_TARGETS = ("qkv", "query", "value", "language_key", "language_value", "language_out")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("base") / "base.pth"
    save_weights(tiny_model(), path)
    return str(path)


def tuned_cfg(base: str, policy: str, *opts: Any) -> CfgNode:
    parts = {"mask_heads": MASKS, "comparison": COMPARING, "text_heads": SAYING}.get(policy, ())
    return tiny_cfg("MODEL.WEIGHTS", base, "MODEL.TUNING.NAME", policy, *parts, *opts)


def train_steps(cfg: CfgNode, model: nn.Module, count: int = 3) -> None:
    torch.manual_seed(0)
    optimizer = build_optimizer(cfg, model)
    model.train()
    inputs = [masked_input([ELL], [1], classes=NAMES)]
    if cfg.MODEL.TUNING.NAME == "text_heads":
        inputs = [question_input(), caption_input()]
    for _ in range(count):
        losses = model(inputs)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()


def moved_names(base: str, policy: str, *opts: Any) -> tuple[set[str], set[str]]:
    """What moved, and everything."""
    cfg = tuned_cfg(base, policy, *opts)
    model = build_tuned_model(cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train_steps(cfg, model)
    after = model.state_dict()
    return {name for name in after if not torch.equal(after[name], before[name])}, set(after)


def detections(model: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        (output,) = model.eval()([{"image": random_image(), "classes": NAMES}])
    instances = output["instances"]
    return [instances.pred_boxes.tensor, instances.scores]


def test_every_policy_has_a_test() -> None:
    assert set(policy_names()) == set(POLICIES)


def test_full_moves_every_part(base: str) -> None:
    moved, _ = moved_names(base, "full")
    for part in ("backbone.bottom_up", "backbone.fpn", "language_backbone", "fused_head"):
        assert any(name.startswith(part) for name in moved), part
    assert {"proposal_generator.bbox_pred.weight", "proposal_generator.region_word.bias"} <= moved


def test_full_leaves_what_the_config_froze(base: str) -> None:
    moved, everything = moved_names(base, "full", "MODEL.SWIN.FROZEN_STAGES", 0)
    patch_embedding = {n for n in everything if n.startswith("backbone.bottom_up.patch_embed.proj")}
    assert patch_embedding and moved.isdisjoint(patch_embedding)


def test_linear_probe_moves_the_last_layers_and_all_of_them(base: str) -> None:
    moved, _ = moved_names(base, "linear_probe")
    head = "proposal_generator."
    assert moved == {
        *(
            f"{head}{layer}.{kind}"
            for layer in ("bbox_pred", "centerness")
            for kind in ("weight", "bias")
        ),
        *(f"{head}region_word.projection.{kind}" for kind in ("weight", "bias")),
        *(f"{head}region_word.{name}" for name in ("log_scale", "bias_language", "bias")),
    }


def test_text_only_moves_the_text_encoder_and_all_of_it(base: str) -> None:
    moved, everything = moved_names(base, "text_only")
    assert moved == {name for name in everything if name.startswith("language_backbone.")}


def test_prompt_moves_the_table_alone(base: str) -> None:
    moved, _ = moved_names(base, "prompt")
    assert moved == {"language_backbone.table"}


def test_lora_moves_the_adapters_and_all_of_them(base: str) -> None:
    moved, everything = moved_names(base, "lora")
    assert moved == {name for name in everything if ".lora_" in name}


def test_each_default_target_of_lora_gets_adapters(base: str) -> None:
    state = build_tuned_model(tuned_cfg(base, "lora")).state_dict()
    adapted = {name.split(".")[-4] for name in state if ".lora_A." in name}
    assert adapted == set(LORA_TARGETS)


def test_lora_leaves_the_text_encoder_alone(base: str) -> None:
    model = build_tuned_model(tuned_cfg(base, "lora"))
    names = [name for name, _ in model.language_backbone.named_parameters()]
    assert not any("lora_" in name for name in names)


def test_mask_heads_moves_the_heads_of_boxes_and_all_of_them(base: str) -> None:
    moved, everything = moved_names(base, "mask_heads")
    assert moved == {name for name in everything if name.startswith("roi_heads.")}
    assert len(moved) > 0


def test_comparison_moves_the_comparison_alone(base: str) -> None:
    moved, _ = moved_names(base, "comparison")
    assert moved == {"proposal_generator.comparison.direction.weight"}


def test_text_heads_moves_what_says_words_and_all_of_it(base: str) -> None:
    moved, everything = moved_names(base, "text_heads")
    heads = ("answer.", "caption.", "region_reader.")
    # What all words have in common is no matter to a softmax.
    still = {name for name in everything if name.startswith(heads)} - moved
    assert all(name.startswith(heads) for name in moved)
    assert {name.split(".")[0] for name in moved} == {head.rstrip(".") for head in heads}
    assert all(name.endswith(("attention.bias", "key.bias")) for name in still)


def test_mask_heads_hides_no_words(base: str) -> None:
    model = build_tuned_model(tuned_cfg(base, "mask_heads", "MODEL.MLM.WEIGHT", 1.0)).train()
    assert set(model([masked_input([ELL], [1], classes=NAMES)])) == {"loss_mask"}


def test_masks_that_a_model_does_not_have_cannot_be_all_that_learns(base: str) -> None:
    with pytest.raises(ValueError, match=r"MODEL\.MASK_ON"):
        build_tuned_model(tuned_cfg(base, "mask_heads", "MODEL.MASK_ON", False))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_changes_nothing_before_training(base: str, policy: str) -> None:
    tuned = build_tuned_model(tuned_cfg(base, policy, "MODEL.GROUNDING.SCORE_THRESH", 0.0))
    untouched = tiny_model("MODEL.GROUNDING.SCORE_THRESH", 0.0)
    for found, expected in zip(detections(tuned), detections(untouched), strict=True):
        assert torch.equal(found, expected)


def test_the_prompt_table_serves_prompts_longer_than_it(base: str) -> None:
    cfg = tuned_cfg(base, "prompt", "MODEL.TUNING.PROMPT.NUM_ROWS", 2)
    train_steps(cfg, model := build_tuned_model(cfg), count=1)
    assert model.language_backbone.table.abs().sum() > 0


def test_an_unknown_policy_is_named(base: str) -> None:
    with pytest.raises(ValueError, match=r"'everything'.*linear_probe"):
        build_tuned_model(tuned_cfg(base, "everything"))


def test_a_frozen_text_encoder_cannot_be_all_that_learns(base: str) -> None:
    cfg = tuned_cfg(base, "text_only", "MODEL.LANGUAGE_BACKBONE.FREEZE", True)
    with pytest.raises(ValueError, match=r"MODEL\.LANGUAGE_BACKBONE\.FREEZE"):
        build_tuned_model(cfg)


def test_adapters_where_nobody_computes_them_are_refused(base: str) -> None:
    with pytest.raises(ValueError, match="visual_query"):
        build_tuned_model(tuned_cfg(base, "lora", "MODEL.TUNING.LORA.TARGETS", ["visual_query"]))


def test_targets_that_are_not_there_are_named(base: str) -> None:
    with pytest.raises(ValueError, match="nothing_like_it"):
        build_tuned_model(tuned_cfg(base, "lora", "MODEL.TUNING.LORA.TARGETS", ["nothing_like_it"]))


def test_frozen_parts_are_the_largest_without_a_learning_parameter() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Linear(1, 1), nn.Dropout()), nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    )
    model[0].requires_grad_(False)
    assert frozen_parts(model) == [model[0]]


def test_frozen_batch_norm_rests_while_the_others_train() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1), nn.BatchNorm1d(1)).train()
    model[0].requires_grad_(False)
    FrozenPartsRest(model).before_step()
    model(torch.full((2, 1), 7.0))
    assert (model[0].running_mean.item(), model[1].num_batches_tracked.item()) == (0.0, 1)
