from __future__ import annotations

import json

import pytest
import torch

from glipv2_d2.evaluation.thresholds import ScoreThresholds


def test_classes_without_a_threshold_use_the_default():
    thresholds = ScoreThresholds({"Traffic_Light": 0.4, "cat": 0.25}, default=0.5)
    found = thresholds.for_classes(["cat", "dog", "traffic light"])
    torch.testing.assert_close(found, torch.tensor([0.25, 0.5, 0.4]))


def test_the_default_of_a_mapping_is_zero():
    assert ScoreThresholds.from_source({"cat": 0.4}).for_classes(["dog"]).tolist() == [0.0]


def test_a_file_round_trip_keeps_the_thresholds(tmp_path):
    thresholds = ScoreThresholds({"café": 0.1 + 0.2, "犬": 1.0}, default=0.7)
    path = tmp_path / "thresholds.json"
    path.write_text(thresholds.to_json(config="any.yaml"), encoding="utf-8")
    assert ScoreThresholds.from_source(path) == ScoreThresholds.from_source(str(path)) == thresholds
    assert json.loads(path.read_text(encoding="utf-8"))["config"] == "any.yaml"


@pytest.mark.parametrize(
    "content", ["", "[]", '{"cat": 0.4}', '{"thresholds": {"cat": "high"}, "default": 0.5}']
)
def test_a_file_of_another_format_raises_an_error(content, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="other.json' is not a threshold file"):
        ScoreThresholds.from_source(path)


def test_a_missing_file_raises_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.json"):
        ScoreThresholds.from_source(tmp_path / "gone.json")


@pytest.mark.parametrize("score", [-0.1, 1.5, "0.4", None, True, float("nan")])
def test_an_invalid_threshold_raises_an_error(score):
    with pytest.raises(ValueError, match="the threshold of 'cat' is"):
        ScoreThresholds.from_source({"cat": score})
