"""BERT as the language backbone (glip_reference.md 5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
import transformers
from detectron2.config import CfgNode
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from transformers.utils import logging as hf_logging

from glipv2_d2.config import Configurable, configurable
from glipv2_d2.modeling.generation.kv_cache import KVCache
from glipv2_d2.modeling.language.base import LanguageBackbone
from glipv2_d2.modeling.language.build import LANGUAGE_BACKBONE_REGISTRY
from glipv2_d2.modeling.language.causal_bert import encode_causal
from glipv2_d2.structures import TextFeatures, TokenBatch
from glipv2_d2.text.model_files import resolve_model, resolve_weights
from glipv2_d2.weight_files import require_state_dict

INSTALLED_TO_CANONICAL: Mapping[str, str] = {}
"""Parts of parameter names that the installed transformers changed: installed -> published (in
BERT's and GLIP's files). Up to transformers 5 there are none."""

_EMBEDDING_NAMES = (
    "word_embeddings.weight",
    "position_embeddings.weight",
    "token_type_embeddings.weight",
    "LayerNorm.weight",
    "LayerNorm.bias",
)
_LAYER_MODULES = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)


def canonical_bert_names(num_layers: int) -> list[str]:
    """Parameter names of a BERT in published files; our checkpoints use the same."""
    names = [f"embeddings.{name}" for name in _EMBEDDING_NAMES]
    for layer in range(num_layers):
        for module in _LAYER_MODULES:
            names += [f"encoder.layer.{layer}.{module}.{kind}" for kind in ("weight", "bias")]
    return names


def installed_bert_names(bert: nn.Module, num_layers: int) -> dict[str, str]:
    """Map each canonical parameter name to its name in this module.

    Raises:
        RuntimeError: the module lacks a canonical name, or has a parameter without one.
    """
    installed = {}
    for name, _ in bert.named_parameters():
        canonical = name
        for spelling, published in INSTALLED_TO_CANONICAL.items():
            canonical = canonical.replace(spelling, published)
        installed[canonical] = name
    expected = set(canonical_bert_names(num_layers))
    if installed.keys() != expected:
        raise RuntimeError(
            f"transformers {transformers.__version__} uses unknown names for BERT's parameters: "
            f"missing {sorted(expected - installed.keys())}, unexpected "
            f"{sorted(installed.keys() - expected)}. Install another version of transformers, or "
            "add the new names to glipv2_d2.modeling.language.bert.INSTALLED_TO_CANONICAL"
        )
    return installed


@LANGUAGE_BACKBONE_REGISTRY.register()
class BertLanguageBackbone(LanguageBackbone, Configurable):
    """Hidden states of the last layer of a BERT without a pooler.

    In state dicts the parameters are ``bert.<name in the published BERT files>``, independent of
    the installed transformers, and there are no buffers.
    """

    export_unit: ClassVar[str] = "prompt"
    config_keys: ClassVar[dict[str, str]] = {
        "model": "MODEL.LANGUAGE_BACKBONE.MODEL",
        "weights": "MODEL.LANGUAGE_BACKBONE.WEIGHTS",
        "max_tokens": "MODEL.PROMPT.MAX_TOKENS",
    }

    @configurable
    def __init__(
        self, *, bert: BertModel, freeze: bool, checkpoint_excluded: Sequence[str] = ()
    ) -> None:
        """
        Args:
            bert: the encoder.
            freeze: no gradients, and eval mode (no dropout) during training, too.
            checkpoint_excluded: see :class:`LanguageBackbone`.
        """
        super().__init__()
        self.bert = bert
        self.width = bert.config.hidden_size
        self.vocab_size = bert.config.vocab_size
        self.freeze = freeze
        self.checkpoint_excluded = tuple(checkpoint_excluded)
        self._installed_names = installed_bert_names(bert, bert.config.num_hidden_layers)
        self.register_state_dict_post_hook(_to_canonical_names)
        self.register_load_state_dict_pre_hook(_from_canonical_names)
        if freeze:
            self.requires_grad_(False)
            self.eval()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        language = cfg.MODEL.LANGUAGE_BACKBONE
        bert = build_bert(model=language.MODEL, weights=language.WEIGHTS)
        max_tokens, max_positions = cfg.MODEL.PROMPT.MAX_TOKENS, bert.config.max_position_embeddings
        if max_tokens > max_positions:
            raise ValueError(
                f"max_tokens is {max_tokens}, but {language.MODEL!r} encodes at most "
                f"{max_positions} tokens: lower it"
            )
        return {
            "bert": bert,
            "freeze": language.FREEZE,
            "checkpoint_excluded": ("bert.",) if language.FREEZE and language.WEIGHTS else (),
        }

    @property
    def word_embeddings(self) -> nn.Embedding:
        """(vocab_size, D) input embeddings."""
        embeddings = self.bert.get_input_embeddings()
        assert isinstance(embeddings, nn.Embedding)
        return embeddings

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self.freeze)

    def forward(self, tokens: TokenBatch) -> TextFeatures:
        """Encode (N, T) tokens into (N, T, D) features."""
        if tokens.causal:
            hidden, _ = self.decode_step(tokens.input_ids)
        else:
            hidden = self.encode(tokens.input_ids, tokens.mask)
        return TextFeatures(hidden, tokens.mask, tokens.causal)

    def encode(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Encode (N, T) ids, of which ``mask`` is True on valid ones, into (N, T, D).

        Padding has undefined features.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            output = self.bert(input_ids=input_ids, attention_mask=mask.long())
        return output.last_hidden_state

    def decode_step(
        self, input_ids: Tensor, cache: Sequence[KVCache] | None = None
    ) -> tuple[Tensor, list[KVCache]]:
        """Encode further tokens causally; see :func:`encode_causal`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            return encode_causal(self.bert, input_ids, cache)


def build_bert(*, model: str, weights: str) -> BertModel:
    """Build a BERT with the sizes of ``model``.

    Args:
        model: source of config.json: a local directory, "package:NAME", or a hub name.
        weights: "" for random ones (without network access), else their source, in the same form.

    Raises:
        ValueError: a source is missing, is not a BERT, or has weights of other sizes.
    """
    config = _load_bert_config(model)
    if not weights:
        return BertModel(config, add_pooling_layer=False)
    source = resolve_weights(weights)
    try:
        with _quiet_loading():
            loaded: Any = BertModel.from_pretrained(
                source, config=config, add_pooling_layer=False, output_loading_info=True
            )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"weights {weights!r} are not BERT weights with the sizes of {model!r}: {error}. "
            f"{_REMEDY}, or leave it empty if the model's checkpoint has the language backbone"
        ) from error
    bert, report = loaded
    if report["missing_keys"]:
        raise ValueError(
            f"weights {weights!r} lack {sorted(report['missing_keys'])}: they are not a BERT with "
            f"the sizes of {model!r}. {_REMEDY}"
        )
    require_state_dict(bert.state_dict(), source, key="MODEL.LANGUAGE_BACKBONE.WEIGHTS")
    return bert


def _load_bert_config(model: str) -> BertConfig:
    try:
        settings, _ = BertConfig.get_config_dict(resolve_model(model))
    except OSError as error:
        raise ValueError(
            f"the config of language model {model!r} could not be loaded: {error}. {_REMEDY}"
        ) from error
    # The first BERTs were published without a model_type.
    model_type = settings.get("model_type", "bert")
    if model_type != "bert":
        raise ValueError(
            f"language model {model!r} is a {model_type}, not a BERT. Choose a BERT, or register a "
            "language backbone for it in LANGUAGE_BACKBONE_REGISTRY"
        )
    return BertConfig.from_dict(settings)


_REMEDY = (
    "Pass a local directory, an installed package as 'package:NAME', or a model name of the "
    "Hugging Face hub (which needs network access)"
)


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Silence transformers' list of unused weights (pooler, heads); we check missing ones."""
    verbosity = hf_logging.get_verbosity()
    progress_bar = hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if progress_bar:
            hf_logging.enable_progress_bar()


def _to_canonical_names(
    backbone: BertLanguageBackbone, state_dict: dict[str, Any], prefix: str, _metadata: Any
) -> None:
    """After state_dict(): rename parameters to their canonical names and drop buffers."""
    prefix += "bert."
    values = {key: state_dict.pop(key) for key in list(state_dict) if key.startswith(prefix)}
    for canonical, installed in backbone._installed_names.items():
        # An excluded encoder is left out.
        if prefix + installed in values:
            state_dict[prefix + canonical] = values[prefix + installed]


def _from_canonical_names(
    backbone: BertLanguageBackbone, state_dict: dict[str, Any], prefix: str, *_: Any
) -> None:
    """Before load_state_dict(): rename canonical names to the module's."""
    prefix += "bert."
    values = {
        installed: state_dict.pop(prefix + canonical)
        for canonical, installed in backbone._installed_names.items()
        if prefix + canonical in state_dict
    }
    state_dict.update({prefix + installed: value for installed, value in values.items()})
