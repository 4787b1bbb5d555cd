from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from glipv2_d2.modeling.losses.inter_image import (
    NO_NAME,
    NamedVectors,
    inter_image_loss,
    propagate_labels,
)

# Three images. The region of the caption (image 2) has no name.
REGION_IMAGES, REGION_NAMES = [0, 0, 1, 2], [7, 8, 7, NO_NAME]
# Image 0 asks 7 (of two tokens) and 8; image 1 asks 8 and 7; image 2 is a caption of three words.
WORD_IMAGES = [0, 0, 0, 1, 1, 2, 2, 2]
WORD_NAMES = [7, 7, 8, 8, 7, NO_NAME, NO_NAME, NO_NAME]
# (region, word) of the same image: what the spans say.
OWN_PAIRS = {(0, 0), (0, 1), (1, 2), (2, 4), (3, 6), (3, 7)}
TEMPERATURE = torch.tensor(0.3, dtype=torch.float64)


def vectors(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, 5, generator=generator, dtype=torch.float64), dim=-1)


def batch() -> tuple[NamedVectors, NamedVectors, Tensor]:
    is_own_word = torch.zeros(len(REGION_IMAGES), len(WORD_IMAGES), dtype=torch.bool)
    for pair in OWN_PAIRS:
        is_own_word[pair] = True
    return (
        named(vectors(len(REGION_IMAGES), 0), REGION_IMAGES, REGION_NAMES),
        named(vectors(len(WORD_IMAGES), 1), WORD_IMAGES, WORD_NAMES),
        is_own_word,
    )


def named(values: Tensor, images: list[int], names: list[int]) -> NamedVectors:
    return NamedVectors(
        values.requires_grad_(),
        torch.tensor(images, dtype=torch.int64),
        torch.tensor(names, dtype=torch.int64),
    )


def brute_force(regions: Tensor, words: Tensor) -> float:
    """The formula, pair by pair, with the truths written out by hand."""
    right = {
        *OWN_PAIRS,
        # Region 0 (name 7) and word 4 of image 1, which asks 7, and so on.
        *{(0, 4), (1, 3), (2, 0), (2, 1)},
    }
    exp = {
        (r, w): math.exp(float(regions[r] @ words[w]) / float(TEMPERATURE))
        for r in range(len(regions))
        for w in range(len(words))
    }
    total = 0.0
    for r in range(len(regions)):
        mine = [w for w in range(len(words)) if (r, w) in right]
        norm = sum(exp[r, w] for w in range(len(words)))
        total -= sum(math.log(exp[r, w] / norm) for w in mine) / len(mine)
    for w in range(len(words)):
        mine = [r for r in range(len(regions)) if (r, w) in right]
        norm = sum(exp[r, w] for r in range(len(regions)))
        total -= sum(math.log(exp[r, w] / norm) for r in mine) / max(len(mine), 1)
    return total / 2 / len(regions)


def test_the_loss_is_its_formula() -> None:
    regions, words, is_own_word = batch()
    loss = inter_image_loss(regions, words, is_own_word, TEMPERATURE)
    expected = torch.tensor(brute_force(regions.vectors, words.vectors), dtype=torch.float64)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


def test_gradients_are_those_of_finite_differences() -> None:
    regions, words, is_own_word = batch()

    def loss(region_vectors: Tensor, word_vectors: Tensor, temperature: Tensor) -> Tensor:
        return inter_image_loss(
            NamedVectors(region_vectors, regions.images, regions.names),
            NamedVectors(word_vectors, words.images, words.names),
            is_own_word,
            temperature,
        )

    temperature = TEMPERATURE.clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (regions.vectors, words.vectors, temperature))


def test_names_agree_and_no_name_agrees_with_nothing() -> None:
    names = torch.tensor([3, NO_NAME])
    is_right = propagate_labels(names, torch.tensor([NO_NAME, 3, 4]))
    assert is_right.tolist() == [[False, True, False], [False, False, False]]


def test_in_its_own_image_only_the_spans_count() -> None:
    """A word of the same name in the same prompt that does not spell the label is wrong."""
    region = named(vectors(1, 0), [0], [7])
    words = named(vectors(2, 1), [0, 0], [7, 7])
    loss = inter_image_loss(region, words, torch.tensor([[True, False]]), torch.tensor(1.0))
    logits = region.vectors @ words.vectors.T
    # The word finds its only region for certain.
    expected = F.cross_entropy(logits, torch.tensor([0])) / 2
    torch.testing.assert_close(loss, expected)


def test_nothing_right_costs_nothing_and_reaches_all_vectors() -> None:
    regions, words = named(vectors(2, 0), [0, 1], [1, 2]), named(vectors(2, 1), [0, 1], [3, 4])
    loss = inter_image_loss(regions, words, torch.zeros(2, 2).bool(), torch.tensor(1.0))
    loss.backward()
    assert loss == 0
    assert not regions.vectors.grad.any()
    assert not words.vectors.grad.any()


def test_neither_regions_nor_words_cost_nothing() -> None:
    for num_regions, num_words in ((0, 3), (3, 0), (0, 0)):
        regions = named(vectors(num_regions, 0), [0] * num_regions, [1] * num_regions)
        words = named(vectors(num_words, 1), [0] * num_words, [1] * num_words)
        is_own = torch.ones(num_regions, num_words, dtype=torch.bool)
        loss = inter_image_loss(regions, words, is_own, torch.tensor(1.0))
        loss.backward()
        assert loss == 0
        assert regions.vectors.grad is not None
        assert words.vectors.grad is not None
