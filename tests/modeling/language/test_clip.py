"""CLIP's text encoder: its formula, its published names, positions, training and captions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from helpers.clip import small_clip, tiny_clip_directory, vocabulary_directory
from helpers.models import random_image, tiny_cfg, tiny_model, training_input
from helpers.text_tasks import ANSWERS, TEXT_TASKS, question_input
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, CLIPConfig, CLIPModel, CLIPTextModel, CLIPVisionConfig

from glipv2_d2.engine.train.param_groups import build_optimizer
from glipv2_d2.modeling.language import ClipLanguageBackbone, build_language_backbone
from glipv2_d2.modeling.language.clip import build_clip
from glipv2_d2.structures import TextFeatures, TokenBatch

LENGTHS = [9, 5, 2]
CLIP_OPTS = (
    *("MODEL.LANGUAGE_BACKBONE.NAME", "ClipLanguageBackbone"),
    *("MODEL.FUSED_HEAD.NAME", "ClipFusedDynamicHead"),
)


CONFIDENT = ("MODEL.GROUNDING.PRIOR_PROB", 0.5)


def tokens(causal: bool = False) -> TokenBatch:
    ids = torch.randint(30, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) < torch.tensor(LENGTHS)[:, None]
    empty = torch.zeros(0, 9, dtype=torch.bool)
    batch = TokenBatch(ids, mask, (empty,) * 3, (empty,) * 3, ())
    return batch if not causal else TokenBatch(ids, mask, (empty,) * 3, (empty,) * 3, (), True)


def openai_names(model: CLIPTextModel, stack: str = "transformer.resblocks.") -> dict[str, Tensor]:
    """The weights under the names that CLIP was published with."""
    state = {k.removeprefix("text_model."): v for k, v in model.state_dict().items()}
    published = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
    }
    modules = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
    modules |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for kind in ("weight", "bias"):
        published[f"ln_final.{kind}"] = state[f"final_layer_norm.{kind}"]
        for n in range(model.config.num_hidden_layers):
            layer = f"encoder.layers.{n}."
            projections = [state[f"{layer}self_attn.{x}_proj.{kind}"] for x in "qkv"]
            published[f"{stack}{n}.attn.in_proj_{kind}"] = torch.cat(projections)
            for name, theirs in modules.items():
                published[f"{stack}{n}.{name}.{kind}"] = state[f"{layer}{theirs}.{kind}"]
    return published


@pytest.fixture(scope="module")
def clip() -> CLIPTextModel:
    return small_clip()


@pytest.fixture
def directory(clip: CLIPTextModel, tmp_path: Path) -> Path:
    clip.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def build(directory: Path, weights: Path | str = "", num_positions: int = 12) -> Any:
    clip = build_clip(model=str(directory), weights=str(weights), num_positions=num_positions)
    return ClipLanguageBackbone(clip=clip, freeze=False).eval()


def valid(features: TextFeatures) -> list[Tensor]:
    return [hidden[:n] for hidden, n in zip(features.hidden, LENGTHS, strict=True)]


def formula(weights: dict[str, Tensor], ids: Tensor) -> Tensor:
    """CLIP's text encoder without its causal mask, on (T,) ids, by the names of its release."""

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        scaled = centred / centred.pow(2).mean(dim=-1, keepdim=True).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = weights["token_embedding.weight"][ids] + weights["positional_embedding"][: len(ids)]
    for n in range(2):
        block = f"transformer.resblocks.{n}."
        attention = nn.MultiheadAttention(16, 2)
        own = {k.split("attn.")[1]: v for k, v in weights.items() if k.startswith(f"{block}attn.")}
        attention.load_state_dict(own)
        y = norm(x, f"{block}ln_1")
        x = x + attention(y, y, y)[0]
        y = F.linear(norm(x, f"{block}ln_2"), *parts(weights, f"{block}mlp.c_fc"))
        x = x + F.linear(y / (1 + (-1.702 * y).exp()), *parts(weights, f"{block}mlp.c_proj"))
    return norm(x, "ln_final")


def parts(weights: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def test_tokens_attend_to_both_sides_by_clips_formula(clip: CLIPTextModel, directory: Path) -> None:
    batch, weights = tokens(), openai_names(clip)
    for row, hidden in enumerate(valid(build(directory, directory)(batch))):
        expected = formula(weights, batch.input_ids[row, : LENGTHS[row]])
        torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-4)


def test_causal_texts_are_encoded_as_by_transformers(clip: CLIPTextModel, directory: Path) -> None:
    batch = tokens(causal=True)
    expected = clip(input_ids=batch.input_ids, attention_mask=batch.mask.long()).last_hidden_state
    features = build(directory, directory)(batch)
    for hidden, theirs in zip(valid(features), expected, strict=True):
        torch.testing.assert_close(hidden, theirs[: len(hidden)], rtol=1e-4, atol=1e-4)


def test_decoding_in_steps_equals_encoding_causally(directory: Path) -> None:
    backbone, batch = build(directory, directory), tokens(causal=True)
    expected = backbone(batch).hidden[:1]
    first, cache = backbone.decode_step(batch.input_ids[:1, :4])
    second, cache = backbone.decode_step(batch.input_ids[:1, 4:], cache)
    torch.testing.assert_close(torch.cat([first, second], dim=1), expected)
    with pytest.raises(ValueError, match="a text has 13 tokens, but there are 12 positions"):
        backbone.decode_step(batch.input_ids[:1, :4], cache)


@pytest.mark.parametrize("layout", ["openai", "half", "glip", "open_clip", "clip", "safetensors"])
def test_every_published_layout_gives_the_same_encoder(
    layout: str, clip: CLIPTextModel, directory: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.pt"
    published = openai_names(clip)
    image = {"visual.proj": torch.zeros(1), "visual.transformer.resblocks.0.attn.in_proj_bias": 0}
    image = {name: torch.zeros(1) for name in image} | {"logit_scale": torch.zeros(())}
    if layout == "openai":
        torch.save(published | image | {"text_projection": torch.zeros(1)}, weights)
    elif layout == "half":
        torch.save({name: value.half() for name, value in published.items()}, weights)
    elif layout == "glip":
        names = openai_names(clip, stack="resblocks.")
        torch.save({f"text.{name}": value for name, value in names.items()}, weights)
    elif layout == "open_clip":
        weights = tmp_path / "open_clip"
        weights.mkdir()
        names = {f"text.{name}": value for name, value in published.items()}
        torch.save(names | image, weights / "open_clip_pytorch_model.bin")
    elif layout == "clip":
        vision = CLIPVisionConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
        config = CLIPConfig(text_config=clip.config.to_dict(), vision_config=vision.to_dict())
        whole = CLIPModel(config)
        whole.text_model.load_state_dict(clip.state_dict())
        weights = tmp_path / "whole"
        whole.save_pretrained(weights)
        directory = weights
    else:
        weights = directory / "model.safetensors"
    expected = build(directory if layout != "clip" else tmp_path / "clip", tmp_path / "clip")
    tolerance = 1e-3 if layout == "half" else 0.0
    loaded = build(directory, weights).state_dict()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(loaded[name], value, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize(("num_positions", "kept"), [(8, 8), (12, 12)])
def test_shorter_texts_have_the_first_positions(
    directory: Path, clip: CLIPTextModel, num_positions: int, kept: int
) -> None:
    table = build(directory, directory, num_positions).clip.position_embedding
    expected = openai_names(clip)["positional_embedding"]
    assert torch.equal(table, expected[:kept])


def test_longer_texts_have_interpolated_positions(directory: Path, clip: CLIPTextModel) -> None:
    table = build(directory, directory, 40).clip.position_embedding
    theirs = openai_names(clip)["positional_embedding"]
    for i in range(40):
        place = min(max((i + 0.5) * 12 / 40 - 0.5, 0), 11)
        low = math.floor(place)
        high = min(low + 1, 11)
        expected = theirs[low] + (place - low) * (theirs[high] - theirs[low])
        torch.testing.assert_close(table[i], expected)


def damaged(weights: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    if kind == "missing layer":
        return {name: value for name, value in weights.items() if ".1." not in name}
    if kind == "other width":
        return weights | {"ln_final.bias": torch.zeros(8)}
    return weights | {"text.cls_emb": torch.zeros(8)}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing layer", r"missing:\n(.*\n)*  layers\.1\.query\.\{bias, weight\}"),
        ("other width", r"of another size or type:\n  final_norm\.bias"),
        ("unknown", r"weights\.pt.*not weights of CLIP's text encoder:\n.*text\.cls_emb"),
    ],
)
def test_weights_that_do_not_fit_are_listed(
    kind: str, message: str, clip: CLIPTextModel, directory: Path, tmp_path: Path
) -> None:
    torch.save(damaged(openai_names(clip), kind), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=message):
        build(directory, tmp_path / "weights.pt")


def test_missing_weights_are_named(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no_such.pt.*MODEL.LANGUAGE_BACKBONE.WEIGHTS"):
        build(directory, tmp_path / "no_such.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"have none of model\.safetensors"):
        build(directory, tmp_path / "empty")
    with pytest.raises(ValueError, match="has the model_type None, not that of a CLIP"):
        build(tmp_path / "empty")


def test_a_bert_is_rejected(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'bert', not that of a CLIP.*BertLanguageBackbone"):
        build(tmp_path)


def test_a_vocabulary_alone_has_the_sizes_of_clips_vit_b() -> None:
    with torch.device("meta"):
        clip = build_clip(model=vocabulary_directory(), weights="", num_positions=256)
    assert clip.token_embedding.weight.shape == (49_408, 512)
    assert clip.position_embedding.shape == (256, 512)
    assert (len(clip.layers), clip.layers[0].num_heads) == (12, 8)
    assert clip.layers[0].ffn_in.out_features == 2048
    assert {m.eps for m in clip.modules() if isinstance(m, nn.LayerNorm)} == {1e-12}


def clip_cfg(*opts: Any) -> CfgNode:
    return tiny_cfg("MODEL.LANGUAGE_BACKBONE.MODEL", tiny_clip_directory(), *CLIP_OPTS, *opts)


@pytest.mark.parametrize("freeze", [False, True])
def test_a_training_step_moves_the_encoder_unless_it_is_frozen(freeze: bool) -> None:
    opts = ("MODEL.LANGUAGE_BACKBONE.FREEZE", freeze, "MODEL.MLM.WEIGHT", 1.0)
    model = tiny_model("MODEL.LANGUAGE_BACKBONE.MODEL", tiny_clip_directory(), *CLIP_OPTS, *opts)
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = build_optimizer(clip_cfg(*opts), model)
    example = training_input([[4, 4, 40, 40]], [0], classes=["cat", "red dog"])
    losses = model.train()([example])
    assert losses["loss_mlm"].isfinite()
    sum(losses.values()).backward()
    optimizer.step()
    moved = {name for name, value in model.named_parameters() if not value.equal(before[name])}
    encoder = {name for name in before if name.startswith("language_backbone.clip.")}
    # The bias of keys does not change a softmax.
    encoder = {name for name in encoder if "key.bias" not in name}
    assert encoder - moved == (encoder if freeze else set())
    assert "fused_head.blocks.0.language_layer.ffn_in.weight" in moved


def test_only_frozen_weights_with_a_source_are_excluded_from_checkpoints(directory: Path) -> None:
    for freeze in (False, True):
        source = ("MODEL.LANGUAGE_BACKBONE.MODEL", str(directory))
        weights = ("MODEL.LANGUAGE_BACKBONE.WEIGHTS", str(directory), "MODEL.PROMPT.MAX_TOKENS", 12)
        freezing = ("MODEL.LANGUAGE_BACKBONE.FREEZE", freeze)
        backbone = build_language_backbone(tiny_cfg(*CLIP_OPTS, *source, *weights, *freezing))
        assert backbone.checkpoint_excluded == (("clip.",) if freeze else ())


def test_the_model_detects_answers_and_generates_captions() -> None:
    directory = ("MODEL.LANGUAGE_BACKBONE.MODEL", tiny_clip_directory())
    model = tiny_model(*directory, *CLIP_OPTS, *TEXT_TASKS, *CONFIDENT)
    image = {"image": random_image()}
    detected, answered, described = model(
        [{**image, "classes": ["cat", "日本語"]}, question_input(), {**image, "describe": True}]
    )
    assert len(detected["instances"]) > 0
    assert answered["answer"] in ANSWERS
    assert isinstance(described["caption"], str)
