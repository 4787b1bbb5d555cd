from __future__ import annotations

import itertools

import pytest
import torch
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from torch.utils.data import Sampler

from glipv2_d2.data import samplers
from glipv2_d2.data.samplers import CompactRepeatFactorSampler, CompactTrainingSampler


def first(sampler: Sampler[int], count: int) -> list[int]:
    return list(itertools.islice(sampler, count))


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "CHUNK", 7)


@pytest.mark.parametrize("size", [1, 14, 100])
def test_the_order_of_the_training_sampler_is_detectron2s(size: int) -> None:
    count = 2 * size + 3
    theirs = first(TrainingSampler(size, seed=3), count)
    assert first(CompactTrainingSampler(size, seed=3), count) == theirs


@pytest.mark.parametrize("size", [1, 14, 100])
def test_the_order_of_the_repeat_factor_sampler_is_detectron2s(size: int) -> None:
    factors = 0.5 + 2 * torch.rand(size, generator=torch.Generator().manual_seed(1))
    theirs = first(RepeatFactorTrainingSampler(factors, seed=3), 5 * size)
    assert first(CompactRepeatFactorSampler(factors, seed=3), 5 * size) == theirs
