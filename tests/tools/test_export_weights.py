from __future__ import annotations

import pytest
import torch
from export_weights import select_weights

CHECKPOINT = {
    "model": {"kept": torch.zeros(2), "same": torch.ones(1)},
    "model_ema": {"kept": torch.full((2,), 5.0), "excluded": torch.ones(3)},
}


def test_averaged_weights_replace_those_of_the_model() -> None:
    weights = select_weights(CHECKPOINT, use_ema=True)
    assert weights.keys() == {"kept", "same"}
    assert weights["kept"].tolist() == [5, 5]


def test_without_ema_the_last_weights_are_exported() -> None:
    assert select_weights(CHECKPOINT, use_ema=False)["kept"].tolist() == [0, 0]


def test_loss_heads_are_not_exported() -> None:
    model = {
        name: torch.ones(1)
        for name in ("kept", "loss_heads.0.dense.weight", "roi_heads.mask_head.deconv.bias")
    }
    exported = select_weights({"model": model}, use_ema=False)
    assert exported.keys() == {"kept", "roi_heads.mask_head.deconv.bias"}


def test_checkpoint_without_averaged_weights_is_rejected() -> None:
    with pytest.raises(ValueError, match="no model_ema: it was trained with EMA_DECAY 0"):
        select_weights({"model": {}}, use_ema=True)
