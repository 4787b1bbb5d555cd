"""Requests to a model, and how a batch of different ones is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from glipv2_d2.prediction import Answer, Caption, Prediction
from glipv2_d2.predictor import Predictor


@dataclass(frozen=True)
class DetectRequest:
    """Boxes of class names.

    Attributes:
        image: (H, W, 3) uint8, R, G, B.
        one_name_per_box: see :meth:`~glipv2_d2.predictor.Predictor.predict`.
    """

    image: np.ndarray
    classes: tuple[str, ...]
    threshold: float
    one_name_per_box: bool = False


@dataclass(frozen=True)
class GroundRequest:
    """Boxes of the phrases of a caption."""

    image: np.ndarray
    caption: str
    threshold: float


@dataclass(frozen=True)
class AnswerRequest:
    """The answer to a question; among ``choices``, or by default the model's answers."""

    image: np.ndarray
    question: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaptionRequest:
    """A generated caption with the boxes of its phrases."""

    image: np.ndarray
    threshold: float


ModelRequest = DetectRequest | GroundRequest | AnswerRequest | CaptionRequest
ModelResult = Prediction | Answer | Caption


class BatchRunner:
    """Runs batches of requests; those of one kind share a forward pass, whatever their prompts.

    Only images of one size share a pass: padding to a common size can change results, which must
    not depend on what others request.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._run_kind: dict[type, Callable[[Any], Sequence[ModelResult]]] = {
            DetectRequest: self._detect,
            GroundRequest: self._ground,
            AnswerRequest: self._answer,
            CaptionRequest: self._caption,
        }

    def __call__(self, requests: Sequence[ModelRequest]) -> list[ModelResult | Exception]:
        """The results in the order of the requests; for a request that fails, its exception."""
        groups: dict[tuple[type, tuple[int, ...]], list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault((type(request), request.image.shape), []).append(i)
        results: dict[int, ModelResult | Exception] = {}
        for (kind, _), indices in groups.items():
            group = [requests[i] for i in indices]
            results |= zip(indices, _run_each(self._run_kind[kind], group), strict=True)
        return [results[i] for i in range(len(requests))]

    def _detect(self, requests: Sequence[DetectRequest]) -> list[Prediction]:
        predictions: Any = self.predictor.predict(
            [request.image for request in requests],
            classes=[list(request.classes) for request in requests],
            threshold=None,
            channel_order="RGB",
            batch_size=len(requests),
        )
        overlap = self.predictor.cfg.MODEL.GROUNDING.NMS_THRESH
        results = []
        for request, prediction in zip(requests, predictions, strict=True):
            kept = prediction.above(request.threshold)
            results.append(kept.one_name_per_box(overlap) if request.one_name_per_box else kept)
        return results

    def _ground(self, requests: Sequence[GroundRequest]) -> list[Prediction]:
        predictions: Any = self.predictor.ground(
            [request.image for request in requests],
            [request.caption for request in requests],
            threshold=None,
            channel_order="RGB",
            batch_size=len(requests),
        )
        return [
            prediction.above(request.threshold)
            for request, prediction in zip(requests, predictions, strict=True)
        ]

    def _answer(self, requests: Sequence[AnswerRequest]) -> list[Answer]:
        results: dict[int, Answer] = {}
        # Choices are an argument of the whole call.
        for choices in dict.fromkeys(request.choices for request in requests):
            indices = [i for i, request in enumerate(requests) if request.choices == choices]
            answers: Any = self.predictor.answer(
                [requests[i].image for i in indices],
                [requests[i].question for i in indices],
                choices=choices or None,
                channel_order="RGB",
                batch_size=len(indices),
            )
            results |= zip(indices, answers, strict=True)
        return [results[i] for i in range(len(requests))]

    def _caption(self, requests: Sequence[CaptionRequest]) -> list[Caption]:
        captions: Any = self.predictor.caption(
            [request.image for request in requests],
            ground=True,
            threshold=None,
            channel_order="RGB",
            batch_size=len(requests),
        )
        return [
            caption.above(request.threshold)
            for request, caption in zip(requests, captions, strict=True)
        ]


def _run_each(
    run: Callable[[Sequence[Any]], Sequence[ModelResult]], requests: Sequence[ModelRequest]
) -> Sequence[ModelResult | Exception]:
    """Run requests together; if that fails, one by one, so that an error is only its request's."""
    if not requests:
        return []
    try:
        return run(requests)
    except Exception as error:
        if len(requests) == 1:
            return [error]
    return [result for request in requests for result in _run_each(run, [request])]
