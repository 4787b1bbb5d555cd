"""CLIP's text encoder as the language backbone, without its causal mask.

Source: the encoder in GLIP's code (clip_model.py), which no released model uses. R, N: texts. T:
tokens of the longest. D: width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from transformers import CLIPTextConfig
from transformers.utils import cached_file

from glipv2_d2.checkpoint.clip_names import POSITIONS, from_clip, resize_positions
from glipv2_d2.checkpoint.file_reading import read_checkpoint
from glipv2_d2.checkpoint.load_report import compare, list_names
from glipv2_d2.config import Configurable, configurable
from glipv2_d2.modeling.fusion.language_layer import LAYER_NORM_EPS, ClipLanguageLayer
from glipv2_d2.modeling.generation.kv_cache import KVCache
from glipv2_d2.modeling.language.base import LanguageBackbone
from glipv2_d2.modeling.language.build import LANGUAGE_BACKBONE_REGISTRY
from glipv2_d2.structures import TextFeatures, TokenBatch
from glipv2_d2.text.clip_vocabulary import VOCABULARY_FILE
from glipv2_d2.text.model_files import resolve_model, resolve_weights

_WEIGHTS_KEY = "MODEL.LANGUAGE_BACKBONE.WEIGHTS"
_MODEL_TYPES = ("clip", "clip_text_model")
# Of transformers, then of open_clip.
_WEIGHT_FILES = (
    *("model.safetensors", "pytorch_model.bin"),
    *("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
)
_INIT_STD = 0.02


class ClipTextEncoder(nn.Module):
    """Token and position embeddings, pre-norm layers and a last layer norm."""

    def __init__(self, config: CLIPTextConfig, num_positions: int) -> None:
        """
        Args:
            config: the sizes, the activation and the eps of layer norms. CLIP has no dropout.
            num_positions: tokens of the longest text.

        Raises:
            ValueError: the width is not a multiple of the number of heads.
        """
        super().__init__()
        width, eps = config.hidden_size, cast("float", config.layer_norm_eps)
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.position_embedding = nn.Parameter(torch.empty(num_positions, width))
        self.layers = nn.ModuleList(
            ClipLanguageLayer(
                dim=width,
                num_heads=config.num_attention_heads,
                ffn_dim=config.intermediate_size,
                activation=config.hidden_act,
                eps=eps,
            )
            for _ in range(config.num_hidden_layers)
        )
        self.final_norm = nn.LayerNorm(width, eps=eps)
        for table in (self.token_embedding.weight, self.position_embedding):
            nn.init.trunc_normal_(table, std=_INIT_STD)

    def embed(self, input_ids: Tensor, first_position: int = 0) -> Tensor:
        """(N, T) ids, the first at a position of the text -> (N, T, D)."""
        end = first_position + input_ids.shape[1]
        if end > len(self.position_embedding):
            raise ValueError(
                f"a text has {end} tokens, but there are {len(self.position_embedding)} positions: "
                "shorten it, or raise MODEL.PROMPT.MAX_TOKENS"
            )
        return self.token_embedding(input_ids) + self.position_embedding[first_position:end]

    def forward(self, tokens: TokenBatch) -> TextFeatures:
        """(N, T) tokens -> (N, T, D) features. Padding is masked."""
        text = TextFeatures(self.embed(tokens.input_ids), tokens.mask, tokens.causal)
        for layer in self.layers:
            text = layer(text)
        return TextFeatures(self.final_norm(text.hidden), tokens.mask, tokens.causal)

    def decode_step(
        self, input_ids: Tensor, cache: Sequence[KVCache] | None
    ) -> tuple[Tensor, list[KVCache]]:
        """Encode further tokens causally; see :meth:`LanguageBackbone.decode_step`."""
        hidden = self.embed(input_ids, cache[0].num_tokens if cache else 0)
        new_cache = []
        for index, layer in enumerate(cast("list[ClipLanguageLayer]", list(self.layers))):
            hidden, layer_cache = layer.decode_step(hidden, cache[index] if cache else None)
            new_cache.append(layer_cache)
        return self.final_norm(hidden), new_cache


@LANGUAGE_BACKBONE_REGISTRY.register()
class ClipLanguageBackbone(LanguageBackbone, Configurable):
    """Hidden states of CLIP's text encoder, after its last layer norm.

    Tokens attend to both sides, as GLIP's code does with weights that CLIP trained causally; causal
    texts are encoded as by CLIP. The number of positions is MODEL.PROMPT.MAX_TOKENS: weights of
    fewer are interpolated.
    """

    config_keys: ClassVar[dict[str, str]] = {
        "model": "MODEL.LANGUAGE_BACKBONE.MODEL",
        "weights": _WEIGHTS_KEY,
        "max_tokens": "MODEL.PROMPT.MAX_TOKENS",
    }

    @configurable
    def __init__(
        self, *, clip: ClipTextEncoder, freeze: bool, checkpoint_excluded: Sequence[str] = ()
    ) -> None:
        """
        Args:
            clip: the encoder.
            freeze: no gradients, and eval mode during training, too.
            checkpoint_excluded: see :class:`LanguageBackbone`.
        """
        super().__init__()
        self.clip = clip
        self.vocab_size, self.width = clip.token_embedding.weight.shape
        self.freeze = freeze
        self.checkpoint_excluded = tuple(checkpoint_excluded)
        if freeze:
            self.requires_grad_(False)
            self.eval()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        language = cfg.MODEL.LANGUAGE_BACKBONE
        clip = build_clip(
            model=language.MODEL,
            weights=language.WEIGHTS,
            num_positions=cfg.MODEL.PROMPT.MAX_TOKENS,
        )
        return {
            "clip": clip,
            "freeze": language.FREEZE,
            "checkpoint_excluded": ("clip.",) if language.FREEZE and language.WEIGHTS else (),
        }

    @property
    def word_embeddings(self) -> nn.Embedding:
        """(vocab_size, D) input embeddings."""
        return self.clip.token_embedding

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self.freeze)

    def forward(self, tokens: TokenBatch) -> TextFeatures:
        """Encode (N, T) tokens into (N, T, D) features."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            return self.clip(tokens)

    def decode_step(
        self, input_ids: Tensor, cache: Sequence[KVCache] | None = None
    ) -> tuple[Tensor, list[KVCache]]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            return self.clip.decode_step(input_ids, cache)


def build_clip(*, model: str, weights: str, num_positions: int) -> ClipTextEncoder:
    """Build a text encoder with the sizes of ``model``.

    Args:
        model: source of config.json: a local directory, "package:NAME", or a hub name. A directory
            with CLIP's vocabulary and no config.json has the sizes of CLIP's ViT-B models.
        weights: "" for random ones (without network access); else a local file, or a source of
            files as above. CLIP's own files, open_clip's, GLIP's and those of transformers.
        num_positions: tokens of the longest text.

    Raises:
        FileNotFoundError: the file of weights does not exist.
        ValueError: a source is missing, is not a CLIP, or has weights of other sizes.
    """
    clip = ClipTextEncoder(_load_clip_config(model), num_positions)
    if weights:
        path = _weight_file(weights)
        state_dict = read_checkpoint(path, key=_WEIGHTS_KEY)["model"]
        try:
            renamed, _ = from_clip(state_dict)
        except ValueError as error:
            raise ValueError(f"weights '{path}': {error}\n{_REMEDY}") from error
        _load(clip, renamed, path)
    return clip


def _load(clip: ClipTextEncoder, state_dict: dict[str, Tensor], path: Path) -> None:
    positions = state_dict.get(POSITIONS)
    if positions is not None and positions.dim() == 2:
        num_positions = len(clip.position_embedding)
        state_dict = {**state_dict, POSITIONS: resize_positions(positions, num_positions)}
    mismatch = compare(state_dict, clip.state_dict())
    if mismatch:
        defects = {
            "missing": mismatch.missing,
            "unknown": mismatch.unknown,
            "of another size or type": sorted(mismatch.shapes.keys() | mismatch.dtypes.keys()),
        }
        lines = [f"{kind}:\n" + "\n".join(list_names(n)) for kind, n in defects.items() if n]
        raise ValueError(
            f"weights '{path}' do not have the sizes of MODEL.LANGUAGE_BACKBONE.MODEL. "
            + "\n".join([*lines, _REMEDY])
        )
    clip.load_state_dict(state_dict)


def _load_clip_config(model: str) -> CLIPTextConfig:
    source = resolve_model(model)
    has_vocabulary = (Path(source) / VOCABULARY_FILE).is_file()
    if has_vocabulary and not (Path(source) / "config.json").is_file():
        return CLIPTextConfig(layer_norm_eps=LAYER_NORM_EPS)
    try:
        settings, _ = CLIPTextConfig.get_config_dict(source)
    except OSError as error:
        raise ValueError(
            f"the config of language model {model!r} could not be loaded: {error}. {_REMEDY}"
        ) from error
    model_type = settings.get("model_type")
    if model_type not in _MODEL_TYPES:
        raise ValueError(
            f"language model {model!r} has the model_type {model_type!r}, not that of a CLIP. "
            "Choose a CLIP, or another MODEL.LANGUAGE_BACKBONE.NAME, such as BertLanguageBackbone"
        )
    # Of a CLIP the sizes of its text encoder.
    return CLIPTextConfig.from_dict(settings.get("text_config") or settings)


def _weight_file(weights: str) -> Path:
    source = resolve_weights(weights)
    if Path(source).is_file() or Path(source).suffix in (".pt", ".pth", ".bin", ".safetensors"):
        return Path(source)
    for name in _WEIGHT_FILES:
        try:
            found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        except OSError as error:
            raise ValueError(
                f"weights {weights!r} could not be loaded: {error}. {_REMEDY}"
            ) from error
        if found is not None:
            return Path(found)
    raise ValueError(f"weights {weights!r} have none of {', '.join(_WEIGHT_FILES)}. {_REMEDY}")


_REMEDY = (
    "Pass a CLIP: a local directory, 'package:NAME', or a model name of the Hugging Face hub such "
    "as openai/clip-vit-base-patch16 (which needs network access)"
)
