from __future__ import annotations

import math

import pytest
import torch

from glipv2_d2.modeling.losses import answer_loss, token_prediction_loss


def test_answers_are_summed_and_questions_averaged() -> None:
    """A logit of 0 has the loss log 2 for every target; one of log 3 is a probability of 3/4."""
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    scores = torch.tensor([[1.0, 0.3], [0.6, 0.0]])
    expected = 0.3 * -math.log(3 / 4) + 0.7 * -math.log(1 / 4)
    assert answer_loss(logits, scores).item() == pytest.approx((3 * math.log(2) + expected) / 2)


def test_the_loss_of_a_soft_score_is_minimal_at_its_own_logit() -> None:
    logits = torch.logit(torch.tensor([[0.3, 0.9]])).requires_grad_()
    answer_loss(logits, torch.tensor([[0.3, 0.9]])).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(1, 2))


@pytest.mark.parametrize("loss", ["answers", "tokens"])
def test_without_rows_the_loss_is_0_and_connected(loss: str) -> None:
    logits = torch.zeros(0, 7, requires_grad=True)
    if loss == "answers":
        value = answer_loss(logits, torch.zeros(0, 7))
    else:
        value = token_prediction_loss(logits, torch.zeros(0, dtype=torch.int64))
    value.backward()
    assert value == 0 and logits.grad is not None


def test_tokens_are_averaged() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    expected = (math.log(2) - math.log(3 / 4)) / 2
    assert token_prediction_loss(logits, torch.tensor([1, 0])).item() == pytest.approx(expected)


def test_half_precision_is_computed_in_float32() -> None:
    logits = torch.randn(3, 5).bfloat16()
    assert answer_loss(logits, torch.zeros(3, 5)).dtype == torch.float32
    assert token_prediction_loss(logits, torch.tensor([0, 1, 2])).dtype == torch.float32
