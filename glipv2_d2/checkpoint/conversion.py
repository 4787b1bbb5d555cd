"""Conversion of GLIP's checkpoint files to ones of this project, and back."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from torch import Tensor

from glipv2_d2.checkpoint import (
    Layout,
    detect_layout,
    from_glip,
    read_checkpoint,
    save_state,
    to_glip,
)


def convert(
    source: Path, target: Path, *, to_glip_names: bool
) -> tuple[dict[str, Tensor], list[tuple[int, str]]]:
    """Write ``source`` with renamed keys to ``target``.

    Returns:
        The written weights, and the number of keys of each outcome.

    Raises:
        FileNotFoundError, ValueError: a file cannot be used, or a key is unknown.
    """
    if target.exists() and target.samefile(source):
        raise ValueError(f"'{target}' is the input itself; choose another output file.")
    state_dict = read_checkpoint(source)["model"]
    expected = Layout.NATIVE if to_glip_names else Layout.GLIP
    if (found := detect_layout(state_dict)) is not expected:
        raise ValueError(
            f"'{source}' has names of the layout '{found.value}', not of '{expected.value}'. "
            "Only GLIP files are converted; --to-glip selects the direction."
        )
    converted, rows = _to_glip(state_dict) if to_glip_names else _from_glip(state_dict)
    save_state(converted, target)
    return converted, rows


def _from_glip(state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[tuple[int, str]]]:
    converted, account = from_glip(state_dict)
    if account.unknown:
        raise ValueError(
            f"{len(account.unknown)} keys are unknown, and nothing was written: "
            + ", ".join(account.unknown)
        )
    reasons = Counter(account.ignored.values())
    return converted, [
        (len(account.loaded), "loaded"),
        (len(account.recomputed), "recomputed by the model"),
        *((count, f"ignored: {reason}") for reason, count in sorted(reasons.items())),
    ]


def _to_glip(state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[tuple[int, str]]]:
    converted = to_glip(state_dict)
    return converted, [
        (len(converted), "renamed"),
        (len(state_dict) - len(converted), "skipped: buffers that GLIP creates"),
    ]
