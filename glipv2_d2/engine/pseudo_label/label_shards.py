"""Pseudo-labelling of many captions, in shards.

The output folder has, beside the files of :mod:`glipv2_d2.engine.shards`::

    labels.jsonl                   the records of all shards (tar shards are not merged)
    left_out.jsonl                 every pair without a record, with the reason
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from tqdm import tqdm

from glipv2_d2.data.faults import Faults
from glipv2_d2.data.readers.captions import MIN_SCORE
from glipv2_d2.data.readers.image_text import Pair, contains_images, read_pairs
from glipv2_d2.engine.pseudo_label.pseudo_labeler import (
    GroundedRecord,
    LabelResult,
    LeftOutPair,
    PseudoLabeler,
)
from glipv2_d2.engine.shards import (
    WHOLE,
    Part,
    RunShards,
    Shard,
    check_settings,
    device_of,
    digest,
    no_progress,
    process_shards,
    run_here,
    split,
    write_manifest,
)
from glipv2_d2.file_writing import atomic_open, dump_json


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

    def build(self, rank: int) -> Callable[[Sequence[Pair]], Iterator[LabelResult]]:
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = device_of(rank, cfg.MODEL.DEVICE)
        labeler = PseudoLabeler(
            cfg, image_root=self.image_root, threshold=self.threshold, batch_size=self.batch_size
        )
        return labeler.label

    def write(self, shard: Shard, results: Sequence[LabelResult]) -> None:
        left_out = [result for result in results if isinstance(result, LeftOutPair)]
        records = [result for result in results if not isinstance(result, LeftOutPair)]
        account = {
            "num_records": len(records),
            "num_boxes": sum(len(record["boxes"]) for record in records),
            "left_out": [asdict(pair) for pair in left_out],
        }
        write = _WRITERS[shard.path.suffix]
        shard.write(account, lambda file: write(file, records, shard.path.stem))


@dataclass(frozen=True)
class LabellingReport:
    """Totals over the complete shards of an output folder.

    Attributes:
        num_shards: all shards.
        num_open_shards: how many of them are not complete.
        num_pairs: number of image-caption pairs.
        num_records: number of pairs with at least one box.
        left_out: counts and examples of the other pairs, by reason.
        num_boxes: number of boxes in all records.
        dataset: an entry of ``DATASETS.CUSTOM`` for training, without its name; empty before the
            shards are merged.
        left_out_file: lists every pair without a record.
    """

    num_shards: int
    num_open_shards: int
    num_pairs: int
    num_records: int
    num_boxes: int
    left_out: Faults
    dataset: dict[str, str]
    left_out_file: Path


def label_captions(
    task: LabellingTask,
    *,
    part: Part = WHOLE,
    run: RunShards = run_here,
    progress: Callable[..., tqdm] = no_progress,
) -> LabellingReport:
    """Label the shards of a part that are not complete.

    The shards are merged when all are complete, by a run of the whole: machines that finish their
    parts at the same moment would write the same files.

    Args:
        part, run, progress: see :func:`~glipv2_d2.engine.shards.process_shards`.

    Raises:
        FileNotFoundError, ValueError: the captions, images or model are not valid, or the output
            folder was started with other settings.
        ChildProcessError: a process died.
    """
    pairs = read_pairs(task.captions)
    task.shard_folder.mkdir(parents=True, exist_ok=True)
    check_settings(task.output, _settings(task, pairs))
    suffix = ".tar" if contains_images(task.captions) else ".jsonl"
    shards = split(pairs, task.shard_folder, task.shard_size, suffix)
    num_open = process_shards(task, shards, part, run=run, progress=progress, unit="caption")
    return _report(task, shards, num_open, merge=part.is_whole and not num_open)


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


def _settings(task: LabellingTask, pairs: Sequence[Pair]) -> dict[str, object]:
    model = task.cfg.MODEL.clone()
    model.defrost()
    # Another device does not change the labels.
    model.DEVICE = ""
    return {
        "captions": digest(text for pair in pairs for text in pair),
        "shard_size": task.shard_size,
        "model": digest(part.dump() for part in (model, task.cfg.INPUT, task.cfg.TEST)),
        "threshold": task.threshold,
        "weights": task.cfg.MODEL.WEIGHTS,
    }


def _report(
    task: LabellingTask, shards: Sequence[Shard], num_open: int, *, merge: bool
) -> LabellingReport:
    """Add up the accounts of the complete shards, and merge the shards if ``merge``."""
    complete = [shard for shard in shards if shard.is_complete]
    accounts = [shard.account() for shard in complete]
    left_out = [pair for account in accounts for pair in account["left_out"]]
    faults = Faults()
    for pair in left_out:
        faults.add(pair["reason"], pair["image"])
    left_out_file = task.output / "left_out.jsonl"
    if merge:
        with atomic_open(left_out_file) as file:
            file.writelines(dump_json(pair).encode() + b"\n" for pair in left_out)
        write_manifest(task.output, shards)
    return LabellingReport(
        len(shards),
        num_open,
        sum(len(shard.items) for shard in complete),
        sum(account["num_records"] for account in accounts),
        sum(account["num_boxes"] for account in accounts),
        faults,
        _merge(task, shards) if merge else {},
        left_out_file,
    )


def _merge(task: LabellingTask, shards: Sequence[Shard]) -> dict[str, str]:
    """Merge the shards; an entry of ``DATASETS.CUSTOM`` without its name."""
    if contains_images(task.captions):
        first, last = shards[0].path, shards[-1].path
        # Shells and webdataset do not expand a range of one number.
        pattern = first.stem if first == last else f"{{{first.stem}..{last.stem}}}"
        return {"format": "webdataset", "shards": str(first.with_name(f"{pattern}.tar"))}
    labels = task.output / "labels.jsonl"
    with atomic_open(labels) as file:
        for shard in shards:
            with shard.path.open("rb") as content:
                shutil.copyfileobj(content, file)
    return {"format": "captions", "json": str(labels), "images": task.image_root}
