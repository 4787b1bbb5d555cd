"""Two-way tables of state-dict names.

A *template* is a name with placeholders: ``{p}`` stands for ``weight`` or ``bias``, ``{rest}`` for
any string, and any other (``{n}``, ``{m}``) for a number. Both sides of an entry have the same
placeholders.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from glipv2_d2.checkpoint.load_report import LoadReport

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_MEANING = {"p": "weight|bias", "rest": ".+"}


class NameTable:
    """Two-way mapping between the names of two layouts.

    >>> table = NameTable({"body.layers.{n}.{p}": "stages.{n}.{p}", "body.scale": "scale"})
    >>> table.forward("body.layers.3.bias")
    'stages.3.bias'
    >>> table.backward("stages.3.bias")
    'body.layers.3.bias'
    >>> table.forward("body.layers.3.momentum") is None
    True
    """

    def __init__(
        self,
        templates: Mapping[str, str],
        *,
        recomputed: Iterable[str] = (),
        ignored: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            templates: name on the left side -> name on the right side.
            recomputed: left names of buffers that the right side recomputes.
            ignored: left name without a counterpart -> the reason.
        """
        self._forward = [(_pattern(left), right) for left, right in templates.items()]
        self._backward = [(_pattern(right), left) for left, right in templates.items()]
        self._recomputed = [_pattern(left) for left in recomputed]
        self._ignored = [(_pattern(left), reason) for left, reason in (ignored or {}).items()]

    def forward(self, name: str) -> str | None:
        """The right name for a left name, None if no entry matches."""
        return _translate(name, self._forward)

    def backward(self, name: str) -> str | None:
        """The left name for a right name, None if no entry matches."""
        return _translate(name, self._backward)

    def rename(self, state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], LoadReport]:
        """Rename tensors from left to right names, and report how each name is handled."""
        loaded: dict[str, str] = {}
        recomputed: list[str] = []
        ignored: dict[str, str] = {}
        unknown: list[str] = []
        for name in state_dict:
            if right := self.forward(name):
                loaded[name] = right
            elif any(pattern.fullmatch(name) for pattern in self._recomputed):
                recomputed.append(name)
            elif reason := _translate(name, self._ignored):
                ignored[name] = reason
            else:
                unknown.append(name)
        renamed = {right: state_dict[left] for left, right in loaded.items()}
        return renamed, LoadReport(loaded, tuple(recomputed), ignored, tuple(unknown))


def _pattern(template: str) -> re.Pattern[str]:
    """A regular expression with one named group per placeholder.

    >>> _pattern("layers.{n}.{p}").fullmatch("layers.12.bias").groupdict()
    {'n': '12', 'p': 'bias'}
    """
    # re.split with a group returns literals and placeholders alternately.
    pieces = _PLACEHOLDER.split(template)
    literals, placeholders = pieces[::2], pieces[1::2]
    pattern = re.escape(literals[0])
    for placeholder, literal in zip(placeholders, literals[1:], strict=True):
        pattern += f"(?P<{placeholder}>{_MEANING.get(placeholder, '[0-9]+')})" + re.escape(literal)
    return re.compile(pattern)


def _translate(name: str, entries: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, template in entries:
        if match := pattern.fullmatch(name):
            return template.format(**match.groupdict())
    return None
