"""Settings of caption generation."""

from __future__ import annotations

from dataclasses import dataclass

from glipv2_d2.messages import quote


@dataclass(frozen=True)
class GenerationConfig:
    """How captions are generated. Lengths are in tokens, prefix included, without [SEP].

    Attributes:
        beam_size: number of beams; 1 is greedy search.
        min_length, max_length: limits of a caption.
        length_penalty: finished captions are compared by their log-probability divided by the
            number of their new tokens to this power; 0 favours short ones.
        prefix: the beginning of every caption.
    """

    beam_size: int = 5
    min_length: int = 1
    max_length: int = 30
    length_penalty: float = 1.0
    prefix: str = ""

    def __post_init__(self) -> None:
        for name in ("beam_size", "min_length", "max_length"):
            if not isinstance(getattr(self, name), int):
                raise TypeError(f"{name} is {getattr(self, name)!r}; it must be an integer")
        if not isinstance(self.length_penalty, int | float):
            raise TypeError(f"length_penalty is {self.length_penalty!r}; it must be a number")
        if not isinstance(self.prefix, str):
            raise TypeError(f"prefix is {quote(self.prefix)}; it must be a string")
        for name in ("beam_size", "min_length", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.min_length > self.max_length:
            raise ValueError(
                f"min_length {self.min_length} exceeds max_length {self.max_length}: lower "
                "min_length or raise max_length"
            )
