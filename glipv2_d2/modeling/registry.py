"""Building registered parts, with a check of their base class."""

from __future__ import annotations

from typing import Any

from detectron2.utils.registry import Registry


def build_part(
    registry: Registry, name: str, base: type, key: str, *args: Any, **kwargs: Any
) -> Any:
    """Build the part that ``registry`` has under ``name``, with the other arguments.

    Args:
        base: the class that the part must inherit from.
        key: the config key of ``name``, for the error.

    Raises:
        KeyError: the registry has no such name.
        TypeError: what is registered is not a ``base``.
    """
    build = registry.get(name)
    part = None
    if not isinstance(build, type) or issubclass(build, base):
        part = build(*args, **kwargs)
    if not isinstance(part, base):
        choices = [other for other, x in registry if isinstance(x, type) and issubclass(x, base)]
        raise TypeError(
            f"{key} {name} is not a {base.__name__} (module {base.__module__}): choose one of "
            f"{choices}, as the config of such a model does (configs/glip/Base-GLIP.yaml)"
        )
    return part
