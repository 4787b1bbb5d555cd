from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from glipv2_d2.modeling.fusion import banded_attention
from glipv2_d2.modeling.fusion.banded_attention import MAX_SCORE, AbsorbedWords, attend

N, P, C, H, T = 2, 5, 3, 2, 4


def random_words(dtype: torch.dtype = torch.float64) -> tuple[Tensor, AbsorbedWords]:
    """Positions and words, whose last token of the second image is padding."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    hiding = torch.zeros(N, 1, 1, T, dtype=dtype)
    hiding[1, ..., -1] = torch.finfo(dtype).min
    words = AbsorbedWords(H, random(N, C, H * T), random(N, 1, H * T), random(N, H * T, C), hiding)
    return random(N, P, C), words


def outputs(
    visual: Tensor, words: AbsorbedWords, *, words_read: bool, dropout: float
) -> tuple[Tensor, ...]:
    """Of one seed."""
    torch.manual_seed(1)
    positions, read = attend(visual, words, words_read=words_read, dropout=dropout)
    parts = [positions] if words.value is not None else []
    return (*parts, *([read.means, read.kept, read.evidence] if read is not None else []))


def of_leaves(words: AbsorbedWords, **kwargs: object) -> Callable[..., tuple[Tensor, ...]]:
    def call(visual: Tensor, key: Tensor, constant: Tensor, *value: Tensor) -> tuple[Tensor, ...]:
        with_leaves = replace(words, key=key, constant=constant, value=value[0] if value else None)
        return outputs(visual, with_leaves, **kwargs)

    return call


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("band_positions", [1, 2, 100])
@pytest.mark.parametrize(
    ("words_read", "positions_read"), [(True, True), (True, False), (False, True)]
)
def test_gradients_equal_finite_differences(
    words_read: bool,
    positions_read: bool,
    band_positions: int,
    dropout: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(banded_attention, "MAX_BAND_SCORES", {"cpu": band_positions * N * H * T})
    visual, words = random_words()
    leaves = [visual, words.key, words.constant, *([words.value] if positions_read else [])]
    assert torch.autograd.gradcheck(
        of_leaves(words, words_read=words_read, dropout=dropout),
        [leaf.requires_grad_() for leaf in leaves],
    )


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_without_gradients_the_same_is_computed_in_place(dropout: float) -> None:
    visual, words = random_words()
    expected = outputs(visual, words, words_read=True, dropout=dropout)
    with torch.no_grad():
        ours = outputs(visual, words, words_read=True, dropout=dropout)
    for result, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(result, other)
    assert ours[0] is visual


def test_dropout_drops_weights_and_scales_none() -> None:
    """Of as many positions as this the share is sure."""
    torch.manual_seed(0)
    visual = torch.zeros(1, 4000, C)
    words = AbsorbedWords(1, torch.zeros(1, C, 1), torch.zeros(1, 1, 1))
    words = replace(words, value=torch.ones(1, 1, C), hiding=torch.zeros(1, 1, 1, 1))
    visual, read = attend(visual, words, words_read=True, dropout=0.3)
    assert read is not None
    assert set(visual.unique().tolist()) == {0.0, 1.0}
    assert visual.mean().item() == pytest.approx(0.7, abs=0.04)
    assert read.kept.item() == pytest.approx(0.7, abs=0.04)


def test_nothing_comes_from_scores_beyond_the_clamp() -> None:
    visual, words = random_words()
    constant = words.constant.clone()
    constant[..., 0] = 2 * MAX_SCORE
    constant.requires_grad_()
    positions, read = attend(visual, replace(words, constant=constant), words_read=True)
    assert read is not None
    (positions.sum() + read.means.sum() + read.evidence.sum()).backward()
    assert constant.grad is not None
    assert constant.grad[..., 0].eq(0).all()
    assert read.evidence[:, 0].gt(MAX_SCORE).all(), "the logarithm of P equal scores is above them"


def test_training_keeps_nothing_of_the_size_of_the_scores() -> None:
    visual, words = random_words()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        attend(visual.requires_grad_(), words, words_read=True, dropout=0.4)
    assert kept
    assert max(tensor.numel() for tensor in kept) < N * P * H * T
