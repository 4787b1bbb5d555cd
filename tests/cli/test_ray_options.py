"""glipv2 label and glipv2 predict with --ray: options, and actors of this process."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.backward_actors import BackwardActors
from helpers.fixed_predictor import FixedPredictor
from PIL import Image

import glipv2_d2.predictor
from glipv2_cli import main as cli
from glipv2_d2.engine import ray_actors

COMMANDS = {
    "label": ["label", "--images", "photos", "--output", "out", "--classes", "cat"],
    "predict": ["predict", "photos", "--output", "out", "--classes", "cat"],
}


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory has photos/ with an image."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Image.new("RGB", (32, 20)).save("photos/a.png")


def fails(command: str, *arguments: str) -> None:
    assert cli.main([*COMMANDS[command], *arguments]) == cli.FAILED


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--actors", "2"), "--actors: only with --ray"),
        (("--gpus-per-actor", "0", "--cpus-per-actor", "2"), "--cpus-per-actor, --gpus-per-actor"),
        (("--ray", "cluster"), "'cluster' is not the address of a Ray cluster"),
        (("--ray", "auto", "--actors", "0"), "--actors is 0"),
        (("--ray", "auto", "--cpus-per-actor", "nan"), "--cpus-per-actor is nan"),
        (("--ray", "auto", "--gpus-per-actor", "-1"), "--gpus-per-actor is -1"),
        (("--ray", "auto", "--gpus-per-actor", "1.5"), "--gpus-per-actor is 1.5"),
        (("--ray", "auto", "--device", "cuda:1"), "Ray chooses the GPU"),
        (("--ray", "auto", "--device", "cpu", "--gpus-per-actor", "1"), "leave one out"),
    ],
)
def test_invalid_options_are_one_line(
    command: str, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(command, *arguments)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*COMMANDS["label"], "--processes", "2"], "--processes is not for --ray: --actors"),
        ([*COMMANDS["predict"], "--max-frames", "5"], "--max-frames is not for --ray"),
        (["predict", "photos", "webcam"], "'webcam' is a camera: predict it without --ray"),
        (["predict", "clip.mp4"], "'clip.mp4' is a video: predict it without --ray"),
    ],
)
def test_what_ray_does_not_do_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*arguments, "--ray", "auto"]) == cli.FAILED
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not Path("out").exists() and not Path("output").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_without_ray_or_its_cluster_the_last_line_is_the_remedy(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
    fails(command, "--ray", "auto")
    assert capsys.readouterr().err.endswith("pip install 'glipv2_d2[ray]'\n")
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        fails(command, "--ray", address)
    assert f"error: no Ray cluster answers at {address}" in capsys.readouterr().err
    assert not Path("out/predictions.jsonl").exists() and not Path("out/settings.json").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_model_is_an_error_before_ray_is_used(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    fails(command, "--ray", "auto", "--model", "glipv2-maxi")
    assert "glipv2-maxi" in capsys.readouterr().err.splitlines()[-1]
    assert not Path("out/predictions.jsonl").exists() and not Path("out/settings.json").exists()


def outputs(folder: str) -> dict[str, bytes]:
    files = [path for path in Path(folder).rglob("*") if path.is_file() and path.name != "log.txt"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("command", COMMANDS)
def test_actors_write_the_files_of_a_run_without_ray(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requested: list[Any] = []

    @contextlib.contextmanager
    def connect(address: str, **options: Any) -> Iterator[BackwardActors]:
        requested.append((address, options))
        yield BackwardActors()

    monkeypatch.setattr(ray_actors, "connect", connect)
    monkeypatch.setattr(glipv2_d2, "Predictor", FixedPredictor)
    for name in ("b", "c"):
        Image.new("RGB", (40, 30)).save(f"photos/{name}.png")
    Path("photos/damaged.png").write_bytes(b"damaged")
    assert cli.main([*COMMANDS[command], "--output", "plain"]) == 1
    expected = capsys.readouterr().out.replace("plain/", "ray/")
    options = ("--ray", "auto", "--actors", "3", "--gpus-per-actor", "0")
    assert cli.main([*COMMANDS[command], "--output", "ray", *options]) == 1
    assert requested == [("auto", {"num_actors": 3, "num_cpus": 1, "num_gpus": 0})]
    assert capsys.readouterr().out == expected
    assert outputs("ray") == outputs("plain")
