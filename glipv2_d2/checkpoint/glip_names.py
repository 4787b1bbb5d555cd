"""Table of parameter names in released GLIP files and in this project, for any depth.

n: stage, layer or level; m: block of Swin; k: block of the head's tower.
A tower with fusion (GLIP-T, GLIP-L) is a flat list of three modules per block: fusion at 3k,
language layer at 3k + 1, dynamic convolution at 3k + 2. A tower without fusion (GLIP-A) has only
the dynamic convolution, at k.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from glipv2_d2.checkpoint.load_report import LoadReport, list_names
from glipv2_d2.checkpoint.name_table import NameTable
from glipv2_d2.checkpoint.swin_names import (
    OUR_SWIN,
    SWIN_OUTPUT_NORM,
    SWIN_RECOMPUTED,
    SWIN_TEMPLATES,
)

# Prefix of DistributedDataParallel on all names in released files.
WRAPPER = "module."

_SWIN = {"backbone.body." + name: OUR_SWIN + name for name in (*SWIN_TEMPLATES, SWIN_OUTPUT_NORM)}

# GLIP counts stages from 0; Detectron2 names a level by the base-2 logarithm of its stride.
_PYRAMID = {
    "backbone.fpn.fpn_inner2.{p}": "backbone.fpn_lateral3.{p}",
    "backbone.fpn.fpn_inner3.{p}": "backbone.fpn_lateral4.{p}",
    "backbone.fpn.fpn_inner4.{p}": "backbone.fpn_lateral5.{p}",
    "backbone.fpn.fpn_layer2.{p}": "backbone.fpn_output3.{p}",
    "backbone.fpn.fpn_layer3.{p}": "backbone.fpn_output4.{p}",
    "backbone.fpn.fpn_layer4.{p}": "backbone.fpn_output5.{p}",
    "backbone.fpn.top_blocks.p6.{p}": "backbone.top_block.p6.{p}",
    "backbone.fpn.top_blocks.p7.{p}": "backbone.top_block.p7.{p}",
}

_BERT = {
    "language_backbone.body.model." + name: "language_backbone.bert." + name
    for name in (
        "embeddings.word_embeddings.weight",
        "embeddings.position_embeddings.weight",
        "embeddings.token_type_embeddings.weight",
        "embeddings.LayerNorm.{p}",
        "encoder.layer.{n}.attention.self.query.{p}",
        "encoder.layer.{n}.attention.self.key.{p}",
        "encoder.layer.{n}.attention.self.value.{p}",
        "encoder.layer.{n}.attention.output.dense.{p}",
        "encoder.layer.{n}.attention.output.LayerNorm.{p}",
        "encoder.layer.{n}.intermediate.dense.{p}",
        "encoder.layer.{n}.output.dense.{p}",
        "encoder.layer.{n}.output.LayerNorm.{p}",
    )
}

_FUSION = {
    "b_attn.layer_norm_v.{p}": "fusion.norm_visual.{p}",
    "b_attn.layer_norm_l.{p}": "fusion.norm_language.{p}",
    "b_attn.gamma_v": "fusion.gamma_visual",
    "b_attn.gamma_l": "fusion.gamma_language",
    "b_attn.attn.v_proj.{p}": "fusion.attention.visual_query.{p}",
    "b_attn.attn.l_proj.{p}": "fusion.attention.language_key.{p}",
    "b_attn.attn.values_v_proj.{p}": "fusion.attention.visual_value.{p}",
    "b_attn.attn.values_l_proj.{p}": "fusion.attention.language_value.{p}",
    "b_attn.attn.out_v_proj.{p}": "fusion.attention.visual_out.{p}",
    "b_attn.attn.out_l_proj.{p}": "fusion.attention.language_out.{p}",
}

_LANGUAGE_LAYER = {
    "attention.self.query.{p}": "language_layer.query.{p}",
    "attention.self.key.{p}": "language_layer.key.{p}",
    "attention.self.value.{p}": "language_layer.value.{p}",
    "attention.output.dense.{p}": "language_layer.attention_out.{p}",
    "attention.output.LayerNorm.{p}": "language_layer.attention_norm.{p}",
    "intermediate.dense.{p}": "language_layer.ffn_in.{p}",
    "output.dense.{p}": "language_layer.ffn_out.{p}",
    "output.LayerNorm.{p}": "language_layer.ffn_norm.{p}",
}

_DYNAMIC_CONV = {
    "offset.{p}": "dynamic_conv.offset.{p}",
    "DyConv.0.conv.{p}": "dynamic_conv.coarser.conv.{p}",
    "DyConv.0.bn.{p}": "dynamic_conv.coarser.norm.{p}",
    "DyConv.1.conv.{p}": "dynamic_conv.same.conv.{p}",
    "DyConv.1.bn.{p}": "dynamic_conv.same.norm.{p}",
    "DyConv.2.conv.{p}": "dynamic_conv.finer.conv.{p}",
    "DyConv.2.bn.{p}": "dynamic_conv.finer.norm.{p}",
    "AttnConv.1.{p}": "dynamic_conv.scale_attention.{p}",
    "relu.fc.0.{p}": "dynamic_conv.dynamic_relu.squeeze.{p}",
    "relu.fc.2.{p}": "dynamic_conv.dynamic_relu.excite.{p}",
}

_OUTPUTS = {
    "rpn.head.dot_product_projection_text.{p}": "proposal_generator.region_word.projection.{p}",
    "rpn.head.log_scale": "proposal_generator.region_word.log_scale",
    "rpn.head.bias_lang": "proposal_generator.region_word.bias_language",
    "rpn.head.bias0": "proposal_generator.region_word.bias",
    "rpn.head.bbox_pred.{p}": "proposal_generator.bbox_pred.{p}",
    "rpn.head.centerness.{p}": "proposal_generator.centerness.{p}",
    "rpn.head.scales.{n}.scale": "proposal_generator.level_scales.{n}",
}

_RECOMPUTED = (
    "backbone.body." + SWIN_RECOMPUTED,
    "language_backbone.body.model.embeddings.position_ids",
    "rpn.anchor_generator.cell_anchors.{n}",
)
_OUR_RECOMPUTED = re.compile(re.escape(OUR_SWIN) + r".*\.attn\.relative_position_index")

_IGNORED = {
    "rpn.head.cls_logits.{p}": "the classifier that GLIP does not use",
    "rpn.head.mlm_head.{rest}": "the masked language modelling head",
    "rpn.loss_evaluator.{rest}": "projections of the contrastive loss",
    "rpn.tunable_linear.weight": "a tuned prompt",
    "language_backbone.body.model.pooler.{rest}": "BERT's pooler",
}


def from_glip(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], LoadReport]:
    """Rename the weights of a GLIP file.

    Args:
        state_dict: GLIP's names, with or without the prefix ``module.``.

    Returns:
        The same tensors under the names of this project, without recomputed buffers, and a report
        on all keys.
    """
    plain = strip_wrapper(state_dict)
    fused = any(".b_attn." in name for name in plain)
    tower = _highest_number("rpn.head.dyhead_tower.", plain)
    num_blocks = tower // 3 + 1 if fused else tower + 1
    return _glip_table(num_blocks, fused).rename(plain)


def to_glip(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights to the names of a released GLIP file, the inverse of :func:`from_glip`.

    Names get the prefix ``module.``. GLIP's buffers and its unused classifier ``cls_logits`` are
    not written.

    Raises:
        ValueError: weights of parts that GLIP does not have; the message lists all of them.
    """
    fused = any(".fusion." in name for name in state_dict)
    table = _glip_table(_highest_number("fused_head.blocks.", state_dict) + 1, fused)
    renamed: dict[str, Tensor] = {}
    foreign: list[str] = []
    for name, value in state_dict.items():
        if glip_name := table.backward(name):
            renamed[WRAPPER + glip_name] = value
        elif not is_recomputed(name):
            foreign.append(name)
    if foreign:
        raise ValueError(
            "GLIP does not have these weights; only models of configs/glip/ can be converted "
            "to its names:\n" + "\n".join(list_names(foreign))
        )
    return renamed


def is_recomputed(name: str) -> bool:
    """Whether a name of this project is a buffer that the model computes itself.

    >>> is_recomputed("backbone.bottom_up.layers.0.blocks.1.attn.relative_position_index")
    True
    """
    return _OUR_RECOMPUTED.fullmatch(name) is not None


def strip_wrapper(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix ``module.`` if all names have it.

    >>> strip_wrapper({"module.a": 1, "module.b": 2})
    {'a': 1, 'b': 2}
    """
    if not all(name.startswith(WRAPPER) for name in state_dict):
        return dict(state_dict)
    return {name.removeprefix(WRAPPER): value for name, value in state_dict.items()}


@functools.lru_cache
def _glip_table(num_blocks: int, fused: bool) -> NameTable:
    modules = (_FUSION, _LANGUAGE_LAYER, _DYNAMIC_CONV) if fused else (_DYNAMIC_CONV,)
    tower = {
        f"rpn.head.dyhead_tower.{k * len(modules) + i}.{theirs}": f"fused_head.blocks.{k}.{ours}"
        for k in range(num_blocks)
        for i, names in enumerate(modules)
        for theirs, ours in names.items()
    }
    return NameTable(
        {**_SWIN, **_PYRAMID, **_BERT, **tower, **_OUTPUTS},
        recomputed=_RECOMPUTED,
        ignored=_IGNORED,
    )


def _highest_number(prefix: str, names: Iterable[str]) -> int:
    """The highest number after ``prefix``, -1 if there is none.

    >>> _highest_number("blocks.", ["blocks.0.weight", "blocks.11.weight", "scale"])
    11
    """
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return max((int(m[1]) for name in names if (m := pattern.match(name))), default=-1)
