"""The images of a run of ``glipv2 predict`` on the actors of a Ray cluster."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Sequence

from glipv2_d2.batch_prediction import FilePrompts
from glipv2_d2.engine.ray_actors import RayActors
from glipv2_d2.engine.ray_pipeline import MAX_ATTEMPTS
from glipv2_d2.evaluation.thresholds import ScoreThresholds
from glipv2_d2.inference.media import Frame, is_video, is_webcam, read_frames
from glipv2_d2.inference.run import (
    IMAGES_BEHIND,
    FrameResult,
    RunReport,
    SourcePrediction,
    finish_frame,
    predict_frames,
)
from glipv2_d2.pipelining import map_behind
from glipv2_d2.predictor import Predictor


def check_sources(sources: Sequence[str]) -> None:
    """
    Raises:
        ValueError: one is no image.
    """
    for source in sources:
        if is_video(source):
            kind = "camera" if is_webcam(source) else "video"
            raise ValueError(
                f"--ray predicts images, and {source!r} is a {kind}: predict it without --ray"
            )


def predict_on_ray(
    prediction: SourcePrediction,
    actors: RayActors,
    build_predictor: Callable[[], Predictor],
    sources: Sequence[str],
    advance: Callable[[int], object],
) -> RunReport:
    """Predict images on actors; the files are those of ``prediction.run``.

    Args:
        build_predictor: loads the model of an actor, to which it is sent.
        advance: called with the number of images that were done since the last call.

    Raises:
        ValueError: the model or the prompt is not valid.
        ChildProcessError: Ray failed.
    """
    pending = prediction.pending(sources)
    advance(len(sources) - len(pending))
    size = prediction.batch_size
    batches = [pending[start : start + size] for start in range(0, len(pending), size)]
    build = functools.partial(
        _build,
        build_predictor,
        prediction.prompts,
        prediction.thresholds,
        draw=prediction.output.draw,
    )

    def results() -> Generator[FrameResult, None, None]:
        for index, result in actors.map(build, batches):
            if result is None:
                reason = f"its actor died {MAX_ATTEMPTS} times, perhaps out of memory"
                result = [
                    FrameResult(source, reason=f"{source!r} cannot be predicted: {reason}")
                    for source in batches[index]
                ]
            yield from result
            advance(len(batches[index]))

    return prediction.store(sources, results())


def _build(
    build_predictor: Callable[[], Predictor],
    prompts: FilePrompts,
    thresholds: ScoreThresholds,
    *,
    draw: bool,
) -> Callable[[Sequence[str]], list[FrameResult]]:
    predictor = build_predictor()

    def predict(sources: Sequence[str]) -> list[FrameResult]:
        frames: list[Frame] = []
        results = []
        for source in sources:
            try:
                frames += read_frames(source)
            except (FileNotFoundError, ValueError) as error:
                results.append(FrameResult(source, reason=str(error)))
        predicted = predict_frames(predictor, prompts, thresholds, frames)
        finish = functools.partial(finish_frame, classes=prompts.classes, draw=draw)
        return [*results, *map_behind(finish, predicted, IMAGES_BEHIND)]

    return predict
