"""Tests of one module that run again in another module, with that module's fixtures."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType


def shared_tests(module: ModuleType, *fixtures: str) -> dict[str, Callable]:
    """The tests of a module that use one of these fixtures, by name; for ``globals().update``."""
    return {
        name: test
        for name, test in vars(module).items()
        if name.startswith("test_") and not set(fixtures).isdisjoint(_arguments(test))
    }


def _arguments(test: Callable) -> set[str]:
    return set(inspect.signature(test).parameters)
