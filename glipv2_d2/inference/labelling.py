"""Labelling of many images with class names, in shards that several processes and machines share.

The output folder has, beside the files of :mod:`glipv2_d2.engine.shards`, the chosen formats of
:mod:`glipv2_d2.inference.export` and ``left_out.jsonl``: every image without labels, with the
reason.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from glipv2_d2.batch_prediction import FilePrompts
from glipv2_d2.engine.pseudo_label.pseudo_labeler import BOX_DIGITS, SCORE_DIGITS
from glipv2_d2.engine.shards import (
    WHOLE,
    Part,
    RunShards,
    Shard,
    check_settings,
    digest,
    no_progress,
    process_shards,
    run_here,
    split,
    write_manifest,
)
from glipv2_d2.evaluation.thresholds import ScoreThresholds
from glipv2_d2.file_writing import atomic_open, dump_json
from glipv2_d2.inference import export
from glipv2_d2.inference.entries import prediction_of, text_of, to_entry
from glipv2_d2.inference.media import read_frames
from glipv2_d2.inference.run import BATCHES_AHEAD, source_stems
from glipv2_d2.item_errors import predict_each
from glipv2_d2.pipelining import read_ahead
from glipv2_d2.predictor import PROBE, Predictor

LEFT_OUT_FILE = "left_out.jsonl"


@dataclass(frozen=True)
class ImageResult:
    """What became of an image.

    Attributes:
        entry: the line of the image in its shard; None: it is left out for ``reason``.
        names: the class name of each box.
    """

    source: str
    entry: dict[str, Any] | None = None
    names: Sequence[str] = ()
    reason: str = ""


@dataclass(frozen=True)
class ImageLabelling:
    """Model, images, names and output folder of a run.

    Attributes:
        build_predictor: loads the model of a process, whose number (from 0) selects its GPU. It is
            sent to other processes: a function of a module, or a ``functools.partial`` of one.
        model: its name, for the settings and the results.
        images: paths or addresses, see :func:`~glipv2_d2.inference.media.expand_sources`.
        prompts: the class names.
        thresholds: minimum score per name.
        shard_size: images per shard; a killed process loses at most one shard.
        batch_size: images per forward pass.
    """

    build_predictor: Callable[[int], Predictor]
    model: str
    images: Sequence[str]
    prompts: FilePrompts
    thresholds: ScoreThresholds
    output: Path
    shard_size: int = 50
    batch_size: int = 1

    def build(self, rank: int) -> Callable[[Sequence[str]], Iterator[ImageResult]]:
        return partial(_label, self, self.build_predictor(rank))

    def write(self, shard: Shard, results: Sequence[ImageResult]) -> None:
        entries = [result.entry for result in results if result.entry is not None]
        names: Counter[str] = Counter()
        for result in results:
            names.update(result.names)
        account = {
            "num_images": len(entries),
            "num_boxes": names,
            "left_out": [
                {"image": result.source, "reason": result.reason}
                for result in results
                if result.entry is None
            ],
        }

        def write(file: IO[bytes]) -> None:
            file.writelines(dump_json(entry).encode() + b"\n" for entry in entries)

        shard.write(account, write)

    def shards(self) -> list[Shard]:
        return split(self.images, self.output / "shards", self.shard_size, ".jsonl")

    def settings(self) -> dict[str, Any]:
        """What the labels depend on."""
        return {
            "images": digest(self.images),
            "shard_size": self.shard_size,
            "model": self.model,
            "prompts": asdict(self.prompts),
            "thresholds": asdict(self.thresholds),
        }


@dataclass
class LabelReport:
    """Totals over the complete shards of an output folder.

    Attributes:
        num_shards: all shards.
        num_open_shards: how many of them are not complete.
        num_images: images with a prediction, also of no box.
        num_boxes: boxes per class name.
        left_out: the other images, with the reason.
        files: what was written; empty before the shards are merged.
    """

    num_shards: int
    num_open_shards: int
    num_images: int = 0
    num_boxes: Counter[str] = field(default_factory=Counter)
    left_out: list[dict[str, str]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def label_images(
    task: ImageLabelling,
    formats: Sequence[str],
    *,
    part: Part = WHOLE,
    run: RunShards = run_here,
    progress: Callable[..., tqdm] = no_progress,
) -> LabelReport:
    """Label the shards of a part that are not complete.

    The shards are merged when all are complete, by a run of the whole: machines that finish their
    parts at the same moment would write the same files.

    Args:
        formats: see :func:`~glipv2_d2.inference.export.save`; a later run may have others.
        part, run, progress: see :func:`~glipv2_d2.engine.shards.process_shards`.

    Raises:
        ValueError: the output folder was started with other settings, or the model is not valid.
        ChildProcessError: a process died.
    """
    shards = task.shards()
    (task.output / "shards").mkdir(parents=True, exist_ok=True)
    check_settings(task.output, task.settings())
    num_open = process_shards(task, shards, part, run=run, progress=progress, unit="image")
    report = LabelReport(len(shards), num_open)
    for shard in shards:
        if shard.is_complete:
            account = shard.account()
            report.num_images += account["num_images"]
            report.num_boxes.update(account["num_boxes"])
            report.left_out += account["left_out"]
    if part.is_whole:
        report.files += _merge(task, shards, report, formats)
    return report


def _label(
    task: ImageLabelling, predictor: Predictor, sources: Sequence[str]
) -> Iterator[ImageResult]:
    for batch, images, reasons in read_ahead(_read(sources, task.batch_size), BATCHES_AHEAD):
        results, errors = predict_each(
            lambda items: task.prompts.predict(predictor, items, task.thresholds),
            images,
            lambda _: PROBE,
        )
        for index, error in errors.items():
            cause = f"{type(error).__name__}: {error}"
            reasons[index] = f"{batch[index]!r} cannot be predicted ({cause})"
        for index, source in enumerate(batch):
            if index in reasons:
                yield ImageResult(source, reason=reasons[index])
                continue
            text, prediction = results[index]
            entry = to_entry(prediction, text, task.prompts.classes)
            for row in entry["detections"]:
                # More digits depend on the number of threads.
                row["bbox"] = [round(value, BOX_DIGITS) for value in row["bbox"]]
                row["score"] = round(row["score"], SCORE_DIGITS)
            yield ImageResult(source, {"source": source, **entry}, prediction.labels)


def _read(
    sources: Sequence[str], batch_size: int
) -> Iterator[tuple[Sequence[str], dict[int, np.ndarray], dict[int, str]]]:
    """Batches, each with its images by index, and the reason for every other image."""
    for start in range(0, len(sources), batch_size):
        batch = sources[start : start + batch_size]
        images: dict[int, np.ndarray] = {}
        reasons: dict[int, str] = {}
        for index, source in enumerate(batch):
            try:
                (frame,) = read_frames(source)
                images[index] = frame.image
            except (FileNotFoundError, ValueError) as raised:
                reasons[index] = str(raised)
        yield batch, images, reasons


def _merge(
    task: ImageLabelling, shards: Sequence[Shard], report: LabelReport, formats: Sequence[str]
) -> list[Path]:
    """Write the formats and the list of images without labels."""
    stems = source_stems(task.images)
    classes = task.prompts.classes

    def results() -> Iterator[export.Result]:
        for shard in shards:
            with shard.path.open("rb") as file:
                for entry in map(json.loads, file):
                    source, prediction = entry["source"], prediction_of(entry, classes)
                    yield export.Result(source, None, stems[source], prediction, text_of(entry))

    names = [str(name) for name in classes or ()]
    files = [export.save(name, results, task.output, names, task.model) for name in formats]
    left_out = task.output / LEFT_OUT_FILE
    with atomic_open(left_out) as opened:
        opened.writelines(dump_json(item).encode() + b"\n" for item in report.left_out)
    write_manifest(task.output, shards)
    return [*files, left_out] if report.left_out else files
