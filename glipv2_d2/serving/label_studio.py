"""The service as an ML backend of Label Studio: pre-annotations for its tasks.

The routes, requests and responses are those that Label Studio (label_studio/ml/api_connector.py)
and label-studio-ml-backend agree on: GET ``health``; POST ``setup``, ``predict`` and ``webhook``.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import anyio.to_thread
import httpx
from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException
from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, Field

from glipv2_d2.messages import quote
from glipv2_d2.prediction import Prediction
from glipv2_d2.serving.model_requests import DetectRequest
from glipv2_d2.serving.service import Service

_DOWNLOAD_TIMEOUT = 30.0


@dataclass(frozen=True)
class LabelStudio:
    """A Label Studio whose tasks are predicted.

    Attributes:
        url: its address; images are downloaded from nowhere else.
        token: of a user, to download uploaded images.
    """

    url: str
    token: str | None = None


@dataclass(frozen=True)
class RectangleTag:
    """The tags for boxes of a labeling config.

    Attributes:
        from_name: name of the RectangleLabels tag.
        to_name: name of its Image tag.
        key: of the image in a task's data.
        labels: the class names.
    """

    from_name: str
    to_name: str
    key: str
    labels: tuple[str, ...]


class SetupRequest(BaseModel):
    """``label_config`` is Label Studio's ``schema``, a name of pydantic's own."""

    project: str | int | None = None
    label_config: str = Field("", alias="schema")
    hostname: str = ""
    access_token: str = ""


class PredictRequest(BaseModel):
    tasks: list[dict[str, Any]]
    label_config: str | None = None
    model_version: str | None = None
    project: str | int | None = None
    params: dict[str, Any] | None = None


def parse_label_config(config: str) -> RectangleTag:
    """The first RectangleLabels tag of a labeling config.

    Raises:
        ValueError: the config is not XML, or has no such tag with labels and an image.
    """
    try:
        root = ElementTree.fromstring(config)
    except (ElementTree.ParseError, DefusedXmlException, ValueError) as error:
        raise ValueError(f"the labeling config {quote(config)} is not XML: {error}") from error
    tag = root.find(".//RectangleLabels")
    if tag is None:
        raise ValueError("the labeling config has no <RectangleLabels>: this model predicts boxes")
    to_name = (tag.get("toName") or "").split(",")[0].strip()
    image = next((x for x in root.iter("Image") if x.get("name") == to_name), None)
    labels = tuple(x.get("value", "").strip() for x in tag.iter("Label"))
    if image is None or not all(labels) or not labels:
        raise ValueError(
            f"<RectangleLabels toName={to_name!r}> needs an <Image> of this name and "
            "<Label value=...>"
        )
    return RectangleTag(
        tag.get("name", ""), to_name, (image.get("value") or "").lstrip("$"), labels
    )


def label_studio_router(service: Service, label_studio: LabelStudio, threshold: float) -> APIRouter:
    """The routes; a prediction has the boxes with a score of at least ``threshold``."""
    router = APIRouter()

    @router.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "UP", "model_class": service.model}

    @router.post("/setup")
    async def setup(request: SetupRequest) -> dict[str, str]:
        if request.label_config:
            _checked_config(request.label_config)
        return {"model_version": service.model}

    @router.post("/webhook", status_code=201)
    async def webhook(event: dict[str, Any]) -> dict[str, Any]:
        """Annotations do not train the model: ``glipv2 finetune`` does, on an export."""
        return {"status": "ignored", "action": event.get("action")}

    @router.post("/predict")
    async def predict(request: PredictRequest) -> dict[str, Any]:
        service.check_number(request.tasks, "tasks")
        tag = _checked_config(request.label_config or "")
        results = []
        for task in request.tasks:
            content = await _download(task, tag.key, label_studio, service.limits.max_bytes)
            prediction = await service.run(
                DetectRequest(
                    await service.decode(content),
                    tag.labels,
                    threshold,
                    one_name_per_box=True,
                )
            )
            results.append(_result(task, tag, prediction, service.model))
        return {"results": results, "model_version": service.model}

    return router


def _checked_config(config: str) -> RectangleTag:
    try:
        return parse_label_config(config)
    except ValueError as error:
        raise HTTPException(422, str(error)) from error


def _result(
    task: dict[str, Any], tag: RectangleTag, prediction: Prediction, model: str
) -> dict[str, Any]:
    """The prediction of a task, with the names of the labeling config's tags."""
    result: dict[str, Any] = prediction.to_label_studio(str(task.get("id", "")), model)[
        "predictions"
    ][0]
    for region in result["result"]:
        region |= {"from_name": tag.from_name, "to_name": tag.to_name}
    return result


async def _download(
    task: dict[str, Any], key: str, label_studio: LabelStudio, max_bytes: int
) -> bytes:
    """The image of a task, from Label Studio or inside the task.

    Raises:
        HTTPException: the task has none, it is elsewhere, too large, or cannot be downloaded.
    """
    data = task.get("data")
    source = data.get(key) if isinstance(data, dict) else None
    if not isinstance(source, str) or not source:
        raise HTTPException(422, f"task {task.get('id')} has no image in data[{key!r}]")
    if source.startswith("data:"):
        return await anyio.to_thread.run_sync(_decode_data_url, source)
    url = urljoin(label_studio.url.rstrip("/") + "/", source)
    if _origin(url) != _origin(label_studio.url):
        raise HTTPException(
            422, f"{quote(url)} is not at {label_studio.url}: only its images are downloaded"
        )
    headers = {"Authorization": f"Token {label_studio.token}"} if label_studio.token else {}
    content = bytearray()
    try:
        async with (
            # No redirects: they could lead to another host, with the token.
            httpx.AsyncClient(timeout=_DOWNLOAD_TIMEOUT, follow_redirects=False) as client,
            client.stream("GET", url, headers=headers) as response,
        ):
            response.raise_for_status()
            async for part in response.aiter_bytes():
                content += part
                if len(content) > max_bytes:
                    raise HTTPException(413, f"{quote(url)} has more than {max_bytes} bytes")
    except httpx.HTTPError as error:
        raise HTTPException(502, f"{quote(url)} cannot be downloaded: {error}") from error
    return bytes(content)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _decode_data_url(url: str) -> bytes:
    header, _, content = url.partition(",")
    try:
        if not header.endswith(";base64"):
            raise ValueError("not base64")
        return base64.b64decode(content, validate=True)
    except (ValueError, binascii.Error) as error:
        raise HTTPException(422, f"the image {quote(url)} is not a base64 data URL") from error
