"""Parameter names of CLIP's text encoder, and its positions for longer texts.

n: layer. Layouts: OpenAI's and open_clip's; GLIP's, whose names begin with ``text.`` and lack
``transformer.``; and that of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from glipv2_d2.checkpoint.load_report import LoadReport, list_names
from glipv2_d2.checkpoint.name_table import NameTable

POSITIONS = "position_embedding"

_OPENAI_LAYER = {
    "ln_1.{p}": "attention_norm.{p}",
    "attn.query.{p}": "query.{p}",
    "attn.key.{p}": "key.{p}",
    "attn.value.{p}": "value.{p}",
    "attn.out_proj.{p}": "attention_out.{p}",
    "ln_2.{p}": "ffn_norm.{p}",
    "mlp.c_fc.{p}": "ffn_in.{p}",
    "mlp.c_proj.{p}": "ffn_out.{p}",
}
_OPENAI = {
    "token_embedding.weight": "token_embedding.weight",
    "positional_embedding": POSITIONS,
    "ln_final.{p}": "final_norm.{p}",
    **{
        f"{stack}resblocks.{{n}}.{theirs}": f"layers.{{n}}.{ours}"
        for stack in ("transformer.", "")
        for theirs, ours in _OPENAI_LAYER.items()
    },
}
_TRANSFORMERS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": POSITIONS,
    "encoder.layers.{n}.layer_norm1.{p}": "layers.{n}.attention_norm.{p}",
    "encoder.layers.{n}.self_attn.q_proj.{p}": "layers.{n}.query.{p}",
    "encoder.layers.{n}.self_attn.k_proj.{p}": "layers.{n}.key.{p}",
    "encoder.layers.{n}.self_attn.v_proj.{p}": "layers.{n}.value.{p}",
    "encoder.layers.{n}.self_attn.out_proj.{p}": "layers.{n}.attention_out.{p}",
    "encoder.layers.{n}.layer_norm2.{p}": "layers.{n}.ffn_norm.{p}",
    "encoder.layers.{n}.mlp.fc1.{p}": "layers.{n}.ffn_in.{p}",
    "encoder.layers.{n}.mlp.fc2.{p}": "layers.{n}.ffn_out.{p}",
    "final_layer_norm.{p}": "final_norm.{p}",
}
_TABLE = NameTable(
    {
        prefix + theirs: ours
        for layout, prefixes in ((_OPENAI, ("", "text.")), (_TRANSFORMERS, ("", "text_model.")))
        for prefix in prefixes
        for theirs, ours in layout.items()
    },
    recomputed=["text_model.embeddings.position_ids", "embeddings.position_ids", "text.attn_mask"],
    ignored={
        **dict.fromkeys(
            ["visual.{rest}", "vision_model.{rest}", "visual_projection.weight"],
            "the image encoder",
        ),
        **dict.fromkeys(
            ["text_projection", "text_projection.{p}", "text.text_projection", "logit_scale"],
            "the comparison of whole texts with images",
        ),
        **dict.fromkeys(
            ["logit_bias", "input_resolution", "context_length", "vocab_size"],
            "a constant of CLIP",
        ),
    },
)


def from_clip(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], LoadReport]:
    """Rename the weights of a CLIP, or of its text encoder, to those of ours.

    Raises:
        ValueError: a name is of no layout of CLIP.
    """
    plain: dict[str, Tensor] = {}
    for name, value in state_dict.items():
        module, joined, kind = name.rpartition("attn.in_proj_")
        if joined and not name.startswith("visual."):
            # Query, key and value in one matrix.
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                plain[f"{module}attn.{part}.{kind}"] = third
        else:
            plain[name] = value
    renamed, report = _TABLE.rename(plain)
    if report.unknown:
        raise ValueError(
            "these are not weights of CLIP's text encoder:\n"
            + "\n".join(list_names(report.unknown))
        )
    return renamed, report


def resize_positions(positions: Tensor, num_positions: int) -> Tensor:
    """Position embeddings for texts of another length.

    For longer texts they are interpolated, linearly and with the ends of both sequences aligned
    (not their first and last positions), as in GLIP. Shorter texts have the first ones.

    Args:
        positions: (P, D).

    Returns:
        (num_positions, D).

    >>> import torch
    >>> resize_positions(torch.tensor([[0.0], [1.0]]), 4).flatten().tolist()
    [0.0, 0.25, 0.75, 1.0]
    """
    if num_positions <= len(positions):
        return positions[:num_positions]
    columns = positions.float().T[None]
    return F.interpolate(columns, size=num_positions, mode="linear", align_corners=False)[0].T
