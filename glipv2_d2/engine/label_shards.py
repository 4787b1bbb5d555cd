"""Pseudo-labelling of many captions: shard by shard, by several processes, to be gone on with.

The output folder::

    settings.json                  what it was begun with; another run has to agree
    shards/00000.jsonl (or .tar)   grounded records; a shard that has this file is done
    shards/00000.account.json      what became of its pairs
    labels.jsonl                   all shards, when the last one is done (tar shards stay shards)
    left_out.jsonl                 every pair without a record, and why

Every file appears whole or not at all, and a shard is the same stretch of the pairs in every run:
a run that was killed loses no more than the shards it was at, and repeats no others.
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

from glipv2_d2.checkpoint import atomic_open
from glipv2_d2.data.faults import Faults
from glipv2_d2.data.readers.captions import MIN_SCORE
from glipv2_d2.data.readers.image_text import Pair, holds_images, read_pairs
from glipv2_d2.engine.teacher import GroundedRecord, LeftOut, Teacher

Advance = Callable[[int], Any]
"""Called with the number of pairs that were done since the last call."""

no_progress = functools.partial(tqdm, disable=True)

# How often the progress of other processes is looked at, in seconds.
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class LabellingTask:
    """What is to be labelled, by whom, and where to.

    Attributes:
        cfg: of the teacher; ``MODEL.WEIGHTS`` are its weights.
        captions: see :func:`~glipv2_d2.data.readers.image_text.read_pairs`.
        image_root: the folder of the images; "" for shards, which hold them.
        threshold: boxes are kept whose score is above it.
        shard_size: pairs of one shard, the most that a process loses when it is killed.
        batch_size: images that go through the model together.
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
            raise ValueError(f"the threshold is {self.threshold}; scores lie between 0 and 1")
        if self.shard_size < 1 or self.batch_size < 1:
            raise ValueError(
                f"the shard size is {self.shard_size} and the batch size {self.batch_size}; "
                "both are at least 1"
            )
        if not self.cfg.MODEL.WEIGHTS:
            raise ValueError("MODEL.WEIGHTS is empty: name the weights of the teacher")
        if holds_images(self.captions) != (not self.image_root):
            raise ValueError(
                f"captions {self.captions!r}, images {self.image_root!r}: name the folder of the "
                "images, or no folder where they lie in shards"
            )
        if self.image_root and not os.path.isdir(self.image_root):
            raise FileNotFoundError(f"the folder of images {self.image_root!r} does not exist")

    @property
    def shard_folder(self) -> Path:
        return self.output / "shards"


@dataclass(frozen=True)
class Shard:
    """A stretch of the pairs, and the file of their records."""

    path: Path
    pairs: list[Pair]

    @property
    def account_path(self) -> Path:
        return self.path.with_suffix(".account.json")


@dataclass(frozen=True)
class LabellingReport:
    """What an output folder holds, by whichever run it was written.

    Attributes:
        num_pairs: of image and caption.
        num_records: of them, with at least one box.
        left_out: the others, by reason.
        num_boxes: of all records.
        dataset: the entry of ``DATASETS.CUSTOM`` that trains on it, without its name.
        left_out_file: names every pair without a record.
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
    """Label what is not labelled yet, and sum up the whole.

    Args:
        num_processes: take shards in turn; each has a teacher of its own, on the next GPU where
            ``MODEL.DEVICE`` is CUDA.
        progress: makes the bar, called as tqdm is.

    Raises:
        FileNotFoundError, ValueError: the captions, the images or the teacher cannot be used, or
            the output folder was begun with other settings.
        ChildProcessError: a process died.
    """
    if num_processes < 1:
        raise ValueError(f"the number of processes is {num_processes}; it is at least 1")
    pairs = read_pairs(task.captions)
    task.shard_folder.mkdir(parents=True, exist_ok=True)
    _agree_on_settings(task, pairs)
    shards = _split(task, pairs)
    open_shards = [shard for shard in shards if not shard.path.exists()]
    num_open = sum(len(shard.pairs) for shard in open_shards)
    with progress(total=len(pairs), initial=len(pairs) - num_open, unit="caption") as bar:
        if num_processes == 1 and open_shards:
            teacher = _make_teacher(task)
            for shard in open_shards:
                label_shard(teacher, shard, bar.update)
        elif open_shards:
            _label_in_processes(task, open_shards, num_processes, bar.update)
    return _close(task, shards)


def label_shard(teacher: Teacher, shard: Shard, advance: Advance) -> None:
    """Label the pairs of a shard and write its files, the one that says "done" last."""
    records: list[GroundedRecord] = []
    left_out: list[LeftOut] = []
    for outcome in teacher.label(shard.pairs):
        if isinstance(outcome, LeftOut):
            left_out.append(outcome)
        else:
            records.append(outcome)
        advance(1)
    account = {
        "num_records": len(records),
        "num_boxes": sum(len(record["boxes"]) for record in records),
        "left_out": [asdict(pair) for pair in left_out],
    }
    with atomic_open(shard.account_path) as file:
        file.write(json.dumps(account).encode())
    with atomic_open(shard.path) as file:
        _WRITERS[shard.path.suffix](file, records, shard.path.stem)


# What is written


def _write_lines(file: IO[bytes], records: Sequence[GroundedRecord], _stem: str) -> None:
    file.writelines(json.dumps(record).encode() + b"\n" for record in records)


def _write_tar(file: IO[bytes], records: Sequence[GroundedRecord], stem: str) -> None:
    """A WebDataset shard: the images as they were, each with its record."""
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number, record in enumerate(records):
            key = f"{stem}-{number:06}"
            # tar://SHARD.tar/MEMBER@OFFSET+SIZE
            image_suffix = Path(record["image"].rpartition("@")[0]).suffix
            with PathManager.open(record["image"], "rb") as image:
                _add_member(tar, key + image_suffix, image.read())
            _add_member(tar, f"{key}.json", json.dumps(record).encode())


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


_WRITERS: dict[str, Callable[[IO[bytes], Sequence[GroundedRecord], str], None]] = {
    ".jsonl": _write_lines,
    ".tar": _write_tar,
}


def _split(task: LabellingTask, pairs: Sequence[Pair]) -> list[Shard]:
    suffix = ".tar" if holds_images(task.captions) else ".jsonl"
    starts = range(0, len(pairs), task.shard_size)
    # Numbers of one length, as a pattern with braces has them.
    num_digits = max(5, len(str(len(starts) - 1)))
    return [
        Shard(
            task.shard_folder / f"{number:0{num_digits}}{suffix}",
            list(pairs[start : start + task.shard_size]),
        )
        for number, start in enumerate(starts)
    ]


def _agree_on_settings(task: LabellingTask, pairs: Sequence[Pair]) -> None:
    """Write the settings of a new folder, or compare those of an old one.

    Raises:
        ValueError: they differ, so that its shards would not fit together.
    """
    model = task.cfg.MODEL.clone()
    model.defrost()
    # It is the same teacher on another device.
    model.DEVICE = ""
    settings = {
        "captions": _digest(text for pair in pairs for text in pair),
        "shard_size": task.shard_size,
        "teacher": _digest(part.dump() for part in (model, task.cfg.INPUT, task.cfg.TEST)),
        "threshold": task.threshold,
        "weights": task.cfg.MODEL.WEIGHTS,
    }
    path = task.output / "settings.json"
    if not path.exists():
        with atomic_open(path) as file:
            file.write(json.dumps(settings, indent=1).encode())
        return
    begun = json.loads(path.read_text())
    changed = [
        f"{key} was {begun.get(key)!r} and is {settings[key]!r}"
        for key in settings
        if begun.get(key) != settings[key]
    ]
    if changed:
        raise ValueError(
            f"the output folder '{task.output}' was begun with other settings: "
            f"{'; '.join(changed)}. Use the same, or another folder"
        )


def _digest(texts: Iterator[str]) -> str:
    """Of texts in their order; JSON tells where one ends, and takes half surrogate pairs."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(json.dumps(text).encode())
    return digest.hexdigest()[:16]


def _close(task: LabellingTask, shards: Sequence[Shard]) -> LabellingReport:
    """Put the shards together and sum up their accounts."""
    num_records, num_boxes, faults = 0, 0, Faults()
    left_out_file = task.output / "left_out.jsonl"
    with atomic_open(left_out_file) as file:
        for shard in shards:
            account = json.loads(shard.account_path.read_text())
            num_records += account["num_records"]
            num_boxes += account["num_boxes"]
            for pair in account["left_out"]:
                faults.add(pair["why"], pair["image"])
                file.write(json.dumps(pair).encode() + b"\n")
    if holds_images(task.captions):
        first, last = shards[0].path, shards[-1].path
        # As shell and webdataset expand it: no range is made of one number.
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


# Who does it


def _make_teacher(task: LabellingTask, device: str | None = None) -> Teacher:
    cfg = task.cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = device or cfg.MODEL.DEVICE
    return Teacher(
        cfg, image_root=task.image_root, threshold=task.threshold, batch_size=task.batch_size
    )


def _label_in_processes(
    task: LabellingTask, shards: Sequence[Shard], num_processes: int, advance: Advance
) -> None:
    """Let processes take one shard after the other."""
    # Processes are forked from a server that has imported everything and computed nothing: cheaper
    # than new ones, and neither CUDA nor OpenMP minds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    num_started, num_labelled = context.Value("q", 0), context.Value("q", 0)
    num_shown = 0
    with _pool(context, num_processes, (task, num_processes, num_started, num_labelled)) as pool:
        pending = {pool.submit(_label_here, shard) for shard in shards}
        while pending:
            done, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            num_now = num_labelled.value
            advance(num_now - num_shown)
            num_shown = num_now
            for future in done:
                future.result()


@contextmanager
def _pool(
    context: Any, num_processes: int, arguments: tuple[Any, ...]
) -> Iterator[ProcessPoolExecutor]:
    """A pool that does not begin another shard once one has failed."""
    pool = ProcessPoolExecutor(num_processes, context, _start_process, arguments)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a process that labels has died; was it killed, or out of memory? The shards that are "
            "done stay: run the same command again, with fewer processes if need be"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


class _Process:
    """What a process keeps from shard to shard."""

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
    def teacher(self) -> Teacher:
        """Made with the first shard, where an error finds its way to the caller."""
        device = self.task.cfg.MODEL.DEVICE
        if device == "cuda":
            device = f"cuda:{self.rank % torch.cuda.device_count()}"
        return _make_teacher(self.task, device)

    def advance(self, num_pairs: int) -> None:
        with self.num_labelled.get_lock():
            self.num_labelled.value += num_pairs


_process: _Process


def _start_process(*arguments: Any) -> None:
    global _process
    _process = _Process(*arguments)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """A pool's process does not notice by itself that its parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _label_here(shard: Shard) -> None:
    label_shard(_process.teacher, shard, _process.advance)
