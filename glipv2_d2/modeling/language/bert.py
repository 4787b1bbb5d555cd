"""BERT as the language backbone (GLIP spec 5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
import transformers
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from transformers.utils import logging as hf_logging

from glipv2_d2.modeling.generation.kv_cache import KVCache
from glipv2_d2.modeling.language.build import LANGUAGE_BACKBONE_REGISTRY
from glipv2_d2.modeling.language.left_to_right import read_left_to_right
from glipv2_d2.structures import TextFeatures, TokenBatch
from glipv2_d2.text.tokenizer import resolve_model

INSTALLED_TO_CANONICAL: Mapping[str, str] = {}
"""Parts of parameter names that the installed transformers spells otherwise than the published BERT
and GLIP files: its spelling -> theirs. Up to transformers 5 the two agree."""

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
    """The names of BERT's parameters in published files, which are also those of our own files."""
    names = [f"embeddings.{name}" for name in _EMBEDDING_NAMES]
    for layer in range(num_layers):
        for module in _LAYER_MODULES:
            names += [f"encoder.layer.{layer}.{module}.{kind}" for kind in ("weight", "bias")]
    return names


def installed_bert_names(bert: nn.Module, num_layers: int) -> dict[str, str]:
    """Canonical name -> name in this module, for each parameter of it.

    Raises:
        RuntimeError: a canonical name has no home in the module or the other way round.
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
            f"transformers {transformers.__version__} names BERT's parameters in a way that is not "
            f"known here. No home for {sorted(expected - installed.keys())}, unknown "
            f"{sorted(installed.keys() - expected)}. Install another transformers, or add the new "
            "spelling to glipv2_d2.modeling.language.bert.INSTALLED_TO_CANONICAL"
        )
    return installed


@LANGUAGE_BACKBONE_REGISTRY.register()
class BertLanguageBackbone(nn.Module):
    """The last layer of a BERT without pooler, read with its padding masked.

    In state dicts the parameters are ``bert.<name in the published BERT files>``, whatever the
    installed transformers calls them, and there are no buffers.

    Attributes:
        width: D, the width of the features.
        vocab_size: ids that it has embeddings for.
        checkpoint_excluded: prefixes of names that a checkpoint need not hold, because these
            weights are frozen and come from elsewhere.
    """

    @configurable
    def __init__(
        self, *, bert: BertModel, freeze: bool, checkpoint_excluded: Sequence[str] = ()
    ) -> None:
        """
        Args:
            bert: the encoder.
            freeze: no gradients, and eval mode (no dropout) also in training.
            checkpoint_excluded: see the attribute.
        """
        super().__init__()
        self.bert = bert
        self.width: int = bert.config.hidden_size
        self.vocab_size: int = bert.config.vocab_size
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
                f"MODEL.PROMPT.MAX_TOKENS is {max_tokens}, but {language.MODEL!r} reads at most "
                f"{max_positions} tokens; lower it"
            )
        return {
            "bert": bert,
            "freeze": language.FREEZE,
            "checkpoint_excluded": ("bert.",) if language.FREEZE and language.WEIGHTS else (),
        }

    @property
    def word_embeddings(self) -> nn.Embedding:
        """(vocabulary, D) the vectors that words enter with."""
        embeddings = self.bert.get_input_embeddings()
        assert isinstance(embeddings, nn.Embedding)
        return embeddings

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self.freeze)

    def forward(self, tokens: TokenBatch) -> TextFeatures:
        """(N, T) tokens -> (N, T, D) features."""
        if tokens.causal:
            hidden, _ = self.read_on(tokens.input_ids)
        else:
            hidden = self.encode(tokens.input_ids, tokens.mask)
        return TextFeatures(hidden, tokens.mask, tokens.causal)

    def encode(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """(N, T) ids and bool mask -> (N, T, D) of the last layer. Padding has no meaning."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            output = self.bert(input_ids=input_ids, attention_mask=mask.long())
        return output.last_hidden_state

    def read_on(
        self, input_ids: Tensor, past: Sequence[KVCache] | None = None
    ) -> tuple[Tensor, list[KVCache]]:
        """Read from left to right, see :func:`read_left_to_right`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            return read_left_to_right(self.bert, input_ids, past)


def build_bert(*, model: str, weights: str) -> BertModel:
    """Build a BERT of ``model``'s sizes.

    Args:
        model: where its config.json is: a local directory, "package:NAME", or a hub name.
        weights: "" for random ones (no hub is asked), else where they are, named in the same way.

    Raises:
        ValueError: nothing usable is there; names what was asked for and what to do.
    """
    config = _load_bert_config(model)
    if not weights:
        return BertModel(config, add_pooling_layer=False)
    # The bundled models are sizes and vocabularies without weights: those are for the hub to give.
    source = resolve_model(weights) if weights.startswith("package:") else weights
    try:
        with _quiet_loading():
            loaded: Any = BertModel.from_pretrained(
                source, config=config, add_pooling_layer=False, output_loading_info=True
            )
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"no BERT weights of {model!r}'s sizes could be read from "
            f"MODEL.LANGUAGE_BACKBONE.WEIGHTS {weights!r}: {error}. {_REMEDY}, or leave it empty "
            "when MODEL.WEIGHTS holds the language backbone too"
        ) from error
    bert, report = loaded
    if report["missing_keys"]:
        raise ValueError(
            f"MODEL.LANGUAGE_BACKBONE.WEIGHTS {weights!r} has no {sorted(report['missing_keys'])}: "
            f"it is no BERT of {model!r}'s sizes. {_REMEDY}"
        )
    return bert


def _load_bert_config(model: str) -> BertConfig:
    try:
        settings, _ = BertConfig.get_config_dict(resolve_model(model))
    except OSError as error:
        raise ValueError(
            f"the sizes of MODEL.LANGUAGE_BACKBONE.MODEL {model!r} could not be read: {error}. "
            f"{_REMEDY}"
        ) from error
    # The first BERTs were published without their type.
    model_type = settings.get("model_type", "bert")
    if model_type != "bert":
        raise ValueError(
            f"MODEL.LANGUAGE_BACKBONE.MODEL {model!r} is a {model_type}, not a BERT. Choose a "
            "BERT, or register a language backbone for it in LANGUAGE_BACKBONE_REGISTRY"
        )
    return BertConfig.from_dict(settings)


_REMEDY = (
    "Give a local directory, an installed package as 'package:NAME', or a name that the Hugging "
    "Face hub can be asked for from this machine"
)


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Without transformers' list of unused weights (pooler, heads); what is missing we check."""
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
    """After state_dict(): the module's names become canonical ones; buffers are left out."""
    prefix += "bert."
    values = {key: state_dict.pop(key) for key in list(state_dict) if key.startswith(prefix)}
    for canonical, installed in backbone._installed_names.items():
        state_dict[prefix + canonical] = values[prefix + installed]


def _from_canonical_names(
    backbone: BertLanguageBackbone, state_dict: dict[str, Any], prefix: str, *_: Any
) -> None:
    """Before load_state_dict(): canonical names become the module's."""
    prefix += "bert."
    values = {
        installed: state_dict.pop(prefix + canonical)
        for canonical, installed in backbone._installed_names.items()
        if prefix + canonical in state_dict
    }
    state_dict.update({prefix + installed: value for installed, value in values.items()})
