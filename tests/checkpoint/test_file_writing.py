from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from glipv2_d2.checkpoint import load_weights, read_checkpoint, save_weights
from glipv2_d2.layers.checkpoint_prefixes import CheckpointPrefixes


def test_half_precision_is_cast_to_the_dtype_of_the_model(tmp_path: Path) -> None:
    model = nn.BatchNorm1d(3)
    model.weight.data = torch.tensor([1.0, 0.5, 1 / 3])
    save_weights(model, tmp_path / "half.pth", torch.float16)
    stored = read_checkpoint(tmp_path / "half.pth")["model"]
    assert stored["weight"].dtype == torch.float16
    assert stored["num_batches_tracked"].dtype == torch.int64
    other = nn.BatchNorm1d(3)
    load_weights(other, stored, source="half.pth")
    assert other.weight.dtype == torch.float32
    torch.testing.assert_close(other.weight, model.weight, rtol=1e-3, atol=0)


def test_a_view_is_saved_without_its_whole_storage(tmp_path: Path) -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(1_000_000)[:2])
    save_weights(model, tmp_path / "small.pth")
    assert (tmp_path / "small.pth").stat().st_size < 10_000


class WithFrozenEncoder(nn.ModuleDict, CheckpointPrefixes):
    checkpoint_excluded = ("encoder.",)


def test_excluded_prefixes_are_not_saved(tmp_path: Path) -> None:
    model = WithFrozenEncoder({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    save_weights(model, tmp_path / "head.pth")
    stored = read_checkpoint(tmp_path / "head.pth")["model"]
    assert stored.keys() == {"head.weight", "head.bias"}
