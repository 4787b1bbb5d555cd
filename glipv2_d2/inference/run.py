"""Predict images, videos and cameras: journal, drawn images, and files of results."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from glipv2_d2.batch_prediction import FilePrompts, shorten_stem, write_jpeg
from glipv2_d2.evaluation.thresholds import ScoreThresholds
from glipv2_d2.inference import export
from glipv2_d2.inference.entries import prediction_of, text_of, to_entry
from glipv2_d2.inference.journal import Journal
from glipv2_d2.inference.media import Frame, frame_rate, is_video, is_webcam, read_frames
from glipv2_d2.inference.video_writing import VideoWriter
from glipv2_d2.item_errors import predict_each
from glipv2_d2.prediction import Prediction
from glipv2_d2.predictor import PROBE, Predictor
from glipv2_d2.visualization import draw_prediction, draw_with_text

JOURNAL_FILE = "predictions.jsonl"
MAX_TEXTS = 20

logger = logging.getLogger(__name__)


@dataclass
class RunReport:
    """What a run did.

    Attributes:
        num_images: images and frames with a prediction, those of earlier runs included.
        num_resumed: of these, those of earlier runs.
        counts: detections per class name.
        texts: the first answers or captions, with their source.
        skipped: an error message for each source that could not be read.
        files: what was written.
        interrupted: whether the user ended it.
    """

    num_images: int = 0
    num_resumed: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    texts: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    interrupted: bool = False


@dataclass(frozen=True)
class OutputOptions:
    """What is written to ``folder``.

    Attributes:
        formats: of the results: "coco", "yolo", "voc", "csv", "label-studio".
        ids: of the images and classes in the format "coco".
        draw: write the drawn images and videos.
        overwrite: start anew where an earlier run left results.
    """

    folder: Path
    formats: Sequence[str] = ()
    ids: export.CocoIds | None = None
    draw: bool = True
    overwrite: bool = False


class SourcePrediction:
    """Predicts sources one after the other, continuing an earlier run of the same settings."""

    def __init__(
        self,
        predictor: Predictor,
        prompts: FilePrompts,
        thresholds: ScoreThresholds,
        output: OutputOptions,
        *,
        model: str,
        batch_size: int = 1,
        max_frames: int | None = None,
    ) -> None:
        """
        Args:
            thresholds: minimum score per name.
            model: its name, for the journal and the results.
            batch_size: images per forward pass.
            max_frames: of a video or camera; default: all.

        Raises:
            ValueError: the folder has results of another run.
        """
        self.predictor, self.prompts, self.thresholds = predictor, prompts, thresholds
        self.output, self.model, self.batch_size = output, model, batch_size
        self.max_frames = max_frames
        settings = {"model": model, **asdict(prompts), "thresholds": asdict(thresholds)}
        path = output.folder / JOURNAL_FILE
        self.journal = Journal(path, settings, overwrite=output.overwrite)
        self.report = RunReport(num_resumed=len(self.journal.done))
        self._drawn_folder = output.folder / "drawn"

    def run(self, sources: Sequence[str], advance: Callable[[str], object]) -> RunReport:
        """Predict ``sources``; with Ctrl-C, what is done so far is written.

        Args:
            advance: called with each source before it is read, and after each of its frames.
        """
        self.stems = source_stems(sources)
        try:
            for batch in self._batches(sources, advance):
                self._predict(batch)
        except KeyboardInterrupt:
            self.report.interrupted = True
        finally:
            self.journal.close()
        if self.output.draw:
            self._draw_videos(sources)
        self._count()
        self._export()
        return self.report

    def _batches(
        self, sources: Sequence[str], advance: Callable[[str], object]
    ) -> Iterator[list[Frame]]:
        """The frames without a prediction."""
        batch: list[Frame] = []
        for source in sources:
            advance(source)
            if (source, None) in self.journal.done:
                continue
            try:
                for frame in self._frames(source):
                    batch.append(frame)
                    if len(batch) >= self.batch_size or is_webcam(source):
                        yield batch
                        batch = []
                        advance(source)
            except (FileNotFoundError, ValueError) as error:
                self.report.skipped.append(str(error))
                logger.info("skipped: %s", error)
        if batch:
            yield batch

    def _frames(self, source: str) -> Iterator[Frame]:
        """The frames of a source after those that the journal has."""
        if not is_video(source):
            yield from read_frames(source)
            return
        start = next(n for n in count() if (source, n) not in self.journal.done)
        for frame in read_frames(source, 0 if is_webcam(source) else start):
            if self.max_frames is not None and (frame.number or 0) >= self.max_frames:
                return
            yield frame

    def _predict(self, batch: Sequence[Frame]) -> None:
        images = dict(enumerate(frame.image for frame in batch))
        results, errors = predict_each(
            lambda items: self.prompts.predict(self.predictor, items, self.thresholds),
            images,
            lambda _: PROBE,
        )
        for index, error in errors.items():
            reason = (
                f"{batch[index].source!r} cannot be predicted ({type(error).__name__}: {error})"
            )
            self.report.skipped.append(reason)
            logger.info("skipped: %s", reason)
        for index, (text, prediction) in results.items():
            frame = batch[index]
            if self.output.draw and frame.number is None:
                self._draw_image(frame, prediction, has_text=bool(text))
            entry = to_entry(prediction, text, self.prompts.classes)
            self.journal.append(frame.source, frame.number, entry)

    def _draw_image(self, frame: Frame, prediction: Prediction, *, has_text: bool) -> None:
        path = self._drawn_folder / f"{self.stems[frame.source]}.jpg"
        try:
            write_jpeg(_draw(frame, prediction, has_text=has_text), path)
        # The detections are stored, and those of other images are not lost either.
        except Exception as error:
            reason = f"{frame.source!r} is predicted, but {str(path)!r} cannot be written: {error}"
            self.report.skipped.append(reason)
            logger.info("skipped: %s", reason)

    def _results(self, source: str | None = None) -> Iterator[export.Result]:
        """The results in the order of the journal, of one source or of all."""
        for entry in self.journal.entries():
            name, number = entry["source"], entry["frame"]
            if name not in self.stems or source not in (None, name):
                continue
            stem = self.stems[name] if number is None else f"{self.stems[name]}_{number:06d}"
            prediction = prediction_of(entry, self.prompts.classes)
            yield export.Result(name, number, stem, prediction, text_of(entry))

    def _count(self) -> None:
        for result in self._results():
            self.report.num_images += 1
            self.report.counts.update(result.prediction.labels)
            if result.text and len(self.report.texts) < MAX_TEXTS:
                self.report.texts.append(f"{result.source}: {_text_line(result.text)}")

    def _draw_videos(self, sources: Sequence[str]) -> None:
        """Draw from the journal, so that a video of several runs is drawn as a whole."""
        for source in sources:
            if is_webcam(source) or not is_video(source):
                continue
            path = self._drawn_folder / f"{self.stems[source]}.mp4"
            try:
                with VideoWriter(path, frame_rate(source)) as video:
                    pairs = zip(self._results(source), read_frames(source), strict=False)
                    for result, frame in pairs:
                        has_text = bool(result.text)
                        video.write(_draw(frame, result.prediction, has_text=has_text))
            except (FileNotFoundError, ValueError) as error:
                logger.warning("not drawn: %s", error)

    def _export(self) -> None:
        folder, names = self.output.folder, [str(name) for name in self.prompts.classes or ()]
        if self._drawn_folder.is_dir():
            self.report.files.append(self._drawn_folder)
        for name in self.output.formats:
            if name == "coco" and self.output.ids is not None:
                path = export.save_coco_results(self._results, folder, self.output.ids)
            else:
                path = export.save(name, self._results, folder, names, self.model)
            self.report.files.append(path)
        self.report.files.append(self.journal.path)


def _text_line(text: Mapping[str, Any]) -> str:
    """The caption, or the question with its answer."""
    if "caption" in text:
        return str(text["caption"])
    return f"{text['question']} {text['answer']} ({text['answer_score']:.0%})"


def _draw(frame: Frame, prediction: Prediction, *, has_text: bool) -> np.ndarray:
    draw = draw_with_text if has_text else draw_prediction
    return draw(frame.image, prediction)


def source_stems(sources: Sequence[str]) -> dict[str, str]:
    """A distinct file name without suffix for each source, from its own name."""
    stems: dict[str, str] = {}
    used: set[str] = set()
    names = Counter(Path(source).stem for source in sources)
    for source in sources:
        path = Path(source.partition("?")[0])
        stem = path.stem.replace(":", "_")
        if names[path.stem] > 1 and path.parent.name:
            stem = f"{path.parent.name}_{stem}"
        stem = shorten_stem(stem)
        unique = next(
            name for n in count(1) if (name := stem if n == 1 else f"{stem}_{n}") not in used
        )
        used.add(unique)
        stems[source] = unique
    return stems


def check_ids(ids: export.CocoIds, sources: Sequence[str], classes: Sequence[str]) -> None:
    """Check, before anything is predicted, that every image and class has an id.

    Raises:
        ValueError: one has none.
    """
    for source in sources:
        ids.image_id(source)
    for name in classes:
        ids.category_id(name)
