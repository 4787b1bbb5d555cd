"""Pseudo-labelling of many captions, in shards, with several processes and resumption.

The output folder::

    settings.json                  settings of the first run; later runs must have the same
    shards/00000.jsonl (or .tar)   grounded records; exists once the shard is complete
    shards/00000.account.json      counts of the shard, and its pairs without a record
    labels.jsonl                   the records of all shards (tar shards are not merged)
    left_out.jsonl                 every pair without a record, with the reason

Files are written atomically, and the division into shards is the same in every run: a resumed run
repeats only the shards that were in progress.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from tqdm import tqdm

from glipv2_d2.data.faults import Faults
from glipv2_d2.data.readers.captions import MIN_SCORE
from glipv2_d2.data.readers.image_text import Pair, contains_images, read_pairs
from glipv2_d2.engine.pseudo_label.pseudo_labeler import GroundedRecord, LeftOutPair, PseudoLabeler
from glipv2_d2.file_writing import atomic_open, dump_json

Advance = Callable[[int], Any]
"""Called with the number of pairs that were labelled since the last call."""

no_progress = functools.partial(tqdm, disable=True)

# Seconds between two updates of the progress of other processes.
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class LabellingTask:
    """Model, captions and output folder of a pseudo-labelling run.

    Attributes:
        cfg: of the model, with its weights in ``MODEL.WEIGHTS``.
        captions: see :func:`~glipv2_d2.data.readers.image_text.read_pairs`.
        image_root: the folder of the images; "" for tar shards, which contain them.
        threshold: boxes with a score above it are kept.
        shard_size: pairs per shard; a killed process loses at most one shard.
        batch_size: images per forward pass.
    """

    cfg: CfgNode
    captions: str
    image_root: str
    output: Path
    threshold: float = MIN_SCORE
    shard_size: int = 1000
    batch_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise ValueError(f"the threshold is {self.threshold}; it must be in [0, 1)")
        if self.shard_size < 1 or self.batch_size < 1:
            raise ValueError(
                f"the shard size is {self.shard_size} and the batch size {self.batch_size}; "
                "both must be at least 1"
            )
        if not self.cfg.MODEL.WEIGHTS:
            raise ValueError("MODEL.WEIGHTS is empty: set the weights of the model that labels")
        if contains_images(self.captions) != (not self.image_root):
            raise ValueError(
                f"captions {self.captions!r}, images {self.image_root!r}: pass the folder of the "
                "images, or no folder for tar shards, which contain them"
            )
        if self.image_root and not os.path.isdir(self.image_root):
            raise FileNotFoundError(f"the folder of images {self.image_root!r} does not exist")

    @property
    def shard_folder(self) -> Path:
        return self.output / "shards"


@dataclass(frozen=True)
class Shard:
    """Consecutive pairs, and the file of their records."""

    path: Path
    pairs: list[Pair]

    @property
    def account_path(self) -> Path:
        return self.path.with_suffix(".account.json")


@dataclass(frozen=True)
class LabellingReport:
    """Totals over all shards of an output folder.

    Attributes:
        num_pairs: number of image-caption pairs.
        num_records: number of pairs with at least one box.
        left_out: counts and examples of the other pairs, by reason.
        num_boxes: number of boxes in all records.
        dataset: an entry of ``DATASETS.CUSTOM`` for training, without its name.
        left_out_file: lists every pair without a record.
    """

    num_pairs: int
    num_records: int
    num_boxes: int
    left_out: Faults
    dataset: dict[str, str]
    left_out_file: Path


def label_captions(
    task: LabellingTask,
    *,
    num_processes: int = 1,
    progress: Callable[..., tqdm] = no_progress,
) -> LabellingReport:
    """Label the shards that are not complete, and return the totals of all shards.

    Args:
        num_processes: processes that share the shards. Each loads its own model, on the next GPU
            when ``MODEL.DEVICE`` is CUDA.
        progress: builds the progress bar; has the signature of tqdm.

    Raises:
        FileNotFoundError, ValueError: the captions, images or model are not valid, or the output
            folder was started with other settings.
        ChildProcessError: a process died.
    """
    if num_processes < 1:
        raise ValueError(f"the number of processes is {num_processes}; it must be at least 1")
    pairs = read_pairs(task.captions)
    task.shard_folder.mkdir(parents=True, exist_ok=True)
    _check_settings(task, pairs)
    shards = _split(task, pairs)
    open_shards = [shard for shard in shards if not shard.path.exists()]
    num_open = sum(len(shard.pairs) for shard in open_shards)
    with progress(total=len(pairs), initial=len(pairs) - num_open, unit="caption") as bar:
        if num_processes == 1 and open_shards:
            labeler = _build_labeler(task)
            for shard in open_shards:
                label_shard(labeler, shard, bar.update)
        elif open_shards:
            _label_in_processes(task, open_shards, num_processes, bar.update)
    return _merge_shards(task, shards)


def label_shard(labeler: PseudoLabeler, shard: Shard, advance: Advance) -> None:
    """Label the pairs of a shard and write its files, that of the records last."""
    records: list[GroundedRecord] = []
    left_out: list[LeftOutPair] = []
    for result in labeler.label(shard.pairs):
        if isinstance(result, LeftOutPair):
            left_out.append(result)
        else:
            records.append(result)
        advance(1)
    account = {
        "num_records": len(records),
        "num_boxes": sum(len(record["boxes"]) for record in records),
        "left_out": [asdict(pair) for pair in left_out],
    }
    with atomic_open(shard.account_path) as file:
        file.write(dump_json(account).encode())
    with atomic_open(shard.path) as file:
        _WRITERS[shard.path.suffix](file, records, shard.path.stem)


# Files


def _write_lines(file: IO[bytes], records: Sequence[GroundedRecord], _stem: str) -> None:
    file.writelines(dump_json(record).encode() + b"\n" for record in records)


def _write_tar(file: IO[bytes], records: Sequence[GroundedRecord], stem: str) -> None:
    """Write a WebDataset shard: the unchanged image files, each with its record."""
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number, record in enumerate(records):
            key = f"{stem}-{number:06}"
            # tar://SHARD.tar/MEMBER@OFFSET+SIZE
            image_suffix = Path(record["image"].rpartition("@")[0]).suffix
            with PathManager.open(record["image"], "rb") as image:
                _add_member(tar, key + image_suffix, image.read())
            _add_member(tar, f"{key}.json", dump_json(record).encode())


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


_WRITERS: dict[str, Callable[[IO[bytes], Sequence[GroundedRecord], str], None]] = {
    ".jsonl": _write_lines,
    ".tar": _write_tar,
}


def _split(task: LabellingTask, pairs: Sequence[Pair]) -> list[Shard]:
    suffix = ".tar" if contains_images(task.captions) else ".jsonl"
    starts = range(0, len(pairs), task.shard_size)
    # Numbers of equal length, for brace patterns.
    num_digits = max(5, len(str(len(starts) - 1)))
    return [
        Shard(
            task.shard_folder / f"{number:0{num_digits}}{suffix}",
            list(pairs[start : start + task.shard_size]),
        )
        for number, start in enumerate(starts)
    ]


def _check_settings(task: LabellingTask, pairs: Sequence[Pair]) -> None:
    """Write the settings of a new folder, or compare them with those of an existing one.

    Raises:
        ValueError: the settings differ; shards of both runs must not be mixed.
    """
    model = task.cfg.MODEL.clone()
    model.defrost()
    # Another device does not change the labels.
    model.DEVICE = ""
    settings = {
        "captions": _digest(text for pair in pairs for text in pair),
        "shard_size": task.shard_size,
        "model": _digest(part.dump() for part in (model, task.cfg.INPUT, task.cfg.TEST)),
        "threshold": task.threshold,
        "weights": task.cfg.MODEL.WEIGHTS,
    }
    path = task.output / "settings.json"
    if not path.exists():
        with atomic_open(path) as file:
            file.write(dump_json(settings, indent=1).encode())
        return
    existing = json.loads(path.read_text())
    changed = [
        f"{key} was {existing.get(key)!r} and is {settings[key]!r}"
        for key in settings
        if existing.get(key) != settings[key]
    ]
    if changed:
        raise ValueError(
            f"the output folder '{task.output}' was started with other settings: "
            f"{'; '.join(changed)}. Use the same settings, or another folder"
        )


def _digest(texts: Iterator[str]) -> str:
    """Hash of strings in order. JSON separates the strings and encodes lone surrogates."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(json.dumps(text).encode())
    return digest.hexdigest()[:16]


def _merge_shards(task: LabellingTask, shards: Sequence[Shard]) -> LabellingReport:
    """Merge the shards and add up their accounts."""
    num_records, num_boxes, faults = 0, 0, Faults()
    left_out_file = task.output / "left_out.jsonl"
    with atomic_open(left_out_file) as file:
        for shard in shards:
            account = json.loads(shard.account_path.read_text())
            num_records += account["num_records"]
            num_boxes += account["num_boxes"]
            for pair in account["left_out"]:
                faults.add(pair["reason"], pair["image"])
                file.write(dump_json(pair).encode() + b"\n")
    if contains_images(task.captions):
        first, last = shards[0].path, shards[-1].path
        # Shells and webdataset do not expand a range of one number.
        pattern = first.stem if first == last else f"{{{first.stem}..{last.stem}}}"
        dataset = {"format": "webdataset", "shards": str(first.with_name(f"{pattern}.tar"))}
    else:
        labels = task.output / "labels.jsonl"
        with atomic_open(labels) as file:
            for shard in shards:
                with shard.path.open("rb") as part:
                    shutil.copyfileobj(part, file)
        dataset = {"format": "captions", "json": str(labels), "images": task.image_root}
    num_pairs = sum(len(shard.pairs) for shard in shards)
    return LabellingReport(num_pairs, num_records, num_boxes, faults, dataset, left_out_file)


# Processes


def _build_labeler(task: LabellingTask, device: str | None = None) -> PseudoLabeler:
    cfg = task.cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = device or cfg.MODEL.DEVICE
    return PseudoLabeler(
        cfg, image_root=task.image_root, threshold=task.threshold, batch_size=task.batch_size
    )


def _label_in_processes(
    task: LabellingTask, shards: Sequence[Shard], num_processes: int, advance: Advance
) -> None:
    """Label shards in a pool of processes."""
    # Processes are forked from a server that has imported everything and computed nothing: faster
    # than spawning, and safe with CUDA and OpenMP.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    num_started, num_labelled = context.Value("q", 0), context.Value("q", 0)
    num_reported = 0
    with _pool(context, num_processes, (task, num_processes, num_started, num_labelled)) as pool:
        pending = {pool.submit(_label_in_pool, shard) for shard in shards}
        while pending:
            done, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            num_now = num_labelled.value
            advance(num_now - num_reported)
            num_reported = num_now
            for future in done:
                future.result()


@contextmanager
def _pool(
    context: Any, num_processes: int, arguments: tuple[Any, ...]
) -> Iterator[ProcessPoolExecutor]:
    """A process pool that starts no further shard after a failure."""
    pool = ProcessPoolExecutor(num_processes, context, _start_process, arguments)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a labelling process died, perhaps out of memory. Completed shards are kept: run the "
            "same command again, with fewer processes if necessary"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


class _Process:
    """State of a pool process between shards."""

    def __init__(
        self, task: LabellingTask, num_processes: int, num_started: Any, num_labelled: Any
    ) -> None:
        self.task = task
        self.num_labelled = num_labelled
        with num_started.get_lock():
            self.rank = num_started.value
            num_started.value += 1
        torch.set_num_threads(max(1, torch.get_num_threads() // num_processes))

    @functools.cached_property
    def labeler(self) -> PseudoLabeler:
        """Built with the first shard, so that an error is raised in the caller."""
        device = self.task.cfg.MODEL.DEVICE
        if device == "cuda":
            device = f"cuda:{self.rank % torch.cuda.device_count()}"
        return _build_labeler(self.task, device)

    def advance(self, num_pairs: int) -> None:
        with self.num_labelled.get_lock():
            self.num_labelled.value += num_pairs


_process: _Process


def _start_process(*arguments: Any) -> None:
    global _process
    _process = _Process(*arguments)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Exit when the parent is killed; a pool process would not notice."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _label_in_pool(shard: Shard) -> None:
    label_shard(_process.labeler, shard, _process.advance)
