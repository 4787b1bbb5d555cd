"""Compiled parts give the numbers of eager mode; the CPU runs a traced graph uncompiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.device_stages import State, cpu_state, model_on, move, relative_difference
from torch import Tensor

BACKENDS = {"cpu": "eager", "cuda": "inductor"}
PARTS = ("language layer", "backbone", "fused head")
# Tracing the others takes seconds; tests/end_to_end/test_compiled.py has the fused head.
CASES = [
    ("language layer", "cpu"),
    *(pytest.param(part, "cuda", marks=pytest.mark.gpu) for part in PARTS),
]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()


def outputs(part: str, function: Callable[..., Any], state: State) -> list[Tensor]:
    """What a part, or its compiled form, computes; rows of padding are undefined."""
    text = state.fused.text
    if part == "backbone":
        return list(function(state.images).values())
    if part == "fused head":
        levels, text = function(state.fused.features, text)
        return [*levels.values(), text.hidden[text.mask]]
    text = function(text)
    return [text.hidden[text.mask]]


@pytest.mark.parametrize(("part", "device"), CASES)
@torch.no_grad()
def test_a_compiled_part_gives_the_numbers_of_eager_mode(part: str, device: str) -> None:
    model, state = model_on(device), move(cpu_state(), device)
    modules = {
        "language layer": model.fused_head.blocks[0].language_layer,
        "backbone": model.backbone,
        "fused head": model.fused_head,
    }
    compiled = torch.compile(modules[part].forward, backend=BACKENDS[device])
    ours, expected = (outputs(part, x, state) for x in (compiled, modules[part]))
    assert max(relative_difference(*x) for x in zip(ours, expected, strict=True)) < 1e-4
