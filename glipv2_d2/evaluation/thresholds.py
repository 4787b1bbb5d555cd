"""The least score at which a box of each name is believed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glipv2_d2.text.prompts import normalized_name


@dataclass(frozen=True)
class NameThresholds:
    """Scores from 0 to 1 by name; case, blanks and underscores make no difference.

    Attributes:
        score_of_name: of each name, as the caller wrote it.
        default: of every other name.
    """

    score_of_name: Mapping[str, float]
    default: float = 0.0

    def __post_init__(self) -> None:
        for name, score in {**self.score_of_name, "every other name": self.default}.items():
            if isinstance(score, bool) or not isinstance(score, Real) or not 0 <= score <= 1:
                raise ValueError(f"the threshold of {name!r} is {score!r}; give a number 0 to 1")

    @staticmethod
    def of(source: NameThresholds | Mapping[str, float] | str | Path) -> NameThresholds:
        """Thresholds as a caller may hold them: a mapping, or a file of tools/check_names.py.

        Raises:
            FileNotFoundError, ValueError: the file is not there, or is none of thresholds; a
                threshold is not between 0 and 1.
        """
        if isinstance(source, NameThresholds):
            return source
        if isinstance(source, Mapping):
            return NameThresholds(dict(source))
        return _read(Path(source))

    def of_names(self, names: Sequence[str]) -> Tensor:
        """(names,) float32, the threshold of each."""
        of_same = {normalized_name(name): score for name, score in self.score_of_name.items()}
        return torch.tensor([of_same.get(normalized_name(name), self.default) for name in names])

    def to_json(self, **about: Any) -> str:
        """The content of a file that :meth:`of` reads; ``about`` goes into it for people."""
        content = {"thresholds": dict(self.score_of_name), "default": self.default, **about}
        return json.dumps(content, indent=1, ensure_ascii=False)


def _read(path: Path) -> NameThresholds:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of thresholds {str(path)!r}; check the path")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return NameThresholds(dict(content["thresholds"]), content["default"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{str(path)!r} is no file of thresholds ({type(error).__name__}: {error}): it is JSON "
            'as {"thresholds": {"cat": 0.4}, "default": 0.5}; tools/check_names.py calibrate '
            "writes one"
        ) from error
