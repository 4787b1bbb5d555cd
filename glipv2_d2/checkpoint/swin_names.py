"""Parameter names of Swin transformers, shared by the original release, GLIP and Detectron2.

n: stage, m: block.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from glipv2_d2.checkpoint.load_report import LoadReport
from glipv2_d2.checkpoint.name_table import NameTable

SWIN_TEMPLATES = (
    "patch_embed.proj.{p}",
    "patch_embed.norm.{p}",
    "layers.{n}.blocks.{m}.norm1.{p}",
    "layers.{n}.blocks.{m}.attn.qkv.{p}",
    "layers.{n}.blocks.{m}.attn.proj.{p}",
    "layers.{n}.blocks.{m}.attn.relative_position_bias_table",
    "layers.{n}.blocks.{m}.norm2.{p}",
    "layers.{n}.blocks.{m}.mlp.fc1.{p}",
    "layers.{n}.blocks.{m}.mlp.fc2.{p}",
    "layers.{n}.downsample.norm.{p}",
    "layers.{n}.downsample.reduction.weight",
)
SWIN_OUTPUT_NORM = "norm{n}.{p}"
SWIN_RECOMPUTED = "layers.{n}.blocks.{m}.attn.relative_position_index"
OUR_SWIN = "backbone.bottom_up."

_IMAGENET_TABLE = NameTable(
    {name: OUR_SWIN + name for name in SWIN_TEMPLATES},
    recomputed=[SWIN_RECOMPUTED],
    ignored={
        "norm.{p}": "the ImageNet classifier",
        "head.{p}": "the ImageNet classifier",
        "layers.{n}.blocks.{m}.attn_mask": "masks of one image size",
    },
)


def from_swin(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], LoadReport]:
    """Rename the weights of an original ImageNet file.

    The channel order of the patch embedding is kept, as in GLIP: filters that were trained on RGB
    are fine-tuned on BGR.
    """
    return _IMAGENET_TABLE.rename(state_dict)


def in_imagenet_file(name: str) -> bool:
    """Whether ImageNet files have the weight with this name; they lack the output norms.

    >>> in_imagenet_file("backbone.bottom_up.patch_embed.proj.weight")
    True
    >>> in_imagenet_file("backbone.bottom_up.norm1.weight")
    False
    """
    return _IMAGENET_TABLE.backward(name) is not None
