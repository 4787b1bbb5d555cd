"""Files of Debian packages, without installing them."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Collection
from pathlib import Path


def find_package(directory: Path, name: str) -> Path:
    """The file of a package in ``directory``; apt-get downloads it if it is not there.

    Downloads need no root.

    Raises:
        FileNotFoundError: apt-get is missing or cannot download the package.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if not list(directory.glob(f"{name}_*.deb")):
        try:
            subprocess.run(["apt-get", "download", name], cwd=directory, check=True)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            raise FileNotFoundError(
                f"apt-get could not download {name} ({error}). Run `apt-get update` as root first, "
                "or get the package's .deb by hand and give its directory with --packages"
            ) from error
    return sorted(directory.glob(f"{name}_*.deb"))[-1]


def read_package(package: Path, paths: Collection[str]) -> dict[str, bytes]:
    """The contents of files of a package.

    Args:
        paths: the files, without a slash at the beginning.

    Returns:
        Path -> content, of those ``paths`` that the package has.

    Raises:
        FileNotFoundError: dpkg-deb is missing.
        ValueError: the package is damaged.
    """
    wrong = f"{package} is not a complete Debian package: delete it, to download it again"
    contents: dict[str, bytes] = {}
    try:
        process = subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(package)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise FileNotFoundError("dpkg-deb is missing: install Debian's package dpkg") from error
    with process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    path = member.name.removeprefix("./")
                    file = archive.extractfile(member) if path in paths else None
                    if file is not None:
                        contents[path] = file.read()
                    if len(contents) == len(paths):
                        # The rest of a large package need not be decompressed.
                        return contents
        except tarfile.TarError as error:
            raise ValueError(f"{wrong} ({error})") from error
    if process.returncode != 0:
        raise ValueError(f"{wrong} (dpkg-deb returned {process.returncode})")
    return contents
