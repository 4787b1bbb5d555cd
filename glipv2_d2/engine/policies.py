"""Fine-tuning policies: which parts of a trained model learn on, and what is put beside them.

A *policy* is a function of ``TUNING_REGISTRY`` that ``MODEL.TUNING.NAME`` names. The released GLIP
calls them SOLVER.TUNING_HIGHLEVEL_OVERRIDE (GLIP spec 17).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils.registry import Registry
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.engine.param_groups import LANGUAGE_BACKBONE, TEXT_HEADS
from glipv2_d2.modeling.generation.kv_cache import KVCache
from glipv2_d2.structures import TextFeatures, TokenBatch

TUNING_REGISTRY = Registry("TUNING")
TUNING_REGISTRY.__doc__ = """
Policies: ``obj(cfg, model)`` gets a built model with the weights of its base and says by
``requires_grad`` which parameters learn. It may put new parts into the model, under new names, or
wrap parts of it. What the model computes is to stay the same until something has learned.
"""

# What turns features into answers: the released code's list (GLIP spec 17), in our names.
PROBED = (
    "proposal_generator.bbox_pred.",
    "proposal_generator.centerness.",
    "proposal_generator.region_word.",
)

# What tells things apart that one phrase fits.
COMPARISON = "proposal_generator.comparison."

# Masks.
ROI_HEADS = "roi_heads."

# Layers of the fusion whose matrices are regrouped and never called (modeling.fusion.bi_attention):
# what peft puts around them would be computed by nobody.
_NEVER_CALLED = ("visual_query", "visual_value", "visual_out")


def apply_policy(cfg: CfgNode, model: nn.Module) -> None:
    """Prepare ``model`` as ``MODEL.TUNING.NAME`` says, in place.

    Raises:
        ValueError: there is no such policy, or it finds nothing to train in this model.
    """
    name = cfg.MODEL.TUNING.NAME
    if name not in TUNING_REGISTRY:
        raise ValueError(f"MODEL.TUNING.NAME is {name!r}; use one of {policy_names()}")
    TUNING_REGISTRY.get(name)(cfg, model)


def policy_names() -> list[str]:
    """The names that ``MODEL.TUNING.NAME`` may have."""
    return sorted(name for name, _ in TUNING_REGISTRY)


@TUNING_REGISTRY.register()
def full(_cfg: CfgNode, model: nn.Module) -> None:
    """All learns that the config does not freeze."""


@TUNING_REGISTRY.register()
def linear_probe(_cfg: CfgNode, model: nn.Module) -> None:
    """Only the last layers learn: boxes, centerness, region-word scores (GLIP paper, E.4)."""
    train_only(model, PROBED, hint="it needs MODEL.PROPOSAL_GENERATOR.NAME GroundingRPN")


@TUNING_REGISTRY.register()
def mask_heads(_cfg: CfgNode, model: nn.Module) -> None:
    """Only masks are learned, on a trunk that stays as it is (our choice, for a first phase)."""
    train_only(model, (ROI_HEADS,), hint="set MODEL.MASK_ON to True")
    _hide_no_words(model)


@TUNING_REGISTRY.register()
def comparison(_cfg: CfgNode, model: nn.Module) -> None:
    """Only which place and size a phrase means is learned: "the left apple" (our choice)."""
    hint = "set MODEL.PROPOSAL_GENERATOR.NAME to ComparingGroundingRPN"
    train_only(model, (COMPARISON,), hint=hint)
    _hide_no_words(model)


@TUNING_REGISTRY.register()
def text_heads(_cfg: CfgNode, model: nn.Module) -> None:
    """Only answers and captions are learned, on a trunk that stays as it is (our choice)."""
    hint = "set MODEL.ANSWER.WEIGHT or MODEL.CAPTION.WEIGHT"
    train_only(model, TEXT_HEADS, hint=hint)
    _hide_no_words(model)


def _hide_no_words(model: nn.Module) -> None:
    # With nobody to learn from the guesses, hidden words would only be missing.
    model.masked_language = None  # type: ignore[assignment]


@TUNING_REGISTRY.register()
def text_only(_cfg: CfgNode, model: nn.Module) -> None:
    """Only the text encoder learns (the released code's language_prompt_v1)."""
    train_only(model, (LANGUAGE_BACKBONE,), hint="set MODEL.LANGUAGE_BACKBONE.FREEZE to False")


@TUNING_REGISTRY.register()
def prompt(cfg: CfgNode, model: nn.Module) -> None:
    """Only a table learns that is added to the encoded text (GLIP paper, 5.2)."""
    model.requires_grad_(False)
    language_backbone: Any = model.language_backbone
    model.language_backbone = PromptedLanguageBackbone(
        inner=language_backbone, num_rows=cfg.MODEL.TUNING.PROMPT.NUM_ROWS
    ).to(cfg.MODEL.DEVICE)


@TUNING_REGISTRY.register()
def lora(cfg: CfgNode, model: nn.Module) -> None:
    """Only products of two thin matrices learn, beside attention's (LoRA, arXiv 2106.09685).

    Not in the GLIP papers. The text encoder stays as it is: which words are alike is what a few
    images teach worst.
    """
    settings = cfg.MODEL.TUNING.LORA
    add_adapters(
        model,
        rank=settings.RANK,
        alpha=settings.ALPHA,
        dropout=settings.DROPOUT,
        targets=settings.TARGETS,
    )


def train_only(model: nn.Module, prefixes: Sequence[str], *, hint: str) -> None:
    """Freeze what does not begin with one of ``prefixes``; what the config froze stays frozen.

    Args:
        hint: what the user can do where nothing is left.
    """
    for name, parameter in model.named_parameters():
        if not name.startswith(tuple(prefixes)):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"MODEL.TUNING.NAME leaves nothing to train: it trains {', '.join(prefixes)}, which "
            f"this model does not have or its config freezes; {hint}, or use another policy"
        )


class PromptedLanguageBackbone(nn.Module):
    """A language backbone with a learned vector added to each token's features, by position.

    Zeros at first, as in the released code's language_prompt_v2 (GLIP spec 17). A position means
    the same only as long as the prompt is the same: train and ask with the same names in the same
    order.
    """

    def __init__(self, *, inner: Any, num_rows: int) -> None:
        """
        Args:
            inner: the language backbone; called and described as one of LANGUAGE_BACKBONE_REGISTRY.
            num_rows: tokens that get a vector; those behind stay as they are.
        """
        super().__init__()
        self.inner = inner
        self.width = inner.width
        self.vocab_size = inner.vocab_size
        self.table = nn.Parameter(torch.zeros(num_rows, inner.width))

    def forward(self, tokens: TokenBatch) -> TextFeatures:
        """(N, T) tokens -> (N, T, D) features."""
        language = self.inner(tokens)
        return replace(language, hidden=language.hidden + self._rows(0, language.hidden.shape[1]))

    def read_on(
        self, input_ids: Tensor, past: Sequence[KVCache] | None = None
    ) -> tuple[Tensor, list[KVCache]]:
        start = past[0].num_tokens if past else 0
        hidden, kept = self.inner.read_on(input_ids, past)
        return hidden + self._rows(start, hidden.shape[1]), kept

    def _rows(self, start: int, num_tokens: int) -> Tensor:
        """(num_tokens, D) of the table from a position on; zeros behind its end."""
        rows = self.table[start : start + num_tokens]
        return F.pad(rows, (0, 0, 0, num_tokens - len(rows)))


def add_adapters(
    model: nn.Module, *, rank: int, alpha: int, dropout: float, targets: Sequence[str]
) -> None:
    """Let peft put low-rank adapters beside linear layers, and freeze everything else.

    Args:
        rank: of the products.
        alpha: their factor is ``alpha / rank``.
        dropout: on what the adapters read.
        targets: own names of the layers, e.g. "query". Frozen layers and those of the text encoder
            are passed over.

    Raises:
        ValueError: no layer has such a name, an adapter would have no effect, or peft is missing.
    """
    if never_called := sorted(set(targets) & set(_NEVER_CALLED)):
        raise ValueError(
            f"MODEL.TUNING.LORA.TARGETS names {never_called}, whose matrices the fusion reads "
            "without calling the layers: an adapter there has no effect. Leave them out"
        )
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name.rpartition(".")[2] in targets
        and module.weight.requires_grad
        and not name.startswith(LANGUAGE_BACKBONE)
    ]
    if not names:
        raise ValueError(
            "MODEL.TUNING.LORA.TARGETS: outside of the text encoder no linear layer that is not "
            f"frozen is called one of {list(targets)}"
        )
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError("MODEL.TUNING.NAME lora needs the package peft: pip install peft") from (
            error
        )
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names)
    inject_adapter_in_model(config, model)


class FrozenPartsRest(HookBase):
    """Keeps what a policy has frozen in evaluation mode while the rest trains.

    Without it a frozen part would still drop activations at random, and batch norm would move
    its statistics. Our choice.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parts = frozen_parts(model)

    def before_step(self) -> None:
        # Again and again: an evaluation ends with model.train().
        for part in self.parts:
            part.eval()


def frozen_parts(module: nn.Module) -> list[nn.Module]:
    """The largest parts that have parameters, none of which learns."""
    requires_grad = [parameter.requires_grad for parameter in module.parameters()]
    if not requires_grad:
        return []
    if not any(requires_grad):
        return [module]
    return [part for child in module.children() for part in frozen_parts(child)]
