"""A service with a stand-in model."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from helpers.serving import LABEL_STUDIO_URL, StandIn, encode

from glipv2_d2.serving.app import create_app
from glipv2_d2.serving.label_studio import LabelStudio
from glipv2_d2.serving.limits import Limits


@pytest.fixture
def model() -> StandIn:
    return StandIn()


@pytest.fixture
def client(model):
    limits = Limits(
        max_bytes=20_000, max_pixels=10_000, max_names=5, max_batch_size=4, max_waiting=3
    )
    app = create_app(
        model, model="stand-in", limits=limits, label_studio=LabelStudio(LABEL_STUDIO_URL, "secret")
    )
    with TestClient(app) as client:
        client.upload = lambda path, **data: client.post(
            path, files={"image": ("a.png", encode())}, data=data
        )
        yield client
