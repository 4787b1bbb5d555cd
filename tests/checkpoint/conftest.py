"""Weights and files for the tests of checkpoints."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

ASSETS = Path(__file__).parents[1] / "assets"


@pytest.fixture(scope="session")
def glip_weights() -> dict[str, Tensor]:
    """The state dict of a small GLIP-T, as released files have it (``module.`` in front)."""
    return torch.load(ASSETS / "tiny_T_s0" / "model.pth", weights_only=True)["model"]


@pytest.fixture(scope="session")
def glip_file() -> Path:
    return ASSETS / "tiny_T_s0" / "model.pth"


@pytest.fixture(scope="session")
def read_keys() -> Callable[[str], dict[str, Tensor]]:
    """Maps a table of keys in assets to a state dict without memory."""

    def read(table: str) -> dict[str, Tensor]:
        content = (ASSETS / table).read_bytes()
        text = (gzip.decompress(content) if table.endswith(".gz") else content).decode()
        rows = [line.split("\t") for line in text.splitlines()]
        return {
            name: torch.empty(
                [int(size) for size in shape.strip("()").split(",") if size],
                dtype=getattr(torch, dtype),
                device="meta",
            )
            for name, shape, dtype, _ in rows
        }

    return read


@pytest.fixture(scope="session")
def shell_of() -> Callable[[Mapping[str, Tensor]], nn.Module]:
    """Builds a module without a forward whose state dict has the given names and shapes, zeros."""

    def shell(state_dict: Mapping[str, Tensor]) -> nn.Module:
        root = nn.Module()
        for name, value in state_dict.items():
            *path, leaf = name.split(".")
            parent = root
            for part in path:
                if not hasattr(parent, part):
                    parent.add_module(part, nn.Module())
                parent = getattr(parent, part)
            parent.register_parameter(leaf, nn.Parameter(torch.zeros_like(value)))
        return root

    return shell
