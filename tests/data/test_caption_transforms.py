"""Left/right swaps of captions under flips, and packing of negative captions."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.data import transforms as T
from hypothesis import given
from hypothesis import strategies as st

from glipv2_d2.data.caption_transforms import CaptionPacker, is_flipped, swap_left_right
from glipv2_d2.structures import Prompt
from glipv2_d2.text import Tokenizer
from glipv2_d2.text.prompts import caption_prompt

CAPTION = "a dog and a cat"
DOG_AND_CAT = ([(0, 5)], [(10, 15)])


@pytest.mark.parametrize(
    ("caption", "mirrored"),
    [
        ("the left dog", "the right dog"),
        ("LEFT of the Right one", "RIGHT of the Left one"),
        ("a bright light, leftovers, upright", "a bright light, leftovers, upright"),
        ("left-hand side", "right-hand side"),
        ("nothing here", "nothing here"),
    ],
)
def test_only_whole_words_are_swapped(caption: str, mirrored: str) -> None:
    assert swap_left_right(caption, [])[0] == mirrored


def test_spans_cover_the_same_words() -> None:
    caption, phrases = swap_left_right("man left of the right dog", [[(0, 3), (12, 25)], [(4, 8)]])
    texts = [[caption[b:e] for b, e in spans] for spans in phrases]
    assert texts == [["man", "the left dog"], ["right"]]


WORDS = st.lists(st.sampled_from(["left", "right", "Left", "dog", ",", "leftover"]), min_size=1)


@given(WORDS, st.data())
def test_swapping_twice_restores_the_caption(words: list[str], data: st.DataObject) -> None:
    caption = " ".join(words)
    first = data.draw(st.integers(0, len(words) - 1))
    begin = len(" ".join(words[:first])) + (first > 0)
    span = (begin, begin + len(words[first]))
    assert swap_left_right(*swap_left_right(caption, [[span]])) == (caption, [[span]])


def test_span_that_cuts_a_word_is_extended() -> None:
    assert swap_left_right("a left dog", [[(3, 10)], [(0, 4)]])[1] == [[(2, 11)], [(0, 7)]]


@pytest.mark.parametrize(("flips", "mirrored"), [(0, False), (1, True), (2, False)])
def test_two_flips_cancel_out(flips: int, mirrored: bool) -> None:
    transforms = T.TransformList([T.HFlipTransform(10)] * flips + [T.VFlipTransform(10)])
    assert is_flipped(transforms) is mirrored


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def packer(
    tokenizer: Tokenizer,
    *,
    max_negatives: int = 3,
    full_prob: float = 1.0,
    random_prob: float = 0.0,
) -> CaptionPacker:
    return CaptionPacker(
        tokenizer=tokenizer,
        max_negatives=max_negatives,
        full_prob=full_prob,
        random_prob=random_prob,
    )


def test_packed_spans_cover_the_phrases(tokenizer: Tokenizer, rng: np.random.Generator) -> None:
    prompt = caption_prompt(CAPTION, DOG_AND_CAT)
    negatives = ["a red bus", "two men.", "a tree by the sea"]
    texts = set()
    for _ in range(20):
        packed = packer(tokenizer)(prompt, negatives, rng)
        assert packed.phrases == ["a dog", "a cat"]
        assert packed.classes == (0, 1)
        texts.add(packed.text)
    assert len(texts) > 5
    assert any(text.startswith("a dog and a cat. ") for text in texts)
    assert any(text.endswith(" a dog and a cat.") for text in texts)


def test_packed_captions_end_with_a_full_stop(
    tokenizer: Tokenizer, rng: np.random.Generator
) -> None:
    packed = packer(tokenizer)(caption_prompt("a cat", [[(0, 5)]]), ["two men."], rng)
    assert packed.text in {"a cat. two men.", "two men. a cat."}


def test_caption_with_the_same_phrase_is_not_a_negative(
    tokenizer: Tokenizer, rng: np.random.Generator
) -> None:
    prompt = caption_prompt(CAPTION, DOG_AND_CAT)
    others = ["here is A dog again", CAPTION, "a catalogue"]
    packed = packer(tokenizer, max_negatives=20)(prompt, others, rng)
    assert sorted(packed.text.rstrip(".").split(". ")) == ["a catalogue", CAPTION]


def test_own_caption_is_kept_within_the_token_limit(rng: np.random.Generator) -> None:
    short = Tokenizer("bert-base-uncased", 12)
    prompt = caption_prompt(CAPTION, DOG_AND_CAT)
    others = ["a tree", "two men on a very long ship with many sails"]
    for _ in range(20):
        packed = packer(short, max_negatives=9)(prompt, others, rng)
        assert packed.phrases == ["a dog", "a cat"]
        assert short.count(packed.text) <= 10


@pytest.mark.parametrize(
    ("full_prob", "random_prob", "shares"),
    [
        (0.0, 0.0, (1, 0, 0)),
        # The random number is 1 or 2 with equal probability.
        (0.3, 0.3, (0.4, 0.15, 0.45)),
        (0.0, 1.0, (0, 0.5, 0.5)),
    ],
)
def test_probabilities_of_zero_one_and_two_negatives(
    full_prob: float,
    random_prob: float,
    shares: tuple[float, float, float],
    tokenizer: Tokenizer,
    rng: np.random.Generator,
) -> None:
    packs = packer(tokenizer, max_negatives=2, full_prob=full_prob, random_prob=random_prob)
    counts = [packs._draw_count(rng) for _ in range(2000)]
    for number, share in enumerate(shares):
        assert counts.count(number) / len(counts) == pytest.approx(share, abs=0.05)


def test_caption_without_negatives_is_unchanged(
    tokenizer: Tokenizer, rng: np.random.Generator
) -> None:
    prompt = Prompt(CAPTION, (), ())
    assert packer(tokenizer)(prompt, [CAPTION], rng) is prompt
