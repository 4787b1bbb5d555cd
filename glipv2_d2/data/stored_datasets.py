"""Stores of the training records of registered datasets, built once per version of their files.

A store is beside the first source file of its dataset, in ``record_stores/``, or where that cannot
be written in the cache directory of :mod:`glipv2_d2.text.model_files`. Its name has a digest of all
that determines its records: the source files, the reader, the settings, and the code of this
project's readers. So a store of other files or settings is not found, and is built anew.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from filelock import FileLock
from tqdm import tqdm

from glipv2_d2.data.loading import check_paths, check_registered, iterate_training_records
from glipv2_d2.data.record_store import RECORDS_FILE, RecordStore, write_store
from glipv2_d2.data.registration import READER_METADATA, Record, StreamedRecords, source_paths
from glipv2_d2.file_writing import disk_full
from glipv2_d2.text.model_files import CACHE_VARIABLE, cache_directory
from glipv2_d2.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

FOLDER = "record_stores"
DIGEST_LENGTH = 16


def open_stores(cfg: CfgNode) -> dict[str, RecordStore]:
    """The stores of the datasets in ``DATASETS.TRAIN``, and their class names in the metadata.

    A missing or damaged store is built. Processes that start together build it once.

    Raises:
        ValueError: a dataset is not registered, has no source files on this machine, or has no
            usable records.
        FileNotFoundError: a source file does not exist.
        OSError: there is no room for a store.
    """
    tokenizer = Tokenizer(cfg.MODEL.LANGUAGE_BACKBONE.MODEL, cfg.MODEL.PROMPT.MAX_TOKENS)
    return {name: _open(name, cfg, tokenizer) for name in cfg.DATASETS.TRAIN}


def _open(name: str, cfg: CfgNode, tokenizer: Tokenizer) -> RecordStore:
    check_registered(name)
    check_paths(name)
    settings = {
        "filter_empty": cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        "separator": cfg.MODEL.PROMPT.SEPARATOR,
    }
    sources = _source_files(name)
    key = _digest(name, sources, settings, tokenizer)
    parents = (Path(sources[0]).resolve().parent / FOLDER, cache_directory() / FOLDER)
    folders = [parent / f"{re.sub(r'[^A-Za-z0-9_.+-]', '_', name)}-{key}" for parent in parents]
    records = functools.partial(iterate_training_records, name, tokenizer=tokenizer, **settings)
    store = next(filter(None, map(_existing, folders)), None) or _build(name, folders, records)
    metadata = MetadataCatalog.get(name)
    metadata.set(**{k: value for k, value in store.metadata.items() if not metadata.get(k)})
    return store


def _existing(folder: Path) -> RecordStore | None:
    """The store in a folder, or None if there is none or it is damaged."""
    try:
        return RecordStore(folder)
    except FileNotFoundError:
        return None
    except ValueError as error:
        logger.warning("%s: it is built again", error)
        return None


def _build(name: str, folders: list[Path], records: Callable[[], Iterator[Record]]) -> RecordStore:
    """Build a store in the first of the folders that can be written."""
    for folder in folders:
        lock = FileLock(f"{folder}.lock")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            logger.info("no record store in '%s': %s", folder.parent, error)
            continue
        try:
            # Another process may have built it meanwhile.
            return _existing(folder) or _write(name, folder, records)
        finally:
            lock.release()
    raise OSError(
        f"the record store of dataset {name!r} cannot be written to any of "
        f"{', '.join(repr(str(folder.parent)) for folder in folders)}: set the environment "
        f"variable {CACHE_VARIABLE} to a folder with room for it"
    )


def _write(name: str, folder: Path, records: Callable[[], Iterator[Record]]) -> RecordStore:
    start = time.monotonic()
    logger.info("the records of dataset %r are being stored in '%s'", name, folder)
    # The name is fixed, so that what a killed process left is overwritten.
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        progress = tqdm(records(), desc=f"storing {name}", unit=" records", mininterval=5)
        get_metadata = functools.partial(_metadata_of_reader, name)
        write_store(partial, progress, dataset_name=name, get_metadata=get_metadata)
        if not (partial / RECORDS_FILE).stat().st_size:
            raise ValueError(f"dataset {name!r} has no usable training image: see the log above")
        # A damaged store may be there. Other processes find a whole store or none.
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        full = disk_full(error)
        if full is None:
            raise
        raise OSError(
            full.errno,
            f"no room for the record store of dataset {name!r} in '{folder.parent}': free some, or "
            f"make that folder read-only and set {CACHE_VARIABLE} to a folder on another disk",
        ) from error
    minutes = (time.monotonic() - start) / 60
    store = RecordStore(folder)
    logger.info("%d records are stored in '%s' (%.1f minutes)", len(store), folder, minutes)
    return store


def _metadata_of_reader(name: str) -> dict[str, Any]:
    metadata = MetadataCatalog.get(name)
    return {key: metadata.get(key) for key in READER_METADATA if metadata.get(key)}


def _source_files(name: str) -> list[str]:
    """The files and folders of a dataset, an annotation file or shard first."""
    paths = source_paths(name)
    if find := MetadataCatalog.get(name).get("find_files"):
        paths += find()
    remedy = "or set DATALOADER.RECORD_STORE to False"
    if not paths:
        raise ValueError(
            f"the source files of dataset {name!r} are unknown, so its record store would not "
            f"follow their changes: set MetadataCatalog.get({name!r}).source_files, {remedy}"
        )
    for path in paths:
        if "://" in path:
            raise ValueError(
                f"dataset {name!r}: a record store is made from files of this machine, not "
                f"{path!r}: download it, {remedy}"
            )
    return paths


def _digest(name: str, sources: list[str], settings: dict[str, Any], tokenizer: Tokenizer) -> str:
    """A digest of all that determines the records of a store."""
    load = DatasetCatalog[name]
    load = load.iterate if isinstance(load, StreamedRecords) else load
    arguments = []
    while isinstance(load, functools.partial):
        arguments.append([load.args, load.keywords])
        load = load.func
    parts = {
        "dataset": name,
        "sources": [_state_of(path) for path in sources],
        "reader": [load.__module__, getattr(load, "__qualname__", ""), _code_of(load), arguments],
        "project": _code_of_project(),
        "settings": settings,
        "tokenizer": tokenizer.fingerprint,
        "decorations": MetadataCatalog.get(name).get("decorations"),
    }
    # Functions among the arguments are in the code.
    text = json.dumps(parts, sort_keys=True, default=lambda value: getattr(value, "__name__", ""))
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]


def _state_of(path: str) -> list[Any]:
    """What changes with a file; a folder of images changes no record."""
    state = os.stat(path)
    place = [path, os.path.realpath(path)]
    return place if os.path.isdir(path) else [*place, state.st_size, state.st_mtime_ns]


def _code_of(reader: Callable[..., Any]) -> str:
    """A digest of the file of a reader, which may be of another project."""
    try:
        file = inspect.getsourcefile(reader)
    except TypeError:
        file = None
    return (
        hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and os.path.isfile(file) else ""
    )


@functools.cache
def _code_of_project() -> str:
    """A digest of the code that makes records: the version of all readers."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted([*root.glob("data/**/*.py"), *root.glob("text/*.py")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()
