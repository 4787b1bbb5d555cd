"""GLIP's names <-> ours; the tables of keys are those of real models (assets/keys)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from glipv2_d2.checkpoint import from_glip, to_glip
from glipv2_d2.checkpoint.glip_names import WRAPPER, is_recomputed

ReadKeys = Callable[[str], dict[str, Tensor]]
TABLES = ["keys/keys_glip_T.tsv.gz", "keys/keys_glip_A.tsv.gz", "tiny_T_s0/keys.tsv"]
UNUSED = {"module.rpn.head.cls_logits.weight", "module.rpn.head.cls_logits.bias"}


def shapes(state_dict: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state_dict.items()}


@pytest.mark.parametrize("table", TABLES)
def test_every_key_is_reported(read_keys: ReadKeys, table: str) -> None:
    keys = read_keys(table)
    ours, account = from_glip(keys)
    assert account.unknown == ()
    assert len(ours) + len(account.recomputed) + len(account.ignored) == len(keys)


@pytest.mark.parametrize("table", TABLES)
def test_only_the_unused_classifier_is_ignored_and_only_buffers_recomputed(
    read_keys: ReadKeys, table: str
) -> None:
    _, account = from_glip(read_keys(table))
    assert {WRAPPER + name for name in account.ignored} == UNUSED
    leaves = {name.partition("relative_position_index")[1] or name for name in account.recomputed}
    assert leaves == {
        "relative_position_index",
        "language_backbone.body.model.embeddings.position_ids",
        *(f"rpn.anchor_generator.cell_anchors.{level}" for level in range(5)),
    }


@pytest.mark.parametrize("table", TABLES)
def test_names_stay_unique(read_keys: ReadKeys, table: str) -> None:
    _, account = from_glip(read_keys(table))
    assert len(set(account.loaded.values())) == len(account.loaded)


@pytest.mark.parametrize("table", TABLES)
def test_the_inverse_restores_all_names(read_keys: ReadKeys, table: str) -> None:
    keys = read_keys(table)
    ours, account = from_glip(keys)
    buffers = {WRAPPER + name for name in account.recomputed}
    expected = {n: s for n, s in shapes(keys).items() if n not in UNUSED | buffers}
    assert shapes(to_glip(ours)) == expected


@pytest.mark.parametrize(
    ("table", "parameters"),
    [("keys/keys_glip_T.tsv.gz", 231_759_662), ("keys/keys_glip_A.tsv.gz", 151_409_966)],
)
def test_published_number_of_parameters(read_keys: ReadKeys, table: str, parameters: int) -> None:
    ours, _ = from_glip(read_keys(table))
    assert sum(value.numel() for value in ours.values()) == parameters


def test_a_round_trip_keeps_the_tensors(glip_weights: dict[str, Tensor]) -> None:
    ours, _ = from_glip(glip_weights)
    back = to_glip(ours)
    assert all(back[name] is glip_weights[name] for name in back)
    again, _ = from_glip(back)
    assert again.keys() == ours.keys()
    assert all(again[name] is ours[name] for name in ours)


def test_the_prefix_of_distributed_training_is_optional(
    glip_weights: dict[str, Tensor],
) -> None:
    plain = {name.removeprefix(WRAPPER): value for name, value in glip_weights.items()}
    assert from_glip(plain)[0].keys() == from_glip(glip_weights)[0].keys()


@pytest.mark.parametrize(
    ("glip", "ours"),
    [
        (
            "backbone.body.layers.2.blocks.5.mlp.fc1.bias",
            "backbone.bottom_up.layers.2.blocks.5.mlp.fc1.bias",
        ),
        ("backbone.fpn.fpn_inner2.weight", "backbone.fpn_lateral3.weight"),
        ("backbone.fpn.fpn_layer4.bias", "backbone.fpn_output5.bias"),
        ("backbone.fpn.top_blocks.p6.weight", "backbone.top_block.p6.weight"),
        (
            "language_backbone.body.model.embeddings.LayerNorm.weight",
            "language_backbone.bert.embeddings.LayerNorm.weight",
        ),
        (
            "rpn.head.dyhead_tower.21.b_attn.attn.values_l_proj.weight",
            "fused_head.blocks.7.fusion.attention.language_value.weight",
        ),
        (
            "rpn.head.dyhead_tower.22.output.LayerNorm.bias",
            "fused_head.blocks.7.language_layer.ffn_norm.bias",
        ),
        (
            "rpn.head.dyhead_tower.23.DyConv.0.bn.weight",
            "fused_head.blocks.7.dynamic_conv.coarser.norm.weight",
        ),
        ("rpn.head.scales.4.scale", "proposal_generator.level_scales.4"),
        ("rpn.head.bias0", "proposal_generator.region_word.bias"),
    ],
)
def test_names_of_glip_l(glip: str, ours: str) -> None:
    # The first name marks a tower with fusion; GLIP-L has eight blocks.
    fused = {"rpn.head.dyhead_tower.21.b_attn.gamma_v": torch.empty(0)}
    _, account = from_glip({**fused, glip: torch.empty(0)})
    assert account.loaded[glip] == ours


def test_without_fusion_the_tower_is_dynamic_convolutions_only() -> None:
    _, account = from_glip({"rpn.head.dyhead_tower.5.relu.fc.2.bias": torch.empty(0)})
    assert list(account.loaded.values()) == [
        "fused_head.blocks.5.dynamic_conv.dynamic_relu.excite.bias"
    ]


@pytest.mark.parametrize(
    "name",
    [
        "rpn.head.mlm_head.transform.dense.weight",
        "rpn.head.mlm_head.bias",
        "rpn.loss_evaluator.shallow_log_scale",
        "rpn.loss_evaluator.shallow_contrastive_projection_text.bias",
        "rpn.tunable_linear.weight",
        "language_backbone.body.model.pooler.dense.weight",
    ],
)
def test_optional_keys_are_ignored_with_a_reason(name: str) -> None:
    ours, account = from_glip({name: torch.empty(0)})
    assert not ours
    assert list(account.ignored) == [name]


@pytest.mark.parametrize(
    "name",
    [
        "rpn.head.dyhead_tower.0.b_attn.gamma_x",
        "rpn.head.dyhead_tower.0.DyConv.3.conv.weight",
        "backbone.body.absolute_pos_embed",
        "backbone.fpn.fpn_inner1.weight",
        "language_backbone.body.model.encoder.layer.0.weight",
    ],
)
def test_other_keys_are_unknown(name: str) -> None:
    _, account = from_glip({name: torch.empty(0)})
    assert account.unknown == (name,)


def test_weights_that_glip_does_not_have_raise_an_error() -> None:
    ours = {
        "backbone.bottom_up.blocks.0.conv_dw.weight": torch.empty(0),
        "mask_head.bias": torch.empty(0),
    }
    with pytest.raises(ValueError, match=r"conv_dw\.weight\n.*mask_head\.bias"):
        to_glip(ours)


def test_only_swins_position_index_is_recomputed() -> None:
    assert is_recomputed("backbone.bottom_up.layers.3.blocks.1.attn.relative_position_index")
    assert not is_recomputed(
        "backbone.bottom_up.layers.3.blocks.1.attn.relative_position_bias_table"
    )
