"""Named models: their weights come from the hub, here a local server with its paths."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.hub_server import Hub, serve, use_hub
from huggingface_hub import constants

from glipv2_d2 import Predictor, get_config
from glipv2_d2.config import NAMED_CONFIGS
from glipv2_d2.model_zoo import GLIP_REPOSITORY, GLIP_WEIGHTS, download, model_files

GLIP_T = GLIP_WEIGHTS["glip-t"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve(Hub()) as hub:
        hub.add(GLIP_REPOSITORY, GLIP_T, b"weights of main")
        hub.add(GLIP_REPOSITORY, GLIP_T, b"weights of v2", "v2")
        use_hub(monkeypatch, hub.url, tmp_path / "cache")
        yield hub


def test_weights_of_glip_are_downloaded_once(hub: Hub) -> None:
    files = model_files("glip-t")
    assert files.config.name == "glip_swin_t.yaml"
    assert files.weights is not None and files.weights.read_bytes() == b"weights of main"
    assert f"GET /{GLIP_REPOSITORY}/resolve/main/{GLIP_T}" in hub.requests
    hub.requests.clear()
    model_files("glip-t")
    assert [request for request in hub.requests if request.startswith("GET")] == []


def test_revision_selects_another_version(hub: Hub) -> None:
    weights = model_files("glip-t", "v2").weights
    assert weights is not None and weights.read_bytes() == b"weights of v2"


def test_cached_weights_need_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = model_files("glip-t").weights
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert model_files("glip-t").weights == weights
    assert hub.requests == []


def test_offline_and_not_cached_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=f"{GLIP_T}.*not in the hub's cache.*HF_HUB_OFFLINE"
    ):
        Predictor("glip-t")


def test_unreachable_hub_and_not_cached_names_the_endpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path)
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    with pytest.raises(FileNotFoundError, match="http://127.0.0.1:9 cannot be reached") as error:
        Predictor("glip-t")
    for remedy in ("check the network", "HF_ENDPOINT", "pass it as weights"):
        assert remedy in str(error.value)
    assert waited == []


@pytest.mark.parametrize(
    ("repository", "file", "revision", "message"),
    [
        (GLIP_REPOSITORY, GLIP_T, "v3", "at 'v3': the repository has no such revision"),
        (GLIP_REPOSITORY, "other.pth", None, "'other.pth' .* has no such file"),
        ("user/missing", GLIP_T, None, "no such repository"),
    ],
)
def test_what_the_hub_does_not_have_is_named(
    hub: Hub, repository: str, file: str, revision: str | None, message: str
) -> None:
    with pytest.raises(FileNotFoundError, match=message):
        download(repository, file, revision)


def test_invalid_repository_is_named() -> None:
    with pytest.raises(ValueError, match="'a/b/c' is not a repository"):
        download("a/b/c", "file")


def test_every_published_model_has_a_config() -> None:
    assert set(GLIP_WEIGHTS) <= set(NAMED_CONFIGS)


@pytest.mark.parametrize("name", ["glipt", "GLIP-T", "glip_t"])
def test_unknown_name_gives_the_nearest(name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown model name '{name}'; did you mean .*glip-t"):
        Predictor(name)


def test_model_without_published_weights_is_an_error() -> None:
    with pytest.raises(ValueError, match="no weights of 'glipv2-t' were published"):
        Predictor("glipv2-t")


def test_revision_needs_a_named_model_of_the_hub() -> None:
    with pytest.raises(ValueError, match="revision='v2' is for named models"):
        Predictor("a.yaml", revision="v2")
    with pytest.raises(ValueError, match="weights of 'glipv2-mini' are not on the hub"):
        Predictor("glipv2-mini", revision="v2")


def test_config_of_the_small_model_has_its_name() -> None:
    assert get_config("glipv2-mini").MODEL.BACKBONE.NAME == "build_evidence_backbone"
