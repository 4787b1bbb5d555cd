"""What files of weights and settings may run: installed packages; with a switch, their own code."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Collection
from importlib import metadata
from pathlib import Path
from types import ModuleType

UNSAFE_VARIABLE = "GLIPV2_D2_ALLOW_UNSAFE_FILES"
"""Environment variable: 1 allows any pickle in .pkl weights and Python tags in YAML files.

It is neither a config key nor a part of any file, so that no file can set it.
"""


def unsafe_files_allowed() -> bool:
    return os.environ.get(UNSAFE_VARIABLE) == "1"


def unsafe_remedy() -> str:
    """The end of an error about a file that is refused."""
    return f"If you trust the file as you trust a program, set the variable {UNSAFE_VARIABLE}=1"


def import_package(name: str) -> ModuleType:
    """Import an installed package that a config names as ``package:NAME``.

    Other modules are not imported: one in the working directory may come with the config.

    Raises:
        ModuleNotFoundError: no installed distribution has the package.
    """
    if name in sys.modules:
        return sys.modules[name]
    if not (_is_in_site_packages(name) or name in _installed_packages()):
        raise ModuleNotFoundError(f"no installed distribution has the package {name!r}", name=name)
    return importlib.import_module(name)


def _is_in_site_packages(name: str) -> bool:
    """Whether a package or module is in the folder of installed ones, found without importing.

    It takes milliseconds, where reading the files of all distributions takes a second.
    """
    # The parent of a dotted name would be imported.
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or spec.origin is None:
        return False
    path = Path(spec.origin)
    folder = path.parent.parent if spec.submodule_search_locations else path.parent
    return str(folder) in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}


@functools.cache
def _installed_packages() -> Collection[str]:
    return metadata.packages_distributions().keys()
