"""Parts of a model must implement the abstract methods of their base class."""

from __future__ import annotations

import pytest
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from helpers.models import tiny_model
from torch import nn

from glipv2_d2.modeling.fusion import FUSED_HEAD_REGISTRY, FusedHead
from glipv2_d2.modeling.heads.base import LossHead, ProposalGenerator, RegionWordScore
from glipv2_d2.modeling.heads.region_word_score import REGION_WORD_SCORE_REGISTRY
from glipv2_d2.modeling.language import LANGUAGE_BACKBONE_REGISTRY, LanguageBackbone

ABSTRACT_METHODS = {
    FusedHead: {"forward"},
    LanguageBackbone: {"forward"},
    LossHead: {"losses"},
    ProposalGenerator: {
        *("predict", "label_anchors", "losses", "score_labels", "detect", "region_word_logits"),
    },
    RegionWordScore: {"forward"},
}
CASES = [(base, name) for base, names in ABSTRACT_METHODS.items() for name in sorted(names)]


@pytest.mark.parametrize("base", ABSTRACT_METHODS)
def test_the_abstract_methods_are_documented_here(base: type[nn.Module]) -> None:
    assert base.__abstractmethods__ == ABSTRACT_METHODS[base]


@pytest.mark.parametrize(("base", "missing"), CASES)
def test_a_class_without_an_abstract_method_cannot_be_instantiated(
    base: type[nn.Module], missing: str
) -> None:
    methods = {name: lambda self: None for name in ABSTRACT_METHODS[base]}
    incomplete = type("Incomplete", (base,), methods.copy())
    assert isinstance(incomplete(), base)
    del methods[missing]
    incomplete = type("Incomplete", (base,), methods)
    with pytest.raises(TypeError, match=f"abstract class Incomplete .*{missing}"):
        incomplete()


@pytest.mark.parametrize("name", ["RPN", "PrecomputedProposals"])
def test_detectron2s_proposal_generators_are_rejected(name: str) -> None:
    with pytest.raises((TypeError, KeyError), match=name):
        tiny_model("MODEL.PROPOSAL_GENERATOR.NAME", name)


@pytest.mark.parametrize(
    ("registry", "base", "key"),
    [
        (FUSED_HEAD_REGISTRY, FusedHead, "MODEL.FUSED_HEAD.NAME"),
        (LANGUAGE_BACKBONE_REGISTRY, LanguageBackbone, "MODEL.LANGUAGE_BACKBONE.NAME"),
        (PROPOSAL_GENERATOR_REGISTRY, ProposalGenerator, "MODEL.PROPOSAL_GENERATOR.NAME"),
        (REGION_WORD_SCORE_REGISTRY, RegionWordScore, "MODEL.GROUNDING.REGION_WORD_SCORE"),
    ],
)
def test_a_registered_part_without_its_methods_fails_when_the_model_is_built(
    registry, base: type[nn.Module], key: str
) -> None:
    name = f"Incomplete{base.__name__}"
    if name not in registry:
        registry.register(type(name, (base,), {}))
    with pytest.raises(TypeError, match=f"abstract class {name}"):
        tiny_model(key, name)
