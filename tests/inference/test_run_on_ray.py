"""glipv2 predict on actors writes what it writes without them."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from helpers.backward_actors import BackwardActors
from helpers.fixed_predictor import FixedPredictor, build_fixed_predictor
from PIL import Image

from glipv2_d2.batch_prediction import FilePrompts
from glipv2_d2.evaluation.thresholds import ScoreThresholds
from glipv2_d2.inference.run import OutputOptions, RunReport, SourcePrediction
from glipv2_d2.inference.run_on_ray import check_sources, predict_on_ray

BUILD = functools.partial(build_fixed_predictor, 0)


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """Seven images, of which the third is damaged."""
    (tmp_path / "images").mkdir()
    paths = [tmp_path / "images" / f"{number}.png" for number in range(7)]
    for number, path in enumerate(paths):
        Image.new("RGB", (20 + number, 30)).save(path)
    paths[2].write_bytes(b"damaged")
    return [str(path) for path in paths]


def prediction(output: Path) -> SourcePrediction:
    options = OutputOptions(output, ("coco", "yolo"))
    thresholds = ScoreThresholds({}, 0.3)
    return SourcePrediction(
        FilePrompts(["cat", "dog"]), thresholds, options, model="fixed", batch_size=2
    )


def on_actors(output: Path, images: list[str], actors: BackwardActors | None = None) -> RunReport:
    return predict_on_ray(
        prediction(output), actors or BackwardActors(), BUILD, images, lambda _count: None
    )


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_actors_that_finish_in_another_order_write_the_same_files(
    images: list[str], tmp_path: Path
) -> None:
    expected = prediction(tmp_path / "plain").run(FixedPredictor(), images, lambda _source: None)
    report = on_actors(tmp_path / "ray", images)
    assert files(tmp_path / "ray") == files(tmp_path / "plain")
    assert (report.num_images, report.counts) == (6, expected.counts)
    assert report.skipped == expected.skipped and len(report.skipped) == 1


def test_a_run_continues_on_actors(images: list[str], tmp_path: Path) -> None:
    prediction(tmp_path / "plain").run(FixedPredictor(), images, lambda _source: None)
    prediction(tmp_path / "both").run(FixedPredictor(), images[3:5], lambda _source: None)
    report = on_actors(tmp_path / "both", images)
    assert report.num_resumed == 2
    assert files(tmp_path / "both") == files(tmp_path / "plain")


def test_images_whose_actor_died_are_skipped_and_predicted_by_the_next_run(
    images: list[str], tmp_path: Path
) -> None:
    report = on_actors(tmp_path / "ray", images, BackwardActors(lost=frozenset({0})))
    assert report.num_images == 4
    assert sum("its actor died 3 times" in reason for reason in report.skipped) == 2
    report = on_actors(tmp_path / "ray", images)
    assert (report.num_images, report.num_resumed) == (6, 4)


@pytest.mark.parametrize(
    ("source", "kind"), [("street.mp4", "video"), ("webcam", "camera"), ("webcam:1", "camera")]
)
def test_videos_and_cameras_are_errors(source: str, kind: str) -> None:
    with pytest.raises(ValueError, match=f"'{source}' is a {kind}"):
        check_sources(["photo.jpg", source])
