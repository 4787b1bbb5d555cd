"""Predictor with a model that detects pixels of the colour in a class name, so that a wrong channel
order, orientation, scale or list of class names changes its boxes."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools import mask as coco_mask
from torch import nn

from glipv2_d2 import Prediction, Predictor, add_glipv2_config
from glipv2_d2.evaluation.thresholds import ScoreThresholds

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
COLOURS_PER_FORMAT = {
    "RGB": {"red": RED, "green": GREEN, "blue": BLUE},
    "BGR": {"red": BLUE, "green": GREEN, "blue": RED},
}


class ColourFinder(nn.Module):
    """One box per colour in the image; the score grows with the right edge of the box."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.colours = COLOURS_PER_FORMAT[cfg.INPUT.FORMAT]
        self.batch_sizes: list[int] = []

    def forward(self, inputs):
        assert not self.training and not torch.is_grad_enabled()
        self.batch_sizes.append(len(inputs))
        return [self.find(x) for x in inputs]

    def find(self, x):
        names = x.get("classes")
        if "caption" in x:
            names = [x["caption"][start:end] for ((start, end),) in x["phrases"]]
        size = (x["height"], x["width"])
        scale = torch.tensor(size[::-1]) / torch.tensor(x["image"].shape[:0:-1])
        boxes, classes = [], []
        for index, name in enumerate(names):
            colour = torch.tensor(self.colours[name.split()[-1]]).view(3, 1, 1)
            found = ((x["image"].float() - colour).abs() < 100).all(0).nonzero().flip(1)
            if len(found):
                boxes.append(torch.cat([found.amin(0) * scale, (found.amax(0) + 1) * scale]))
                classes.append(index)
        instances = Instances(size)
        instances.pred_boxes = Boxes(torch.stack(boxes) if boxes else torch.zeros(0, 4))
        instances.scores = instances.pred_boxes.tensor[:, 2] / size[1]
        instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
        return {"instances": instances, **({"phrases": names} if "caption" in x else {})}


@pytest.fixture(scope="module", autouse=True)
def registered():
    META_ARCH_REGISTRY.register(ColourFinder)
    yield
    META_ARCH_REGISTRY._obj_map.pop("ColourFinder")


def make_config(input_format: str = "BGR") -> CfgNode:
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "ColourFinder"
    cfg.INPUT.FORMAT = input_format
    cfg.INPUT.MIN_SIZE_TEST = 80
    cfg.INPUT.MAX_SIZE_TEST = 200
    return cfg


@pytest.fixture(params=["BGR", "RGB"])
def predictor(request) -> Predictor:
    return Predictor(make_config(request.param), device="cpu")


def sample_image() -> np.ndarray:
    """(40, 60, 3) RGB: red in x 4..20, y 8..16, and blue in x 30..50, y 20..32."""
    rgb = np.full((40, 60, 3), 255, dtype=np.uint8)
    rgb[8:16, 4:20] = RED
    rgb[20:32, 30:50] = BLUE
    return rgb


RED_BOX, BLUE_BOX = [4, 8, 20, 16], [30, 20, 50, 32]


def boxes_of(prediction: Prediction) -> list[list[float]]:
    return prediction.instances.pred_boxes.tensor.round().tolist()


def test_boxes_are_in_pixels_of_the_original_image_best_first(predictor):
    prediction = predictor.predict(
        Image.fromarray(sample_image()), classes=["red", "green", "blue"]
    )
    assert prediction.labels == ["blue", "red"]
    assert boxes_of(prediction) == [BLUE_BOX, RED_BOX]
    assert prediction.image_size == (40, 60)


def test_one_image_gives_a_prediction_and_a_list_gives_a_list(predictor, tmp_path):
    rgb = sample_image()
    path = tmp_path / "a.png"
    Image.fromarray(rgb).save(path)
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)
    for source in (path, str(path), Image.fromarray(rgb), rgb, tensor):
        one = predictor.predict(source, classes=["red"], channel_order="RGB")
        several = predictor.predict([source], classes=["red"], channel_order="RGB")
        assert isinstance(one, Prediction) and isinstance(several, list)
        assert boxes_of(one) == boxes_of(several[0]) == [RED_BOX]
    assert predictor.predict([], classes=["red"]) == []


def test_channel_order_is_applied_to_arrays(predictor):
    found = predictor.predict(sample_image(), classes=["red"], channel_order="BGR")
    assert boxes_of(found) == [BLUE_BOX]


def test_each_image_of_a_batch_may_have_its_own_class_names(predictor):
    images = [Image.fromarray(sample_image())] * 3
    lists = [["red", "blue"], ["blue"], ["green", "blue", "red"]]
    predictions = predictor.predict(images, classes=lists, batch_size=3)
    assert [p.labels for p in predictions] == [["blue", "red"], ["blue"], ["blue", "red"]]
    assert [p.names for p in predictions] == lists


def test_an_image_that_is_passed_several_times_has_one_tensor(predictor, monkeypatch, tmp_path):
    inputs = []
    find = predictor.model.find
    monkeypatch.setattr(predictor.model, "find", lambda x: inputs.append(x) or find(x))
    Image.fromarray(sample_image()).save(tmp_path / "a.png")
    Image.fromarray(sample_image()[::-1]).save(tmp_path / "b.png")
    files = [tmp_path / "a.png"] * 2 + [tmp_path / "b.png"]
    found = predictor.predict(files, classes=[["red"], ["blue"], ["red"]], batch_size=3)
    assert [boxes_of(p) for p in found] == [[RED_BOX], [BLUE_BOX], [[4, 24, 20, 32]]]
    assert inputs[0]["image"] is inputs[1]["image"] is not inputs[2]["image"]


def test_images_are_processed_in_batches(predictor):
    images = (Image.fromarray(sample_image()) for _ in range(5))
    assert len(predictor.predict(images, classes=["red"], batch_size=2)) == 5
    assert predictor.model.batch_sizes == [2, 2, 1]


def test_labels_of_a_caption_are_its_phrases(predictor):
    caption = "a blue thing and something red"
    image = Image.fromarray(sample_image())
    by_words = predictor.predict(image, caption=caption, phrases=["BLUE", "red"])
    by_spans = predictor.predict(image, caption=caption, phrases=[[(2, 6)], [(27, 30)]])
    assert by_words.names == by_spans.names == ["blue", "red"]
    assert by_words.labels == by_spans.labels == ["blue", "red"]


def test_a_phrase_is_not_found_inside_a_longer_word(predictor):
    image = Image.fromarray(sample_image())
    found = predictor.predict(image, caption="bored, then red", phrases=["red"])
    assert found.names == ["red"] and boxes_of(found) == [RED_BOX]


def test_the_default_phrases_are_noun_phrases(predictor, monkeypatch):
    spans = [[(0, 5)]]
    monkeypatch.setattr("glipv2_d2.predictor_inputs.noun_phrases", lambda caption: spans)
    found = predictor.predict(Image.fromarray(sample_image()), caption="a red shines")
    assert found.names == ["a red"] and boxes_of(found) == [RED_BOX]


def test_a_caption_without_a_noun_phrase_raises_an_error(predictor, monkeypatch):
    monkeypatch.setattr("glipv2_d2.predictor_inputs.noun_phrases", lambda caption: [])
    with pytest.raises(ValueError, match="'go quickly'.*phrases="):
        predictor.predict(Image.fromarray(sample_image()), caption="go quickly")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({}, "either classes or a caption"),
        ({"classes": ["red"], "caption": "a red"}, "either classes or a caption"),
        ({"classes": "red, blue"}, "'red, blue'.*split"),
        ({"classes": []}, "empty"),
        ({"classes": [["red"], []]}, "2 lists of classes for 1 images"),
        ({"classes": [["red"], "blue"]}, "2 lists of classes for 1 images"),
        ({"classes": ["red"], "phrases": ["red"]}, "phrases=.*caption"),
        ({"caption": ""}, "caption ''"),
        ({"caption": " . . "}, "caption ' . . '"),
        ({"caption": "a red", "phrases": []}, "phrases is empty"),
        ({"caption": "a red", "phrases": ["blue"]}, "'blue' is not in the caption 'a red'"),
        ({"caption": "a red", "phrases": [""]}, "'' is not in the caption"),
        ({"caption": "a red", "phrases": "a red"}, "phrases.*the string 'a red'"),
        ({"caption": "a red", "phrases": [(0, 5)]}, r"phrase \(0, 5\) is neither"),
    ],
)
def test_an_invalid_prompt_raises_an_error_with_its_value(predictor, prompt, message):
    with pytest.raises(ValueError, match=message):
        predictor.predict([Image.fromarray(sample_image())], **prompt)


def test_mixing_strings_and_lists_of_class_names_raises_an_error(predictor):
    with pytest.raises(ValueError, match="'blue' is not in a list"):
        predictor.predict([Image.fromarray(sample_image())] * 2, classes=[["red"], "blue"])


def test_a_bad_file_among_several_is_logged_and_skipped_on_request(predictor, tmp_path, caplog):
    good, damaged, missing = (tmp_path / name for name in ("good.png", "damaged.png", "gone.png"))
    Image.fromarray(sample_image()).save(good)
    damaged.write_bytes(b"not an image")
    files = [damaged, good, missing, good]
    with caplog.at_level(logging.WARNING, logger="glipv2_d2.predictor"):
        predictions = predictor.predict(files, classes=["red"], batch_size=2, on_error="skip")
    assert [p and p.labels for p in predictions] == [None, ["red"], None, ["red"]]
    skipped = [record.getMessage() for record in caplog.records]
    assert "damaged.png" in skipped[0] and "gone.png" in skipped[1]


class FailsForStrips(ColourFinder):
    def find(self, x):
        if min(x["image"].shape[1:]) == 1:
            raise RuntimeError("kernel size is too large")
        return super().find(x)


@pytest.fixture
def strip_fails(monkeypatch):
    monkeypatch.setitem(META_ARCH_REGISTRY._obj_map, "ColourFinder", FailsForStrips)
    return Predictor(make_config(), device="cpu")


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_an_image_that_the_model_fails_for_is_logged_and_skipped_on_request(
    strip_fails, tmp_path, caplog, batch_size
):
    strip = tmp_path / "strip.png"
    Image.new("RGB", (1, 4000)).save(strip)
    array, good = np.zeros((4000, 1, 3), np.uint8), sample_image()
    images = [good, strip, good, array]
    with caplog.at_level(logging.WARNING, logger="glipv2_d2.predictor"):
        predictions = strip_fails.predict(
            images, classes=["red"], channel_order="RGB", batch_size=batch_size, on_error="skip"
        )
    assert [p and p.labels for p in predictions] == [["red"], None, ["red"], None]
    skipped = [record.getMessage() for record in caplog.records]
    assert "strip.png' cannot be predicted (RuntimeError: kernel size" in skipped[0]
    assert "image 4 of 4 cannot be predicted" in skipped[1]


def test_an_image_that_the_model_fails_for_is_named_by_default(strip_fails, tmp_path):
    strip = tmp_path / "strip.png"
    Image.new("RGB", (1, 4000)).save(strip)
    for images in (strip, [Image.fromarray(sample_image()), strip]):
        with pytest.raises(ValueError, match="strip.png.*kernel size is too large"):
            strip_fails.predict(images, classes=["red"], batch_size=2)


def test_an_error_of_the_prompt_is_never_skipped(predictor, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(sample_image()).save(path)
    with pytest.raises(KeyError, match="mouse"):
        predictor.predict([path] * 2, classes=["mouse"], on_error="skip")


@pytest.mark.parametrize("bad", [np.zeros((0, 9, 3), np.uint8), Image.new("F", (9, 9))])
def test_any_unusable_image_is_skipped_on_request(predictor, bad):
    images = [sample_image(), bad]
    found = predictor.predict(images, classes=["red"], channel_order="RGB", on_error="skip")
    assert [p and p.labels for p in found] == [["red"], None]


@pytest.mark.parametrize("as_file", [True, False])
def test_boxes_and_size_are_those_of_the_upright_image(predictor, tmp_path, as_file):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.rot90(sample_image()))
    stored.save(tmp_path / "turned.png", exif=exif)
    source = tmp_path / "turned.png"
    prediction = predictor.predict(source if as_file else Image.open(source), classes=["red"])
    assert boxes_of(prediction) == [RED_BOX]
    assert prediction.image_size == prediction.instances.image_size == (40, 60)


def test_a_bad_file_raises_an_error_by_default(predictor, tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.png"):
        predictor.predict([tmp_path / "gone.png"], classes=["red"])
    with pytest.raises(FileNotFoundError, match="gone.png"):
        predictor.predict(tmp_path / "gone.png", classes=["red"], on_error="skip")


def test_an_array_without_channel_order_is_never_skipped(predictor):
    with pytest.raises(ValueError, match="channel_order"):
        predictor.predict([sample_image()], classes=["red"], on_error="skip")


@pytest.mark.parametrize("option", [{"batch_size": 0}, {"on_error": "ignore"}])
def test_an_invalid_option_raises_an_error(predictor, option):
    with pytest.raises(ValueError, match=f"{next(iter(option.values()))!r}"):
        predictor.predict([sample_image()], classes=["red"], **option)


def test_coco_rows_have_xywh_boxes_and_the_index_in_the_callers_list(predictor):
    image = Image.fromarray(sample_image())
    rows = predictor.predict(image, classes=["blue", "red"]).above(0.5).to_coco(7)
    (row,) = rows
    assert [round(value) for value in row.pop("bbox")] == [30, 20, 20, 12]
    assert round(row.pop("score"), 2) == 0.83
    assert row == {"image_id": 7, "category_id": 0, "category_name": "blue"}


def test_masks_are_written_as_json_rle_in_the_order_of_the_boxes():
    masks = torch.zeros(2, 20, 30, dtype=torch.bool)
    masks[0, 2:7, 3:9], masks[1, 10:, 20:] = True, True
    instances = Instances((20, 30), pred_boxes=Boxes(torch.zeros(2, 4)), pred_masks=masks)
    instances.scores, instances.pred_classes = torch.tensor([0.4, 0.8]), torch.tensor([1, 0])
    rows = Prediction(instances, ["red", "blue"], (20, 30)).above(0.5).to_coco(7)
    (segmentation,) = [row["segmentation"] for row in json.loads(json.dumps(rows))]
    np.testing.assert_array_equal(coco_mask.decode(segmentation), masks[1])


def test_an_empty_prediction_is_valid(predictor):
    nothing = predictor.predict(Image.fromarray(sample_image()), classes=["green"])
    assert len(nothing) == 0 and nothing.labels == [] and nothing.to_coco(0) == []


def test_a_prediction_is_immutable(predictor):
    prediction = predictor.predict(Image.fromarray(sample_image()), classes=["red"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        prediction.names = ["blue"]


def test_the_config_of_the_caller_is_not_modified():
    cfg = make_config()
    before = cfg.dump()
    Predictor(cfg, device="cpu", opts=["INPUT.MIN_SIZE_TEST", 40])
    assert cfg.dump() == before


def test_random_weights_log_a_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="glipv2_d2.predictor"):
        Predictor(make_config(), device="cpu")
    assert "weights are random" in caplog.text


def test_importing_the_package_registers_models_without_importing_the_predictor():
    code = (
        "import sys, glipv2_d2\n"
        "from detectron2.modeling import META_ARCH_REGISTRY, PROPOSAL_GENERATOR_REGISTRY\n"
        "assert 'GLIPv2' in META_ARCH_REGISTRY and 'GroundingRPN' in PROPOSAL_GENERATOR_REGISTRY\n"
        "assert 'glipv2_d2.predictor' not in sys.modules and 'spacy' not in sys.modules\n"
        "for name in glipv2_d2.__all__: getattr(glipv2_d2, name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_thresholds_are_applied_per_class(predictor, tmp_path):
    image = Image.fromarray(sample_image())
    names = ["red", "blue", "green"]  # red scores 1/3, blue 5/6
    kept = predictor.predict(image, classes=names, thresholds={"Red": 0.3, "blue": 0.9})
    assert kept.labels == ["red"]
    path = tmp_path / "thresholds.json"
    path.write_text(ScoreThresholds({"red": 0.5}, default=0.8).to_json())
    for several in (False, True):
        found = predictor.predict([image] if several else image, classes=names, thresholds=path)
        assert (found[0] if several else found).labels == ["blue"]
    everything = predictor.predict(image, classes=names)
    assert everything.above({"blue": 0.9}).labels == ["red"]
    assert predictor.predict(
        image, caption="a blue or red", phrases=["blue", "red"], thresholds={"blue": 0.9}
    ).labels == ["red"]


def test_without_a_threshold_boxes_have_the_score_of_the_model(predictor):
    image, names = Image.fromarray(sample_image()), ["red", "blue"]  # red scores 1/3, blue 5/6
    strict = Predictor(
        make_config(predictor.cfg.INPUT.FORMAT),
        device="cpu",
        opts=["TEST.DISPLAY_SCORE_THRESH", 0.5],
    )
    assert (predictor.threshold, strict.threshold) == (0.3, 0.5)
    assert strict.predict(image, classes=names).labels == ["blue"]
    for everything in (None, 0):
        assert strict.predict(image, classes=names, threshold=everything).labels == ["blue", "red"]
    # A threshold of its own replaces the model's, of other names it does not.
    assert strict.predict(image, classes=names, thresholds={"red": 0.3}).labels == ["blue", "red"]
    assert strict.predict(image, classes=names, thresholds={"blue": 0.9}).labels == []
    kept = strict.predict(image, classes=names, thresholds={"red": 0.3}, threshold=0.4)
    assert kept.labels == ["blue"]


def test_a_threshold_of_the_config_that_is_no_score_is_named():
    with pytest.raises(ValueError, match=r"TEST.DISPLAY_SCORE_THRESH is 65\.0"):
        Predictor(make_config(), device="cpu", opts=["TEST.DISPLAY_SCORE_THRESH", 65.0])


def test_of_overlapping_boxes_the_best_name_is_kept(predictor):
    rgb = sample_image()
    rgb[20:32, 30:48] = RED  # red in x 4..48, y 8..32; blue in x 48..50: hardly any overlap
    apart = predictor.predict(Image.fromarray(rgb), classes=["red", "blue"], one_name_per_box=True)
    assert apart.labels == ["blue", "red"]
    image, names = Image.fromarray(sample_image()), ["blue", "dark blue", "red"]
    assert predictor.predict(image, classes=names).labels == ["blue", "dark blue", "red"]
    for several in (False, True):
        found = predictor.predict(
            [image] if several else image, classes=names, one_name_per_box=True
        )
        kept = found[0] if several else found
        assert kept.labels == ["blue", "red"]
        assert boxes_of(kept) == [BLUE_BOX, RED_BOX]


def test_a_name_below_its_threshold_suppresses_no_other(predictor):
    found = predictor.predict(
        Image.fromarray(sample_image()),
        classes=["blue", "dark blue"],
        thresholds={"blue": 0.9},
        one_name_per_box=True,
    )
    assert found.labels == ["dark blue"]


@pytest.mark.parametrize(("iou_threshold", "kept"), [(0.49, ["cup"]), (0.51, ["cup", "mug"])])
def test_boxes_overlap_if_their_iou_is_above_the_threshold(iou_threshold, kept):
    # 20 x 10 and its left half: IoU 0.5.
    instances = Instances((20, 30), pred_boxes=Boxes([[0.0, 0, 10, 10], [0.0, 0, 20, 10]]))
    instances.scores, instances.pred_classes = torch.tensor([0.8, 0.4]), torch.tensor([1, 0])
    masks = torch.zeros(2, 20, 30, dtype=torch.bool)
    masks[1] = True
    instances.pred_masks = masks
    prediction = Prediction(instances, ["mug", "cup"], (20, 30)).one_name_per_box(iou_threshold)
    assert prediction.labels == kept
    assert prediction.instances.pred_masks.float().mean((1, 2)).tolist() == [0, 1][: len(kept)]


@pytest.mark.parametrize(
    ("classes", "scores", "kept"),
    [
        ([0, 0], [0.8, 0.4], [0.8]),
        ([0, 0], [0.4, 0.8], [0.4, 0.8]),
        ([0, 1], [0.8, 0.4], [0.8, 0.4]),
    ],
)
def test_a_box_in_a_better_one_of_its_name_is_a_part(classes, scores, kept):
    # The second lies in the first but for a tenth of its area.
    instances = Instances((20, 30), pred_boxes=Boxes([[0.0, 0, 20, 10], [0.0, 1, 10, 11]]))
    instances.scores, instances.pred_classes = torch.tensor(scores), torch.tensor(classes)
    found = Prediction(instances, ["cat", "dog"], (20, 30)).without_parts()
    torch.testing.assert_close(found.instances.scores, torch.tensor(kept))


def test_negatives_are_passed_to_the_model_and_are_not_class_names(predictor, monkeypatch):
    inputs = []
    find = predictor.model.find
    monkeypatch.setattr(predictor.model, "find", lambda x: inputs.append(x) or find(x))
    image = Image.fromarray(sample_image())
    found = predictor.predict([image, image], classes=["red"], negatives=["blue", "green"])
    assert [p.names for p in found] == [["red"]] * 2
    predictor.predict([image, image], classes=["red"], negatives=[["blue"], []])
    predictor.predict(image, classes=["red"])
    assert [x.get("negatives") for x in inputs] == [["blue", "green"]] * 2 + [["blue"], [], None]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"classes": ["red"], "negatives": "blue"}, "negatives must be a list.*'blue'"),
        ({"classes": ["red"], "negatives": [["blue"], []]}, "2 lists of negatives for 1 images"),
        ({"caption": "a red", "negatives": ["blue"]}, r"negatives=\['blue'\] require classes"),
        ({"classes": ["red"], "thresholds": {"red": 2}}, "threshold of 'red' is 2"),
    ],
)
def test_invalid_negatives_and_thresholds_raise_an_error(predictor, prompt, message):
    with pytest.raises(ValueError, match=message):
        predictor.predict([Image.fromarray(sample_image())], **prompt)


def test_class_scores_require_glipv2(predictor):
    with pytest.raises(
        ValueError, match="requires MODEL.META_ARCHITECTURE GLIPv2, not ColourFinder"
    ):
        predictor.class_scores([Image.fromarray(sample_image())], classes=["red"])


def large_image() -> np.ndarray:
    """(300, 500, 3) RGB, white, with one red square at the border of the tiles and one blue."""
    rgb = np.full((300, 500, 3), 255, dtype=np.uint8)
    rgb[100:120, 95:115] = RED
    rgb[250:260, 400:410] = BLUE
    return rgb


def test_tiles_are_merged_in_pixels_of_the_image():
    predictor = Predictor(make_config("RGB"), device="cpu")
    image = Image.fromarray(large_image())
    prediction = predictor.predict(image, classes=["red", "blue"], tiles=128, batch_size=2)
    boxes = dict(zip(prediction.labels, boxes_of(prediction), strict=True))
    # A pixel of a resized tile is 1.6 pixels of the image.
    assert boxes["red"] == pytest.approx([95, 100, 115, 120], abs=2)
    assert boxes["blue"] == pytest.approx([400, 250, 410, 260], abs=2)
    assert prediction.image_size == (300, 500)
    assert max(predictor.model.batch_sizes) == 2


def test_tiles_of_several_images_skip_unreadable_ones(tmp_path):
    predictor = Predictor(make_config("RGB"), device="cpu")
    images = [tmp_path / "missing.png", Image.fromarray(large_image())]
    first, second = predictor.predict(images, classes=["red"], tiles=128, on_error="skip")
    assert first is None and second.labels == ["red"]


def test_threshold_holds_for_all_classes(predictor):
    prediction = predictor.predict(
        Image.fromarray(sample_image()), classes=["red", "blue"], threshold=0.5
    )
    assert prediction.labels == ["blue"]


@pytest.mark.parametrize("options", [{"threshold": 1.5}, {"tiles": 3}])
def test_invalid_threshold_and_tiles_are_rejected(predictor, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        predictor.predict(Image.fromarray(sample_image()), classes=["red"], **options)
