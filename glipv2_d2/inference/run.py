"""Predict images, videos and cameras: journal, drawn images, and files of results."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from glipv2_d2.batch_prediction import FilePrompts, encode_jpeg, shorten_stem
from glipv2_d2.evaluation.thresholds import ScoreThresholds
from glipv2_d2.file_writing import atomic_open
from glipv2_d2.inference import export
from glipv2_d2.inference.entries import prediction_of, text_of, to_entry
from glipv2_d2.inference.journal import Journal
from glipv2_d2.inference.media import Frame, frame_rate, is_video, is_webcam, read_frames
from glipv2_d2.inference.video_writing import VideoWriter
from glipv2_d2.item_errors import predict_each
from glipv2_d2.pipelining import map_behind, read_ahead
from glipv2_d2.prediction import Prediction
from glipv2_d2.predictor import PROBE, Predictor
from glipv2_d2.visualization import draw_prediction, draw_with_text

JOURNAL_FILE = "predictions.jsonl"
MAX_TEXTS = 20
# Batches that wait for the model beside one that is read, and images that wait to be drawn: large
# ones, with masks, take much memory.
BATCHES_AHEAD = 1
IMAGES_BEHIND = 1

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


@dataclass(frozen=True)
class FrameResult:
    """What became of an image or a frame, or of a source that cannot be read.

    Attributes:
        entry: of the journal; None without a prediction.
        jpeg: the drawn image; b"" without one.
        reason: why there is no prediction or no drawn image.
    """

    source: str
    number: int | None = None
    entry: dict[str, Any] | None = None
    jpeg: bytes = b""
    reason: str = ""


@dataclass(frozen=True)
class PredictedFrame:
    """A frame with its prediction.

    Attributes:
        text: the generated text as JSON fields, empty for detection.
    """

    frame: Frame
    text: dict[str, Any]
    prediction: Prediction


class SourcePrediction:
    """Predicts sources one after the other, continuing an earlier run of the same settings.

    The next images are read while the model runs, and the last ones drawn and written.
    """

    def __init__(
        self,
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
        self.prompts, self.thresholds = prompts, thresholds
        self.output, self.model, self.batch_size = output, model, batch_size
        self.max_frames = max_frames
        settings = {"model": model, **asdict(prompts), "thresholds": asdict(thresholds)}
        path = output.folder / JOURNAL_FILE
        self.journal = Journal(path, settings, overwrite=output.overwrite)
        self.report = RunReport(num_resumed=len(self.journal.done))
        self._drawn_folder = output.folder / "drawn"

    def run(
        self, predictor: Predictor, sources: Sequence[str], advance: Callable[[str], object]
    ) -> RunReport:
        """Predict ``sources``; with Ctrl-C, what is done so far is written.

        Args:
            advance: called with the source of the last frame of each batch, and with each source
                that cannot be read, after them.
        """
        return self.store(sources, self._predict_in_turn(predictor, sources, advance))

    def store(
        self, sources: Sequence[str], results: Generator[FrameResult, None, None]
    ) -> RunReport:
        """Write results as they come, and then the files of all; likewise with Ctrl-C."""
        self.stems = source_stems(sources)
        try:
            for result in results:
                self._store(result)
        except KeyboardInterrupt:
            self.report.interrupted = True
        finally:
            # Ends the threads that read and draw.
            results.close()
            self.journal.close()
        self.journal.sort(sources)
        if self.output.draw:
            self._draw_videos(sources)
        self._count()
        self._export()
        return self.report

    def pending(self, sources: Sequence[str]) -> list[str]:
        """The images without a prediction, and the videos."""
        return [source for source in sources if (source, None) not in self.journal.done]

    def _predict_in_turn(
        self, predictor: Predictor, sources: Sequence[str], advance: Callable[[str], object]
    ) -> Generator[FrameResult, None, None]:
        def predict() -> Iterator[PredictedFrame | FrameResult]:
            with closing(read_ahead(self._batches(sources), BATCHES_AHEAD)) as batches:
                for item in batches:
                    if isinstance(item, FrameResult):
                        yield item
                        advance(item.source)
                    else:
                        yield from predict_frames(predictor, self.prompts, self.thresholds, item)
                        advance(item[-1].source)

        finish = partial(finish_frame, classes=self.prompts.classes, draw=self.output.draw)
        return map_behind(finish, predict(), IMAGES_BEHIND)

    def _batches(self, sources: Sequence[str]) -> Iterator[list[Frame] | FrameResult]:
        """Batches of the frames without a prediction, and the sources that cannot be read."""
        batch: list[Frame] = []
        for source in sources:
            if (source, None) in self.journal.done:
                continue
            try:
                for frame in self._frames(source):
                    batch.append(frame)
                    if len(batch) >= self.batch_size or is_webcam(source):
                        yield batch
                        batch = []
            except (FileNotFoundError, ValueError) as error:
                yield FrameResult(source, reason=str(error))
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

    def _store(self, result: FrameResult) -> None:
        if result.reason:
            self._skip(result.reason)
        if result.entry is None:
            return
        if result.jpeg:
            self._write_drawn(result.source, result.jpeg)
        self.journal.append(result.source, result.number, result.entry)

    def _write_drawn(self, source: str, jpeg: bytes) -> None:
        path = self._drawn_folder / f"{self.stems[source]}.jpg"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_open(path) as file:
                file.write(jpeg)
        # The detections are stored, and those of other images are not lost either.
        except OSError as error:
            self._skip(f"{source!r} is predicted, but {str(path)!r} cannot be written: {error}")

    def _skip(self, reason: str) -> None:
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


def predict_frames(
    predictor: Predictor,
    prompts: FilePrompts,
    thresholds: ScoreThresholds,
    batch: Sequence[Frame],
) -> Iterator[PredictedFrame | FrameResult]:
    """Predict a batch; a result here is of a frame that cannot be predicted.

    Raises:
        Exception: of the predictor, if the prompt or the model is at fault.
    """
    images = dict(enumerate(frame.image for frame in batch))
    results, errors = predict_each(
        lambda items: prompts.predict(predictor, items, thresholds), images, lambda _: PROBE
    )
    for index, frame in enumerate(batch):
        if index in errors:
            cause = f"{type(errors[index]).__name__}: {errors[index]}"
            reason = f"{frame.source!r} cannot be predicted ({cause})"
            yield FrameResult(frame.source, frame.number, reason=reason)
        else:
            yield PredictedFrame(frame, *results[index])


def finish_frame(
    predicted: PredictedFrame | FrameResult, *, classes: Sequence[Any] | None, draw: bool
) -> FrameResult:
    """The entry of the journal and the drawn image of a prediction.

    Args:
        classes: of the prompts.
        draw: draw an image (not a frame of a video).
    """
    if isinstance(predicted, FrameResult):
        return predicted
    frame, text, prediction = predicted.frame, predicted.text, predicted.prediction
    entry = to_entry(prediction, text, classes)
    jpeg, reason = b"", ""
    if draw and frame.number is None:
        try:
            jpeg = encode_jpeg(_draw(frame, prediction, has_text=bool(text)))
        # The detections are not lost.
        except Exception as error:
            reason = f"{frame.source!r} is predicted, but cannot be drawn: {error}"
    return FrameResult(frame.source, frame.number, entry, jpeg, reason)


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
