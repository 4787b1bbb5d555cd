"""Profiling by stages, and lower bounds."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from glipv2_d2.layers.packed_linear import MIN_ROWS, prepared_linear
from glipv2_d2.profiling.stages import (
    Amounts,
    ProductCounter,
    StageRecorder,
    floor_seconds,
    machine_tasks,
)


class Counter:
    """A meter that tests increment by hand."""

    def __init__(self) -> None:
        self.steps = 0

    def read(self) -> int:
        return self.steps

    def between(self, start: int, end: int) -> Amounts:
        return {"steps": float(end - start)}


class Part(nn.Module):
    def __init__(self, counter: Counter, steps: int) -> None:
        super().__init__()
        self.counter, self.steps = counter, steps

    def forward(self) -> None:
        self.counter.steps += self.steps


def test_a_stage_is_charged_without_nested_stages() -> None:
    counter = Counter()
    recorder = StageRecorder(counter)
    with recorder.span("outer"):
        counter.steps += 1
        with recorder.span("inner"):
            counter.steps += 10
        counter.steps += 100
    assert recorder.take() == {"outer": {"steps": 101.0}, "inner": {"steps": 10.0}}


def test_calls_of_all_watched_modules_of_a_stage_add_up() -> None:
    counter = Counter()
    parts = Part(counter, 1), Part(counter, 2)
    with StageRecorder(counter) as recorder:
        for part in parts:
            recorder.watch("both", part)
        for part in (*parts, *parts):
            part()
        assert recorder.take() == {"both": {"steps": 6.0}}
        assert recorder.take() == {}


def test_leaving_the_recorder_removes_all_hooks() -> None:
    counter = Counter()
    part = Part(counter, 1)
    before = dict(vars(part))
    with StageRecorder(counter) as recorder:
        recorder.watch("part", part)
        recorder.watch("part again", part)
    assert vars(part) == before


def test_calls_inside_an_atomic_span_are_charged_to_it() -> None:
    counter = Counter()
    part = Part(counter, 10)
    with StageRecorder(counter) as recorder:
        recorder.watch("part", part)
        part()
        with recorder.span("backward", atomic=True):
            part()
        part()
        assert recorder.take() == {"part": {"steps": 20.0}, "backward": {"steps": 10.0}}


def test_a_stage_ends_after_an_error() -> None:
    recorder = StageRecorder(Counter())
    with pytest.raises(ZeroDivisionError), recorder.span("fails"):
        1 / 0  # noqa: B018
    with recorder.span("next"):
        pass
    assert recorder.take() == {"fails": {"steps": 0.0}, "next": {"steps": 0.0}}


def test_products_and_convolutions_are_counted_with_their_bytes() -> None:
    linear, conv = nn.Linear(3, 5, bias=False), nn.Conv2d(2, 4, 1, bias=False)
    with ProductCounter() as counter, torch.no_grad():
        start = counter.read()
        linear(torch.zeros(7, 3)).relu()
        middle = counter.read()
        conv(torch.zeros(1, 2, 6, 6))
        end = counter.read()
    assert counter.between(start, middle) == {
        "product_flops": 2 * 7 * 3 * 5,
        "convolution_flops": 0,
        "bytes": 4 * (7 * 3 + 3 * 5 + 7 * 5),
    }
    assert counter.between(middle, end) == {
        "product_flops": 0,
        "convolution_flops": 2 * 36 * 2 * 4,
        "bytes": 4 * (2 * 36 + 2 * 4 + 4 * 36),
    }


def test_a_deformable_convolution_is_counted_as_a_product() -> None:
    image, weight = torch.zeros(1, 2, 6, 6), torch.zeros(4, 2, 3, 3)
    offset = torch.zeros(1, 2 * 9, 6, 6)
    with ProductCounter() as counter, torch.no_grad():
        start = counter.read()
        deform_conv2d(image, offset, weight, padding=1)
        counted = counter.between(start, counter.read())
    assert counted["product_flops"] == 2 * 36 * 4 * (2 * 9)
    assert counted["convolution_flops"] == 0


def test_a_product_with_packed_weights_is_counted_as_one_without() -> None:
    x, weight = torch.zeros(MIN_ROWS, 3), torch.zeros(5, 3)
    with ProductCounter() as counter, torch.no_grad():
        multiply = prepared_linear(weight, None, num_rows=MIN_ROWS, block_rows=MIN_ROWS)
        start = counter.read()
        multiply(x)
        middle = counter.read()
        F.linear(x, weight)
        end = counter.read()
    assert counter.between(start, middle) == counter.between(middle, end)
    assert counter.between(start, middle)["product_flops"] == 2 * MIN_ROWS * 3 * 5


def test_an_in_place_product_is_counted() -> None:
    total, left, right = torch.zeros(2, 7, 5), torch.zeros(2, 7, 3), torch.zeros(2, 3, 5)
    with ProductCounter() as counter:
        start = counter.read()
        torch.baddbmm(total, left, right)
        middle = counter.read()
        total.baddbmm_(left, right)
        end = counter.read()
    assert counter.between(middle, end) == counter.between(start, middle)
    assert counter.between(middle, end)["product_flops"] == 2 * 2 * 7 * 3 * 5


def test_the_lower_bound_is_the_sum_of_amounts_over_rates() -> None:
    amounts = {"product_flops": 10.0, "convolution_flops": 6.0, "bytes": 4.0}
    assert floor_seconds(amounts, {"product": 5.0, "convolution": 2.0, "copy": 1.0}) == 9.0


def test_machine_tasks_return_their_amount_of_work() -> None:
    tasks = machine_tasks(torch.device("cpu"), torch.float32)
    with ProductCounter() as counter, torch.no_grad():
        start = counter.read()
        assert tasks["product"]() == counter.between(start, counter.read())["product_flops"]
    assert tasks["copy"]() == 2 * 32 * 2**20
