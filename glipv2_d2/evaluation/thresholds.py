"""Score thresholds per class."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor

from glipv2_d2.file_writing import dump_json
from glipv2_d2.messages import quote
from glipv2_d2.text.names import normalized_name


@dataclass(frozen=True)
class ScoreThresholds:
    """Score thresholds per class name; names are compared by :func:`normalized_name`.

    Attributes:
        per_class: class name -> threshold, 0..1.
        default: threshold of every other class.
    """

    per_class: Mapping[str, float]
    default: float = 0.0

    def __post_init__(self) -> None:
        for name, score in {**self.per_class, "every other class": self.default}.items():
            if isinstance(score, bool) or not isinstance(score, Real) or not 0 <= score <= 1:
                raise ValueError(
                    f"the threshold of {quote(name)} is {quote(score)}; pass a number between 0 "
                    "and 1"
                )

    @staticmethod
    def from_source(source: ScoreThresholds | Mapping[str, float] | str | Path) -> ScoreThresholds:
        """Thresholds from a mapping, or from a file that :meth:`to_json` wrote.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file has another format, or a threshold is not between 0 and 1.
        """
        if isinstance(source, ScoreThresholds):
            return source
        if isinstance(source, Mapping):
            return ScoreThresholds(dict(source))
        return _read(Path(source))

    def for_classes(self, names: Sequence[str]) -> Tensor:
        """(len(names),) float32, the threshold of each class."""
        thresholds = {normalized_name(name): score for name, score in self.per_class.items()}
        return torch.tensor([thresholds.get(normalized_name(name), self.default) for name in names])

    def to_json(self, **about: Any) -> str:
        """File content for :meth:`from_source`; ``about`` is added for human readers."""
        content = {"thresholds": dict(self.per_class), "default": self.default, **about}
        return dump_json(content, indent=1, ensure_ascii=False)


def display_threshold(cfg: CfgNode) -> float:
    """The minimum score of a box that is shown, ``TEST.DISPLAY_SCORE_THRESH``.

    Raises:
        ValueError: it is not from 0 to 1.
    """
    value = float(cfg.TEST.DISPLAY_SCORE_THRESH)
    if not 0 <= value <= 1:
        raise ValueError(f"TEST.DISPLAY_SCORE_THRESH is {value}; scores are from 0 to 1")
    return value


def _read(path: Path) -> ScoreThresholds:
    if not path.is_file():
        raise FileNotFoundError(f"threshold file {str(path)!r} does not exist")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        return ScoreThresholds(dict(content["thresholds"]), content["default"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{str(path)!r} is not a threshold file ({type(error).__name__}: {error}); expected "
            'JSON such as {"thresholds": {"cat": 0.4}, "default": 0.5}, as written by '
            "glipv2 check-names calibrate"
        ) from error
