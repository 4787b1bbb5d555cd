from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient
from helpers.serving import encode

from glipv2_d2.serving.app import create_app


def test_class_names_are_detected_with_boxes_in_pixels(client):
    response = client.upload("/predict", classes=["cat", "dog"], threshold="0.6")
    assert response.status_code == 200
    assert response.json() == {
        "width": 60,
        "height": 40,
        "names": ["cat", "dog"],
        "detections": [
            {
                "name": "cat",
                "score": pytest.approx(0.9),
                "bbox": [0.0, 0.0, 8.0, 6.0],
                "segmentation": None,
            },
            {
                "name": "dog",
                "score": pytest.approx(0.7),
                "bbox": [10.0, 10.0, 8.0, 6.0],
                "segmentation": None,
            },
        ],
    }


def test_boxes_below_the_threshold_are_left_out(client):
    found = client.upload("/predict", classes=["cat", "dog"], threshold="0.8").json()
    assert [detection["name"] for detection in found["detections"]] == ["cat"]


def test_without_a_threshold_boxes_have_the_score_of_the_model(client):
    # Scores are 0.9, 0.7 and 0.5, the model's threshold 0.65.
    found = client.upload("/predict", classes=["cat", "dog", "cow"]).json()
    assert [detection["name"] for detection in found["detections"]] == ["cat", "dog"]
    found = client.upload("/predict", caption="a cat and a dog and a cow").json()
    assert len(found["detections"]) == 2
    found = client.upload("/predict", classes=["cat", "dog", "cow"], threshold="0").json()
    assert len(found["detections"]) == 3


def test_a_fine_tuned_model_detects_its_own_names_if_a_request_has_none(client, model):
    model.class_names = ("hen", "egg")
    assert client.upload("/predict").json()["names"] == ["hen", "egg"]
    assert client.upload("/predict", classes=["cat"]).json()["names"] == ["cat"]
    assert client.upload("/predict", caption="a cat").json()["names"] == ["a cat"]


def test_the_documentation_of_the_service_has_the_models_threshold(client):
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    defaults = [
        schema["properties"]["threshold"]["default"]
        for schema in schemas.values()
        if "threshold" in schema.get("properties", {})
    ]
    assert defaults == [0.65, 0.65]


def test_a_service_may_have_a_threshold_of_its_own(model):
    with TestClient(create_app(model, model="stand-in", threshold=0.4)) as client:
        response = client.post(
            "/predict",
            files={"image": ("a.png", encode())},
            data={"classes": ["cat", "dog", "cow"]},
        )
    assert len(response.json()["detections"]) == 3


def test_masks_are_sent_on_request(client):
    found = client.upload("/predict", classes=["cat"], masks="true").json()
    assert found["detections"][0]["segmentation"]["size"] == [40, 60]


def test_the_phrases_of_a_caption_are_grounded(client):
    found = client.upload("/predict", caption="a cat and a dog").json()
    assert found["names"] == ["a cat", "a dog"]


def test_questions_are_answered(client):
    answer = client.upload("/answer", question="is it red?").json()
    assert answer == {"question": "is it red?", "answer": "yes", "score": 0.8}
    answer = client.upload("/answer", question="is it red?", choices=["no", "maybe"]).json()
    assert answer["answer"] == "no"


def test_an_image_is_described(client):
    described = client.upload("/caption").json()
    assert described["caption"] == "a cat"
    assert described["grounding"]["detections"][0]["name"] == "a cat"


@pytest.mark.parametrize(
    ("path", "data", "message"),
    [
        ("/predict", {}, "either classes or a caption"),
        ("/predict", {"classes": ["cat"], "caption": "a cat"}, "either classes or a caption"),
        ("/predict", {"classes": list("abcdef")}, "6 class names; at most 5"),
        ("/predict", {"classes": ["bad"]}, "the class name 'bad' is invalid"),
        ("/predict", {"classes": ["cat"], "threshold": "1.5"}, "less than or equal to 1"),
        ("/answer", {}, "Field required"),
        ("/answer", {"question": "a?", "choices": list("abcdef")}, "6 choices; at most 5"),
    ],
)
def test_an_invalid_request_is_answered_with_the_reason(client, path, data, message):
    response = client.upload(path, **data)
    assert response.status_code == 422
    assert message in response.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"<html></html>", "a web page"),
        (encode()[:60], "truncated"),
        (encode(200, 51), "too many pixels (200 x 51, more than 10000)"),
    ],
)
def test_an_upload_that_is_no_image_or_too_large_is_refused(client, content, message):
    response = client.post("/caption", files={"image": ("a.png", content)})
    assert response.status_code == 422
    assert message in response.text


def test_a_body_that_is_too_large_is_refused(client):
    response = client.post("/caption", files={"image": ("a.png", bytes(30_000))})
    assert response.status_code == 413
    assert "more than 20000 bytes" in response.text


def test_an_error_of_one_request_is_not_that_of_its_batch(client, model):
    model.is_free.clear()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(client.upload, "/predict", classes=["cat"])
        wait_until(lambda: client.get("/health").json()["waiting"] == 0)
        others = [pool.submit(client.upload, "/predict", classes=[c]) for c in ("bad", "dog")]
        wait_until(lambda: client.get("/health").json()["waiting"] >= 1)
        model.is_free.set()
        assert first.result().json()["names"] == ["cat"]
        assert [future.result().status_code for future in others] == [422, 200]
        assert others[1].result().json()["names"] == ["dog"]


def test_more_requests_than_may_wait_get_429(client, model):
    model.is_free.clear()
    with ThreadPoolExecutor(12) as pool:
        futures = [pool.submit(client.upload, "/predict", classes=[f"c{i}"]) for i in range(12)]
        wait_until(lambda: sum(future.done() for future in futures) >= 5)
        model.is_free.set()
        responses = [future.result() for future in futures]
    refused = [response for response in responses if response.status_code == 429]
    assert refused and all(response.headers["Retry-After"] == "1" for response in refused)
    for index, response in enumerate(responses):
        if response.status_code == 200:
            assert response.json()["names"] == [f"c{index}"]


def test_health_names_the_model(client):
    assert client.get("/health").json() == {"status": "ok", "model": "stand-in", "waiting": 0}


def test_metrics_count_requests_by_route_and_status(client):
    client.upload("/predict", classes=["cat"])
    client.upload("/predict", classes=["bad"])
    client.get("/no/such/path")
    text = client.get("/metrics").text
    assert 'glipv2_requests_total{path="/predict",status="200"} 1.0' in text
    assert 'glipv2_requests_total{path="/predict",status="422"} 1.0' in text
    assert 'glipv2_requests_total{path="other",status="404"} 1.0' in text
    assert 'glipv2_batch_size_bucket{le="1.0"} 2.0' in text


def test_the_openapi_page_has_the_routes(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/predict", "/answer", "/caption", "/health", "/metrics"} <= set(paths)


def wait_until(is_true) -> None:
    deadline = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
