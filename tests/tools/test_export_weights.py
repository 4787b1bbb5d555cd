from __future__ import annotations

import pytest
import torch
from export_weights import select_weights

CHECKPOINT = {
    "model": {"kept": torch.zeros(2), "same": torch.ones(1)},
    "model_ema": {"kept": torch.full((2,), 5.0), "left_out": torch.ones(3)},
}


def test_the_average_takes_the_place_of_the_weights_it_has() -> None:
    weights = select_weights(CHECKPOINT, use_ema=True)
    assert weights.keys() == {"kept", "same"}
    assert weights["kept"].tolist() == [5, 5]


def test_without_the_average_the_weights_are_the_last_ones() -> None:
    assert select_weights(CHECKPOINT, use_ema=False)["kept"].tolist() == [0, 0]


def test_heads_that_only_a_loss_reads_are_left_out() -> None:
    model = {
        name: torch.ones(1)
        for name in ("kept", "masked_language.dense.weight", "roi_heads.mask_head.deconv.bias")
    }
    exported = select_weights({"model": model}, use_ema=False)
    assert exported.keys() == {"kept", "roi_heads.mask_head.deconv.bias"}


def test_a_run_without_an_average_is_an_error() -> None:
    with pytest.raises(ValueError, match="no model_ema: it was trained with EMA_DECAY 0"):
        select_weights({"model": {}}, use_ema=True)
