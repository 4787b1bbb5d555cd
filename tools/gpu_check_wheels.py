"""The wheels that the GPU check carries to a machine without a network; standard library only."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from glipv2_cli.get_detectron2 import repacked_wheel

CONSTRAINTS = Path(__file__).resolve().parents[1] / "requirements" / "constraints.txt"
PYTHON = "3.12"
PLATFORMS = tuple(f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 17))

# What such a machine lacks besides detectron2 (its own list has torch, transformers, timm, pytest).
COMPILED = ("pycocotools",)
# Some of these are published as source only.
PURE = ("antlr4-python3-runtime", "fvcore", "iopath", "omegaconf", "termcolor", "yacs")


def prepare(folder: Path) -> list[Path]:
    """Download or build the wheels for Python 3.12 on Linux, and return all of the folder.

    Raises:
        RuntimeError: pip failed, or a wheel would run on this machine only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    only_binary = ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
    platforms = [x for platform in PLATFORMS for x in ("--platform", platform)]
    destination = ["--no-deps", "--quiet"]
    compiled, pure = (_requirements(names) for names in (COMPILED, PURE))
    pip("download", *destination, *only_binary, *platforms, "--dest", str(folder), *compiled)
    pip("wheel", *destination, "--wheel-dir", str(folder), *pure)
    repacked_wheel(folder)
    wheels = sorted(folder.glob("*.whl"))
    for wheel in wheels:
        is_compiled = distribution(wheel) in COMPILED
        if not is_compiled and not wheel.name.endswith("-none-any.whl"):
            raise RuntimeError(f"{wheel} is for one platform only: remove it, and --prepare again")
    return wheels


def install_missing(folder: Path, target: Path) -> list[str]:
    """Install the wheels whose distribution is not installed to ``target``; return their names.

    Raises:
        FileNotFoundError: the folder does not exist or has no wheels.
        ValueError: it has two versions of a distribution.
        RuntimeError: pip failed.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise FileNotFoundError(f"--wheels: {folder} has no wheels; write some with --prepare")
    by_name: dict[str, Path] = {}
    for wheel in wheels:
        other = by_name.setdefault(distribution(wheel), wheel)
        if other is not wheel:
            raise ValueError(f"--wheels: {other} and {wheel.name} are one package; remove one")
    missing = {name: wheel for name, wheel in by_name.items() if not is_installed(name)}
    if missing:
        options = ["--no-index", "--no-deps", "--no-compile", "--quiet", "--target", str(target)]
        pip("install", *options, "--find-links", str(folder), *map(str, missing.values()))
    return list(missing)


def distribution(wheel: Path) -> str:
    """The normalized name of a wheel's distribution.

    >>> distribution(Path("antlr4_python3_runtime-4.9.3-py3-none-any.whl"))
    'antlr4-python3-runtime'
    """
    return re.sub(r"[-_.]+", "-", wheel.name.partition("-")[0]).lower()


def is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments]
    if subprocess.run(command, check=False).returncode:
        raise RuntimeError(f"failed, see above: {' '.join(command)}")


def _requirements(names: Iterable[str]) -> list[str]:
    """``NAME==VERSION`` with the versions that the project is tested with."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    versions = dict(line.split("==") for line in lines if "==" in line)
    return [f"{name}=={versions[name]}" for name in names]
