"""What files of weights and settings may run: installed packages; with a switch, their own code."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Mapping, Sequence
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
    if not (_is_in_site_packages(name) or _is_installed(name)):
        raise ModuleNotFoundError(f"no installed distribution has the package {name!r}", name=name)
    return importlib.import_module(name)


def _is_in_site_packages(name: str) -> bool:
    """Whether a package or module is in the folder of installed ones.

    It takes milliseconds, where reading the files of all distributions takes a second.
    """
    origin = _origin(name)
    if origin is None:
        return False
    folder = origin.parent.parent if origin.name == "__init__.py" else origin.parent
    return str(folder) in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}


def _is_installed(name: str) -> bool:
    """Whether what would be imported is a file of an installed distribution.

    A folder of the same name in the working directory may come before it. The files of an editable
    install are not listed.
    """
    origin = _origin(name)
    for distribution in _installed_packages().get(name, ()):
        files = metadata.files(distribution) or []
        own = [file for file in files if file.parts[0] in (name, f"{name}.py")]
        if not own or origin in {Path(str(file.locate())) for file in own}:
            return True
    return False


def _origin(name: str) -> Path | None:
    """The file that would be imported; nothing is."""
    # The parent of a dotted name would be imported.
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


@functools.cache
def _installed_packages() -> Mapping[str, Sequence[str]]:
    """The distributions of each package."""
    return metadata.packages_distributions()
