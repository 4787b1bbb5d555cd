"""Which requests share a forward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from glipv2_d2.serving.model_requests import BatchRunner, DetectRequest, ModelRequest


def request(height: int, width: int, *classes: str) -> DetectRequest:
    image = np.full((height, width, 3), len(classes), dtype=np.uint8)
    return DetectRequest(image, classes, threshold=0.5)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[ModelRequest]]:
    """The requests of each forward pass; the result of a request is the request."""
    recorded: list[list[ModelRequest]] = []

    def detect(_: BatchRunner, requests: Any) -> Any:
        recorded.append(list(requests))
        return requests

    monkeypatch.setattr(BatchRunner, "_detect", detect)
    return recorded


def test_images_of_one_size_share_a_pass_whatever_their_class_names(
    passes: list[list[ModelRequest]],
) -> None:
    requests = [request(3, 4, "cat"), request(4, 3, "cat"), request(3, 4, "dog", "teapot")]
    results = BatchRunner(predictor=None)(requests)  # type: ignore[arg-type]
    assert all(result is own for result, own in zip(results, requests, strict=True))
    assert [len(requests_of_pass) for requests_of_pass in passes] == [2, 1]
    assert passes[0][1] is requests[2]
