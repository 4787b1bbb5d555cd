"""Requests as Label Studio's label_studio/ml/api_connector.py sends them."""

from __future__ import annotations

import base64

import httpx
import pytest
from helpers.serving import LABEL_STUDIO_URL, encode

from glipv2_d2.serving import label_studio
from glipv2_d2.serving.label_studio import parse_label_config

CONFIG = """
<View>
  <Image name="photo" value="$picture"/>
  <RectangleLabels name="animals" toName="photo">
    <Label value="cat" background="green"/>
    <Label value="dog"/>
  </RectangleLabels>
</View>
"""


def predict_request(*images: str) -> dict:
    tasks = [
        {
            "id": 7 + index,
            "data": {"picture": image},
            "annotations": [],
            "predictions": [],
            "project": 1,
        }
        for index, image in enumerate(images)
    ]
    return {
        "tasks": tasks,
        "model_version": None,
        "project": "1.1717171717",
        "label_config": CONFIG,
        "params": {"login": None, "password": None, "context": None},
    }


@pytest.fixture
def downloads(monkeypatch):
    """Label Studio's answers by path; requests are recorded."""
    requests = []
    real = httpx.AsyncClient

    def respond(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        if request.url.path == "/data/upload/1/a.png":
            return httpx.Response(200, content=encode())
        if request.url.path == "/data/upload/1/moved.png":
            return httpx.Response(302, headers={"Location": "http://elsewhere.test/"})
        if request.url.path == "/data/upload/1/large.png":
            return httpx.Response(200, content=bytes(30_000))
        return httpx.Response(404)

    monkeypatch.setattr(
        label_studio.httpx,
        "AsyncClient",
        lambda **kwargs: real(transport=httpx.MockTransport(respond), **kwargs),
    )
    return requests


def test_health_and_setup_are_answered_as_label_studio_expects(client):
    assert client.get("/label-studio/health").json()["status"] == "UP"
    request = {
        "project": "1.1717171717",
        "schema": CONFIG,
        "hostname": LABEL_STUDIO_URL,
        "access_token": "abc",
    }
    response = client.post("/label-studio/setup", json=request)
    assert response.json() == {"model_version": "stand-in"}


def test_tasks_get_boxes_in_per_cent_under_the_names_of_the_config(client, downloads):
    response = client.post("/label-studio/predict", json=predict_request("/data/upload/1/a.png"))
    assert response.status_code == 200
    (prediction,) = response.json()["results"]
    assert prediction["model_version"] == response.json()["model_version"] == "stand-in"
    first, second = prediction["result"]
    assert first["from_name"] == "animals" and first["to_name"] == "photo"
    assert first["type"] == "rectanglelabels"
    assert first["value"]["rectanglelabels"] == ["cat"]
    assert second["value"]["rectanglelabels"] == ["dog"]
    assert first["value"]["width"] == pytest.approx(100 * 8 / 60)
    assert (first["original_width"], first["original_height"]) == (60, 40)
    (request,) = downloads
    assert str(request.url) == f"{LABEL_STUDIO_URL}/data/upload/1/a.png"
    assert request.headers["Authorization"] == "Token secret"


def test_an_image_inside_the_task_needs_no_download(client, downloads):
    url = "data:image/png;base64," + base64.b64encode(encode()).decode()
    response = client.post("/label-studio/predict", json=predict_request(url))
    assert len(response.json()["results"]) == 1 and not downloads


@pytest.mark.parametrize(
    ("image", "status", "message"),
    [
        ("http://elsewhere.test/a.png", 422, "is not at http://label-studio.test:8080"),
        ("http://label-studio.test:9090/a.png", 422, "is not at"),
        ("//elsewhere.test/a.png", 422, "is not at"),
        ("file:///etc/passwd", 422, "is not at"),
        ("/data/upload/1/missing.png", 502, "404"),
        ("/data/upload/1/moved.png", 502, "302"),
        ("/data/upload/1/large.png", 413, "more than 20000 bytes"),
        ("data:image/png;base64,***", 422, "base64"),
        ("", 422, "has no image"),
    ],
)
def test_images_from_elsewhere_or_broken_ones_are_refused(
    client, downloads, image, status, message
):
    response = client.post("/label-studio/predict", json=predict_request(image))
    assert response.status_code == status
    assert message in response.text
    assert all(request.url.host == "label-studio.test" for request in downloads)


def test_a_webhook_is_accepted(client):
    response = client.post("/label-studio/webhook", json={"action": "ANNOTATION_CREATED"})
    assert response.status_code == 201


def test_a_labeling_config_names_the_tags_and_labels():
    tag = parse_label_config(CONFIG)
    assert (tag.from_name, tag.to_name, tag.key) == ("animals", "photo", "picture")
    assert tag.labels == ("cat", "dog")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", "is not XML"),
        ("<View>", "is not XML"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><View>&a;</View>', "is not XML"),
        ("<View><Image name='i' value='$i'/></View>", "no <RectangleLabels>"),
        ("<View><RectangleLabels name='a' toName='i'/></View>", "needs an <Image>"),
    ],
)
def test_a_config_without_boxes_is_an_error(client, config, message):
    with pytest.raises(ValueError, match=message):
        parse_label_config(config)
    request = predict_request() | {"label_config": config}
    assert client.post("/label-studio/predict", json=request).status_code == 422
