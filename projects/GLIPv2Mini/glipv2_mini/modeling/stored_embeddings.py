"""Embeddings of long lists of class names, stored in the user's cache for later processes.

To embed the names of ImageNet takes longer than anything else that is done once per process.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata, resources
from pathlib import Path

import safetensors.torch
import torch
from detectron2.config import CfgNode
from safetensors import SafetensorError
from torch import Tensor

from glipv2_d2.file_writing import atomic_open
from glipv2_d2.modeling.language import LANGUAGE_BACKBONE_REGISTRY
from glipv2_d2.text.model_files import cache_directory, resolve_model, resolve_weights, sha256_of

FOLDER = "embeddings"
_KEY = "embeddings"
# What encodes a string, beside the encoder's files and the config.
_LIBRARIES = ("torch", "transformers", "tokenizers")
_CODE = ("glipv2_d2.text", "glipv2_d2.modeling.language", "glipv2_mini.text")


class StoredEmbeddings:
    """Embeds strings as an encoder does, which is built for lists that are not stored.

    A file that cannot be read is replaced; without a place to write, nothing is stored.
    """

    def __init__(
        self, build: Callable[[], Callable[[Sequence[str]], Tensor]], fingerprint: str
    ) -> None:
        """
        Args:
            build: returns the encoder: A strings -> (A, D).
            fingerprint: changes with everything that the embeddings depend on; "": store nothing.
        """
        self._build = build
        self._fingerprint = fingerprint
        self._encoder: Callable[[Sequence[str]], Tensor] | None = None

    def __call__(self, strings: Sequence[str]) -> Tensor:
        """Embed A strings into (A, D)."""
        if not self._fingerprint:
            return self._encode(strings)
        try:
            path = self._path_of(strings)
        except RuntimeError:  # the user has no home directory
            return self._encode(strings)
        embeddings = _read(path, len(strings))
        if embeddings is None:
            embeddings = self._encode(strings)
            _write(path, embeddings)
        return embeddings

    def _encode(self, strings: Sequence[str]) -> Tensor:
        if self._encoder is None:
            self._encoder = self._build()
        return self._encoder(strings)

    def _path_of(self, strings: Sequence[str]) -> Path:
        content = json.dumps([self._fingerprint, *strings]).encode()
        name = hashlib.sha256(content).hexdigest()
        return cache_directory() / FOLDER / f"{name}.safetensors"


def encoder_fingerprint(cfg: CfgNode) -> str:
    """A fingerprint of the config's text encoder: its files, settings, code and libraries.

    Returns:
        "" if the files are not in folders of this machine.
    """
    language = cfg.MODEL.LANGUAGE_BACKBONE
    folders = [Path(resolve_model(language.MODEL)), Path(resolve_weights(language.WEIGHTS))]
    if not all(folder.is_dir() for folder in folders):
        return ""
    digests = [sha256_of(path) for folder in folders for path in _files(folder.iterdir())]
    versions = [metadata.version(name) for name in _LIBRARIES]
    parts = [language.dump(), str(cfg.MODEL.PROMPT.MAX_TOKENS), *versions, *digests]
    backbone = inspect.getfile(LANGUAGE_BACKBONE_REGISTRY.get(language.NAME))
    packages = [Path(str(resources.files(package))) for package in _CODE]
    sources = [path for package in packages for path in _files(package.glob("*.py"))]
    parts += [sha256_of(path) for path in (Path(backbone), *sources)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _files(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.is_file())


def _read(path: Path, num_strings: int) -> Tensor | None:
    try:
        embeddings = safetensors.torch.load_file(path)[_KEY]
    except (OSError, SafetensorError, KeyError):
        return None
    is_valid = embeddings.ndim == 2 and len(embeddings) == num_strings
    return embeddings if is_valid and torch.isfinite(embeddings).all() else None


def _write(path: Path, embeddings: Tensor) -> None:
    content = safetensors.torch.save({_KEY: embeddings.detach().cpu().contiguous()})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_open(path) as file:
            file.write(content)
    except OSError:
        return
