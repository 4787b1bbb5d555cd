"""Fine-tuning policies: which parts of a trained model are updated, and which are added.

A *policy* is a function of ``TUNING_REGISTRY``, selected by ``MODEL.TUNING.NAME``. The released
GLIP has SOLVER.TUNING_HIGHLEVEL_OVERRIDE for it (glip_reference.md 17).
"""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils.registry import Registry
from torch import nn

from glipv2_d2.config import with_config_keys
from glipv2_d2.engine.finetune.prompt_tables import (
    ClassPromptedLanguageBackbone,
    PromptedLanguageBackbone,
)
from glipv2_d2.engine.parameter_prefixes import (
    LANGUAGE_BACKBONE,
    PREDICTION_LAYERS,
    ROI_HEADS,
    TEXT_HEADS,
)
from glipv2_d2.modeling import GLIPv2
from glipv2_d2.modeling.language import LanguageBackbone

TUNING_REGISTRY = Registry("TUNING")
TUNING_REGISTRY.__doc__ = """
Policies: ``obj(cfg, model)`` gets a built model with the weights of its base, and sets
``requires_grad`` of its parameters. It may add modules under new names, or wrap modules. It must
not change the model's outputs before training.
"""

# Fusion layers whose weights are regrouped without calling the layers
# (layers.bi_attention): an adapter around them would never run.
_NEVER_CALLED = ("visual_query", "visual_value", "visual_out")


def apply_policy(cfg: CfgNode, model: nn.Module) -> None:
    """Apply the policy ``MODEL.TUNING.NAME`` to ``model``, in place.

    Raises:
        ValueError: the policy is unknown, or has nothing to train in this model.
    """
    name = cfg.MODEL.TUNING.NAME
    if name not in TUNING_REGISTRY:
        raise ValueError(f"MODEL.TUNING.NAME is {name!r}; use one of {policy_names()}")
    TUNING_REGISTRY.get(name)(cfg, model)


def policy_names() -> list[str]:
    """The registered policies, values of ``MODEL.TUNING.NAME``."""
    return sorted(name for name, _ in TUNING_REGISTRY)


@TUNING_REGISTRY.register()
def full(_cfg: CfgNode, model: nn.Module) -> None:
    """Train everything that the config does not freeze."""


@TUNING_REGISTRY.register()
def linear_probe(_cfg: CfgNode, model: nn.Module) -> None:
    """Train the last layers: boxes, centerness, region-word scores (GLIP paper, E.4)."""
    train_only(model, PREDICTION_LAYERS, hint="it needs MODEL.PROPOSAL_GENERATOR.NAME GroundingRPN")


@TUNING_REGISTRY.register()
def mask_heads(_cfg: CfgNode, model: nn.Module) -> None:
    """Train the mask heads only (our choice, for a first phase)."""
    train_only(model, (ROI_HEADS,), hint="set MODEL.MASK_ON to True")
    disable_word_masking(model)


@TUNING_REGISTRY.register()
def text_heads(_cfg: CfgNode, model: nn.Module) -> None:
    """Train the answer and caption heads only (our choice)."""
    train_only(model, TEXT_HEADS, hint="set MODEL.ANSWER.WEIGHT or MODEL.CAPTION.WEIGHT")
    disable_word_masking(model)


@TUNING_REGISTRY.register()
def text_only(_cfg: CfgNode, model: nn.Module) -> None:
    """Train the text encoder only (the released code's language_prompt_v1)."""
    train_only(model, (LANGUAGE_BACKBONE,), hint="set MODEL.LANGUAGE_BACKBONE.FREEZE to False")


@TUNING_REGISTRY.register()
def prompt(cfg: CfgNode, model: nn.Module) -> None:
    """Train only an embedding table that is added to the text features (GLIP paper, 5.2)."""
    model.requires_grad_(False)
    language_backbone = model.language_backbone
    assert isinstance(language_backbone, LanguageBackbone)
    model.language_backbone = PromptedLanguageBackbone(
        inner=language_backbone, num_rows=cfg.MODEL.TUNING.PROMPT.NUM_ROWS
    ).to(cfg.MODEL.DEVICE)


@TUNING_REGISTRY.register()
def class_prompt(cfg: CfgNode, model: nn.Module) -> None:
    """Train only vectors that are added to the tokens of each class name (our choice)."""
    settings = cfg.MODEL.TUNING.PROMPT
    if not settings.CLASS_NAMES:
        raise ValueError(
            "MODEL.TUNING.NAME class_prompt has no class names: set DATASETS.TRAIN to datasets "
            "with classes, or MODEL.TUNING.PROMPT.CLASS_NAMES"
        )
    model.requires_grad_(False)
    language_backbone = model.language_backbone
    assert isinstance(language_backbone, LanguageBackbone)
    model.language_backbone = ClassPromptedLanguageBackbone(
        inner=language_backbone,
        class_names=settings.CLASS_NAMES,
        tokens_per_name=settings.TOKENS_PER_NAME,
    ).to(cfg.MODEL.DEVICE)


@TUNING_REGISTRY.register()
def lora(cfg: CfgNode, model: nn.Module) -> None:
    """Train low-rank adapters of attention layers only (LoRA, arXiv 2106.09685).

    Not in the GLIP papers. The text encoder gets no adapters: a few images are too little data to
    improve similarities between words.
    """
    settings = cfg.MODEL.TUNING.LORA
    try:
        add_adapters(
            model,
            rank=settings.RANK,
            alpha=settings.ALPHA,
            dropout=settings.DROPOUT,
            targets=settings.TARGETS,
        )
    except ValueError as error:
        raise with_config_keys(error, {"targets": "MODEL.TUNING.LORA.TARGETS"}) from error


def train_only(model: nn.Module, prefixes: Sequence[str], *, hint: str) -> None:
    """Freeze all parameters whose names start with none of ``prefixes``.

    Parameters that the config froze stay frozen.

    Args:
        hint: what the user can change if no parameter is left.

    Raises:
        ValueError: no parameter is left to train.
    """
    for name, parameter in model.named_parameters():
        if not name.startswith(tuple(prefixes)):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"MODEL.TUNING.NAME leaves nothing to train: it trains {', '.join(prefixes)}, which "
            f"this model lacks or its config freezes; {hint}, or use another policy"
        )


def disable_word_masking(model: nn.Module) -> None:
    """Remove L_mlm from a model whose policy does not train it.

    Masking would only remove words from the prompts.
    """
    if isinstance(model, GLIPv2) and "masked_language" in model.loss_heads:
        del model.loss_heads["masked_language"]


def add_adapters(
    model: nn.Module, *, rank: int, alpha: int, dropout: float, targets: Sequence[str]
) -> None:
    """Add low-rank adapters to linear layers with peft, and freeze all other parameters.

    Args:
        rank: of the adapters.
        alpha: the adapters' outputs are scaled by ``alpha / rank``.
        dropout: on the adapters' inputs.
        targets: last parts of layer names, e.g. "query". Frozen layers and those of the text
            encoder are skipped.

    Raises:
        ValueError: no layer matches, an adapter would have no effect, or peft is not installed.
    """
    if never_called := sorted(set(targets) & set(_NEVER_CALLED)):
        raise ValueError(
            f"targets contains {never_called}, but the fusion uses the weights of these layers "
            "without calling them: an adapter would have no effect. Remove them"
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
            f"targets is {list(targets)}, but no trainable linear layer outside the text encoder "
            "has one of these names"
        )
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError("LoRA adapters need the package peft: pip install peft") from error
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names)
    inject_adapter_in_model(config, model)


class FrozenModulesEvalHook(HookBase):
    """Keeps the frozen modules of a policy in evaluation mode during training.

    Otherwise their dropout would stay active, and batch norm would update its statistics. Our
    choice.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = frozen_modules(model)

    def before_step(self) -> None:
        # Before every step, because an evaluation ends with model.train().
        for module in self.modules:
            module.eval()


def frozen_modules(module: nn.Module) -> list[nn.Module]:
    """The largest submodules that have parameters, all of them frozen."""
    requires_grad = [parameter.requires_grad for parameter in module.parameters()]
    if not requires_grad:
        return []
    if not any(requires_grad):
        return [module]
    return [part for child in module.children() for part in frozen_modules(child)]
