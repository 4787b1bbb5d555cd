"""Report which keys of a checkpoint are loaded, ignored, missing or unexpected."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from glipv2_d2.weight_files import quote

# Of names in a message; GLIP-L has fewer modules.
_MAX_LINES = 2000


@dataclass(frozen=True)
class LoadReport:
    """How each key of a checkpoint is handled.

    Attributes:
        loaded: name in the file -> name in the model.
        recomputed: buffers that the model computes itself.
        ignored: name in the file -> the reason.
        unknown: names in the file without an entry in the name tables.
    """

    loaded: dict[str, str]
    recomputed: tuple[str, ...]
    ignored: dict[str, str]
    unknown: tuple[str, ...]

    def without(self, names: Iterable[str], reason: str) -> LoadReport:
        """Move model names from loaded to ignored."""
        left_out = set(names)
        ignored = {key: reason for key, name in self.loaded.items() if name in left_out}
        loaded = {k: v for k, v in self.loaded.items() if k not in ignored}
        return replace(self, loaded=loaded, ignored={**self.ignored, **ignored})

    def __str__(self) -> str:
        text = f"{len(self.loaded)} loaded, {len(self.recomputed)} recomputed"
        reasons = ", ".join(sorted(set(self.ignored.values())))
        return f"{text}, {len(self.ignored)} ignored" + (f" ({reasons})" if reasons else "")


@dataclass(frozen=True)
class Mismatch:
    """Differences between a state dict and a model.

    Attributes:
        missing: names in the model that the file lacks.
        unknown: names in the file that the model lacks.
        shapes: name -> (shape in the file, shape in the model).
        dtypes: name -> (dtype in the file, dtype in the model), where one does not stand for the
            other: floating point for floating point, integers for integers.
    """

    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    dtypes: dict[str, tuple[torch.dtype, torch.dtype]]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unknown or self.shapes or self.dtypes)

    def message(self, source: str) -> str:
        """An error message with all names, and how to fix the error.

        Args:
            source: description of the file.
        """
        parts = [f"{source} does not match the model:"]
        for title, differing in (
            ("different shapes", self.shapes),
            ("different kinds of numbers", self.dtypes),
        ):
            if differing:
                parts.append(f"{title} ({len(differing)}):")
                parts += [
                    f"  {quote(name)}: {in_file} in the file, {in_model} in the model"
                    for name, (in_file, in_model) in sorted(differing.items())
                ]
        for title, names in (
            ("missing in the file", self.missing),
            ("in the file, but not in the model", self.unknown),
        ):
            if names:
                parts += [f"{title} ({len(names)}):", *list_names(names)]
        parts.append(
            "Use the config of the file (MODEL.FUSED_HEAD.NAME and NUM_BLOCKS, "
            "MODEL.BACKBONE.NAME and MODEL.SWIN, MODEL.LANGUAGE_BACKBONE), or another file in "
            "MODEL.WEIGHTS."
        )
        return "\n".join(parts)


def compare(
    state_dict: Mapping[str, Tensor],
    model_state: Mapping[str, Tensor],
    *,
    unknown: Iterable[str] = (),
    may_lack: Callable[[str], bool] = lambda _: False,
) -> Mismatch:
    """Compare a state dict with that of a model.

    Args:
        unknown: further names in the file that were not converted.
        may_lack: whether the file may lack this name.
    """
    return Mismatch(
        missing=tuple(n for n in model_state if n not in state_dict and not may_lack(n)),
        unknown=(*unknown, *(n for n in state_dict if n not in model_state)),
        shapes={
            name: (tuple(value.shape), tuple(model_state[name].shape))
            for name, value in state_dict.items()
            if name in model_state and value.shape != model_state[name].shape
        },
        dtypes={
            name: (value.dtype, model_state[name].dtype)
            for name, value in state_dict.items()
            if name in model_state and _kind(value.dtype) != _kind(model_state[name].dtype)
        },
    )


def _kind(dtype: torch.dtype) -> tuple[bool, bool, bool]:
    return dtype.is_floating_point, dtype.is_complex, dtype == torch.bool


def list_names(names: Iterable[str]) -> list[str]:
    """Format names with one line per module.

    >>> list_names(["a.conv.weight", "scale", "a.conv.bias"])
    ['  a.conv.{bias, weight}', '  scale']
    """
    leaves_per_module = defaultdict(list)
    for name in names:
        module, _, leaf = name.rpartition(".")
        leaves_per_module[module].append(leaf)
    lines = []
    for module, leaves in leaves_per_module.items():
        module, leaves = quote(module), [quote(leaf) for leaf in leaves]
        joined = leaves[0] if len(leaves) == 1 else "{" + ", ".join(sorted(leaves)) + "}"
        lines.append(f"  {module}.{joined}" if module else f"  {joined}")
    lines.sort()
    others = len(lines) - _MAX_LINES
    return lines if others <= 0 else [*lines[:_MAX_LINES], f"  and {others:,} others"]
