"""The HTTP service of a model: detections, answers and captions for uploaded images."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import anyio
from fastapi import FastAPI, Form, HTTPException, Response, UploadFile
from fastapi.responses import PlainTextResponse

from glipv2_d2.predictor import Predictor
from glipv2_d2.serving.label_studio import LabelStudio, label_studio_router
from glipv2_d2.serving.limits import LimitedBodies, Limits
from glipv2_d2.serving.metrics import MeasuredRequests
from glipv2_d2.serving.model_requests import (
    AnswerRequest,
    CaptionRequest,
    DetectRequest,
    GroundRequest,
    ModelRequest,
)
from glipv2_d2.serving.responses import AnswerResponse, CaptionResponse, Detections, Health
from glipv2_d2.serving.service import Service

Image = Annotated[UploadFile, Form(description="an image file")]
Threshold = Annotated[float, Form(ge=0, le=1, description="minimum score of a box")]
Names = Annotated[list[str], Form()]


def create_app(
    predictor: Predictor,
    *,
    model: str,
    threshold: float | None = None,
    limits: Limits | None = None,
    label_studio: LabelStudio | None = None,
) -> FastAPI:
    """The service of a model, see ``/docs`` of a running one.

    Args:
        model: its name, shown by ``/health``.
        threshold: minimum score of a box where a request has none; default: the predictor's.
        label_studio: where it is, to be its ML backend at ``/label-studio``.
    """
    service = Service(predictor, model=model, limits=limits or Limits())
    default_threshold = predictor.threshold if threshold is None else threshold

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:  # noqa: ARG001 - FastAPI passes it
        yield
        # Requests that wait get their results.
        await anyio.to_thread.run_sync(service.queue.close)

    app = FastAPI(title="GLIPv2", description=f"Open-vocabulary vision: {model}", lifespan=lifespan)
    app.add_middleware(LimitedBodies, max_bytes=service.limits.max_bytes)
    app.add_middleware(MeasuredRequests, metrics=service.metrics)

    @app.post("/predict")
    async def predict(
        image: Image,
        classes: Names = [],  # noqa: B006 - FastAPI copies it
        caption: Annotated[str | None, Form(description="in place of classes")] = None,
        threshold: Threshold = default_threshold,
        one_name_per_box: Annotated[bool, Form()] = False,
        masks: Annotated[bool, Form()] = False,
    ) -> Detections:
        """Boxes of the class names (the field may be repeated), or of a caption's phrases.

        A fine-tuned model has class names of its own, for requests with neither.
        """
        service.check_number(classes, "class names")
        names = classes if classes or caption is not None else predictor.class_names
        if bool(names) == (caption is not None):
            raise HTTPException(422, "pass either classes or a caption")
        pixels = await service.decode(await image.read())
        request: ModelRequest
        if caption is not None:
            request = GroundRequest(pixels, caption, threshold)
        else:
            request = DetectRequest(pixels, tuple(names), threshold, one_name_per_box)
        return Detections.of(await service.run(request), masks=masks)

    @app.post("/answer")
    async def answer(
        image: Image,
        question: Annotated[str, Form()],
        choices: Names = [],  # noqa: B006 - FastAPI copies it
    ) -> AnswerResponse:
        """The answer to a question, among the choices if there are any.

        "Is it day or night?" is by default answered with one of the two.
        """
        service.check_number(choices, "choices")
        pixels = await service.decode(await image.read())
        return AnswerResponse.of(await service.run(AnswerRequest(pixels, question, tuple(choices))))

    @app.post("/caption")
    async def caption(image: Image, threshold: Threshold = default_threshold) -> CaptionResponse:
        """A caption, with the boxes of its phrases."""
        pixels = await service.decode(await image.read())
        return CaptionResponse.of(await service.run(CaptionRequest(pixels, threshold)))

    @app.get("/health")
    async def health() -> Health:
        return Health(model=model, waiting=len(service.queue))

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Figures in Prometheus' format."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    if label_studio is not None:
        router = label_studio_router(service, label_studio, default_threshold)
        app.include_router(router, prefix="/label-studio")
    return app
