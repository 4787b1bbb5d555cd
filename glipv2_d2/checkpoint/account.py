"""What became of every key of a file, and whether the outcome fits a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class Account:
    """Every key of a file in another layout, and what became of it.

    Attributes:
        loaded: name in the file -> our name.
        recomputed: buffers that the model makes itself.
        ignored: name in the file -> why it is of no use here.
        unknown: names that no table has.
    """

    loaded: dict[str, str]
    recomputed: tuple[str, ...]
    ignored: dict[str, str]
    unknown: tuple[str, ...]

    def without(self, names: Iterable[str], reason: str) -> Account:
        """The account with some of our names no longer loaded but ignored."""
        left_out = set(names)
        ignored = {theirs: reason for theirs, ours in self.loaded.items() if ours in left_out}
        loaded = {k: v for k, v in self.loaded.items() if k not in ignored}
        return replace(self, loaded=loaded, ignored={**self.ignored, **ignored})

    def __str__(self) -> str:
        text = f"{len(self.loaded)} loaded, {len(self.recomputed)} recomputed"
        reasons = ", ".join(sorted(set(self.ignored.values())))
        return f"{text}, {len(self.ignored)} ignored" + (f" ({reasons})" if reasons else "")


@dataclass(frozen=True)
class Mismatch:
    """Where a state dict does not fit a model.

    Attributes:
        missing: names that the model has and the file lacks.
        unknown: names of the file that the model has no place for.
        shapes: name -> (shape in the file, shape in the model).
    """

    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unknown or self.shapes)

    def message(self, source: str) -> str:
        """One readable text with every name, and what to do.

        Args:
            source: the file, as its user named it.
        """
        parts = [f"{source} does not fit the model:"]
        if self.shapes:
            parts.append(f"other shapes ({len(self.shapes)}):")
            parts += [
                f"  {name}: {in_file} in the file, {in_model} in the model"
                for name, (in_file, in_model) in sorted(self.shapes.items())
            ]
        for title, names in (
            ("missing in the file", self.missing),
            ("in the file, without a place in the model", self.unknown),
        ):
            if names:
                parts += [f"{title} ({len(names)}):", *list_names(names)]
        parts.append(
            "Use the config that the file was made with (MODEL.FUSED_HEAD.NAME and NUM_BLOCKS, "
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
    """Compare what a file offers with what a model needs.

    Args:
        unknown: names of the file that got no name of ours, to be listed with the others.
        may_lack: whether the model does without this name in the file.
    """
    return Mismatch(
        missing=tuple(n for n in model_state if n not in state_dict and not may_lack(n)),
        unknown=(*unknown, *(n for n in state_dict if n not in model_state)),
        shapes={
            name: (tuple(value.shape), tuple(model_state[name].shape))
            for name, value in state_dict.items()
            if name in model_state and value.shape != model_state[name].shape
        },
    )


def list_names(names: Iterable[str]) -> list[str]:
    """Lines that show every name, those of one module on one line.

    >>> list_names(["a.conv.weight", "scale", "a.conv.bias"])
    ['  a.conv.{bias, weight}', '  scale']
    """
    leaves_per_module = defaultdict(list)
    for name in names:
        module, _, leaf = name.rpartition(".")
        leaves_per_module[module].append(leaf)
    lines = []
    for module, leaves in leaves_per_module.items():
        joined = leaves[0] if len(leaves) == 1 else "{" + ", ".join(sorted(leaves)) + "}"
        lines.append(f"  {module}.{joined}" if module else f"  {joined}")
    return sorted(lines)
