"""Selecting the features of queries."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from helpers.queries import fused_features

from glipv2_d2.structures import ImageFeatures, Prompt, Query, QueryKind, TextFeatures
from glipv2_d2.text.prompts import class_prompt
from glipv2_d2.text.tokenizer import Tokenizer


def queries_of(images: Sequence[int]) -> list[Query]:
    return [Query(i, QueryKind.DETECT, Prompt("", (), ())) for i in images]


@pytest.fixture
def features() -> ImageFeatures:
    """Three inputs, the last of which shares the image of the first."""
    levels = {"p3": torch.randn(2, 4, 3, 3), "p4": torch.randn(2, 4, 2, 2)}
    return ImageFeatures(levels, [(20, 24), (16, 24)], rows=[0, 1, 0])


def test_a_query_has_the_row_of_its_image(features: ImageFeatures) -> None:
    assert features.rows_of(queries_of([2, 0, 1, 1])) == [0, 0, 1, 1]


def test_select_returns_one_pyramid_per_query(features: ImageFeatures) -> None:
    selected = features.select(queries_of([1, 2, 1]))
    assert selected.image_sizes == [(16, 24), (20, 24), (16, 24)]
    assert selected.rows == [0, 1, 2]
    for name, level in features.levels.items():
        assert torch.equal(selected.levels[name], level[[1, 0, 1]])


@pytest.mark.parametrize("images", [[0, 1], [2, 1]])
def test_select_copies_nothing_if_the_rows_are_the_same(
    features: ImageFeatures, images: list[int]
) -> None:
    selected = features.select(queries_of(images))
    assert all(selected.levels[name] is level for name, level in features.levels.items())


@pytest.mark.parametrize("images", [[0], [1, 0], [0, 1, 2], []])
def test_select_does_not_reuse_maps_of_other_rows(
    features: ImageFeatures, images: list[int]
) -> None:
    selected = features.select(queries_of(images))
    rows = [features.rows[i] for i in images]
    for name, level in features.levels.items():
        assert torch.equal(selected.levels[name], level[rows])


def test_select_text_keeps_queries_tokens_and_text_together() -> None:
    tokens = Tokenizer()([class_prompt([name]) for name in ("cat", "traffic light", "dog")])
    text = TextFeatures(torch.randn(*tokens.mask.shape, 4), tokens.mask)
    fused = fused_features(text=text, tokens=tokens)
    selected = fused.select_text([2, 0])
    assert [query.prompt.text for query in selected.queries] == ["dog", "cat"]
    assert torch.equal(selected.tokens.input_ids, tokens.input_ids[[2, 0]])
    for part in (selected.text, selected.fused_text, selected.region_text):
        assert torch.equal(part.hidden, text.hidden[[2, 0]])
