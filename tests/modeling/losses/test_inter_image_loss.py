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
# Image 0 has the names 7 (two tokens) and 8; image 1 has 8 and 7; image 2 has a caption.
TOKEN_IMAGES = [0, 0, 0, 1, 1, 2, 2, 2]
TOKEN_NAMES = [7, 7, 8, 8, 7, NO_NAME, NO_NAME, NO_NAME]
# (region, token) of the same image: the tokens in the spans of the region's label.
OWN_PAIRS = {(0, 0), (0, 1), (1, 2), (2, 4), (3, 6), (3, 7)}
TEMPERATURE = torch.tensor(0.3, dtype=torch.float64)


def vectors(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, 5, generator=generator, dtype=torch.float64), dim=-1)


def batch() -> tuple[NamedVectors, NamedVectors, Tensor]:
    is_own_token = torch.zeros(len(REGION_IMAGES), len(TOKEN_IMAGES), dtype=torch.bool)
    for pair in OWN_PAIRS:
        is_own_token[pair] = True
    return (
        named(vectors(len(REGION_IMAGES), 0), REGION_IMAGES, REGION_NAMES),
        named(vectors(len(TOKEN_IMAGES), 1), TOKEN_IMAGES, TOKEN_NAMES),
        is_own_token,
    )


def named(values: Tensor, images: list[int], names: list[int]) -> NamedVectors:
    return NamedVectors(
        values.requires_grad_(),
        torch.tensor(images, dtype=torch.int64),
        torch.tensor(names, dtype=torch.int64),
    )


def brute_force(regions: Tensor, tokens: Tensor) -> float:
    """The formula, pair by pair, with the positives written out."""
    positives = {
        *OWN_PAIRS,
        # Region 0 has the name 7, as token 4 of image 1, and so on.
        *{(0, 4), (1, 3), (2, 0), (2, 1)},
    }
    exp = {
        (r, t): math.exp(float(regions[r] @ tokens[t]) / float(TEMPERATURE))
        for r in range(len(regions))
        for t in range(len(tokens))
    }
    total = 0.0
    for r in range(len(regions)):
        own = [t for t in range(len(tokens)) if (r, t) in positives]
        norm = sum(exp[r, t] for t in range(len(tokens)))
        total -= sum(math.log(exp[r, t] / norm) for t in own) / len(own)
    for t in range(len(tokens)):
        own = [r for r in range(len(regions)) if (r, t) in positives]
        norm = sum(exp[r, t] for r in range(len(regions)))
        total -= sum(math.log(exp[r, t] / norm) for r in own) / max(len(own), 1)
    return total / 2 / len(regions)


def test_the_loss_equals_its_formula() -> None:
    regions, tokens, is_own_token = batch()
    loss = inter_image_loss(regions, tokens, is_own_token, TEMPERATURE)
    expected = torch.tensor(brute_force(regions.vectors, tokens.vectors), dtype=torch.float64)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


def test_gradients_are_those_of_finite_differences() -> None:
    regions, tokens, is_own_token = batch()

    def loss(region_vectors: Tensor, token_vectors: Tensor, temperature: Tensor) -> Tensor:
        return inter_image_loss(
            NamedVectors(region_vectors, regions.images, regions.names),
            NamedVectors(token_vectors, tokens.images, tokens.names),
            is_own_token,
            temperature,
        )

    temperature = TEMPERATURE.clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (regions.vectors, tokens.vectors, temperature))


def test_equal_names_match_and_no_name_matches_nothing() -> None:
    names = torch.tensor([3, NO_NAME])
    is_positive = propagate_labels(names, torch.tensor([NO_NAME, 3, 4]))
    assert is_positive.tolist() == [[False, True, False], [False, False, False]]


def test_in_the_same_image_only_the_tokens_in_the_spans_are_positives() -> None:
    """Another token of the same name in the same prompt is a negative."""
    region = named(vectors(1, 0), [0], [7])
    tokens = named(vectors(2, 1), [0, 0], [7, 7])
    loss = inter_image_loss(region, tokens, torch.tensor([[True, False]]), torch.tensor(1.0))
    logits = region.vectors @ tokens.vectors.T
    # There is one region, so the loss over regions is 0.
    expected = F.cross_entropy(logits, torch.tensor([0])) / 2
    torch.testing.assert_close(loss, expected)


def test_without_positives_the_loss_is_0_and_connected_to_all_vectors() -> None:
    regions, tokens = named(vectors(2, 0), [0, 1], [1, 2]), named(vectors(2, 1), [0, 1], [3, 4])
    loss = inter_image_loss(regions, tokens, torch.zeros(2, 2).bool(), torch.tensor(1.0))
    loss.backward()
    assert loss == 0
    assert not regions.vectors.grad.any()
    assert not tokens.vectors.grad.any()


def test_without_regions_or_tokens_the_loss_is_0_and_connected() -> None:
    for num_regions, num_tokens in ((0, 3), (3, 0), (0, 0)):
        regions = named(vectors(num_regions, 0), [0] * num_regions, [1] * num_regions)
        tokens = named(vectors(num_tokens, 1), [0] * num_tokens, [1] * num_tokens)
        is_own = torch.ones(num_regions, num_tokens, dtype=torch.bool)
        loss = inter_image_loss(regions, tokens, is_own, torch.tensor(1.0))
        loss.backward()
        assert loss == 0
        assert regions.vectors.grad is not None
        assert tokens.vectors.grad is not None
