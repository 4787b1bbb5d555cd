from __future__ import annotations

import json

import pytest
import torch

from glipv2_d2.evaluation.thresholds import NameThresholds


def test_names_have_their_own_thresholds_and_others_the_default():
    thresholds = NameThresholds({"Traffic_Light": 0.4, "cat": 0.25}, default=0.5)
    found = thresholds.of_names(["cat", "dog", "traffic light"])
    torch.testing.assert_close(found, torch.tensor([0.25, 0.5, 0.4]))


def test_a_mapping_leaves_other_names_all_they_have():
    assert NameThresholds.of({"cat": 0.4}).of_names(["dog"]).tolist() == [0.0]


def test_a_written_file_is_read_as_it_was(tmp_path):
    thresholds = NameThresholds({"café": 0.1 + 0.2, "犬": 1.0}, default=0.7)
    path = tmp_path / "thresholds.json"
    path.write_text(thresholds.to_json(config="any.yaml"), encoding="utf-8")
    assert NameThresholds.of(path) == NameThresholds.of(str(path)) == thresholds
    assert json.loads(path.read_text(encoding="utf-8"))["config"] == "any.yaml"


@pytest.mark.parametrize(
    "content", ["", "[]", '{"cat": 0.4}', '{"thresholds": {"cat": "high"}, "default": 0.5}']
)
def test_another_file_is_refused_with_its_name(content, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="other.json' is no file of thresholds"):
        NameThresholds.of(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.json"):
        NameThresholds.of(tmp_path / "gone.json")


@pytest.mark.parametrize("score", [-0.1, 1.5, "0.4", None, True, float("nan")])
def test_a_threshold_that_is_no_score_is_named(score):
    with pytest.raises(ValueError, match="the threshold of 'cat' is"):
        NameThresholds.of({"cat": score})
