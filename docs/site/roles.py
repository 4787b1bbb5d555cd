"""Docstrings for the site: Sphinx's roles become links of mkdocs-autorefs."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`(~?)([\w.]+)(?:\(\))?`")


class Roles(griffe.Extension):
    """Replaces the roles of every docstring."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:  # noqa: ARG002
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(_link, obj.docstring.value)


def _link(match: re.Match[str]) -> str:
    """A link where the target has a page; else the name alone."""
    is_short, target = match.groups()
    name = target.rpartition(".")[2] if is_short else target
    if "." not in target:
        return f"`{name}`"
    return f'<autoref optional identifier="{target}"><code>{name}</code></autoref>'
