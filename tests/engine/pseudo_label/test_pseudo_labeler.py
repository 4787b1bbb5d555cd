"""Image-caption pairs become grounded records, or are left out with a reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes, Instances
from helpers.caption_data import use_plain_tagger, write_images
from helpers.models import tiny_bert_directory
from helpers.stand_in import MeanColour

from glipv2_d2.data.mapper import GroundingMapper
from glipv2_d2.data.readers.image_text import Pair
from glipv2_d2.engine.pseudo_label.pseudo_labeler import (
    BAD_CAPTION,
    BAD_IMAGE,
    NO_BOX,
    NO_PHRASE,
    NOT_PREDICTED,
    LeftOutPair,
    MappedPair,
    PseudoLabeler,
    grounded_record,
)
from glipv2_d2.engine.setup import load_config

PAIR = Pair("1.jpg", "a dog on a sofa")
MODEL_INPUT = {"height": 30, "width": 40, "phrases": [[(0, 5)], [(9, 15)]]}


def record_of(
    boxes: Sequence[Sequence[float]], scores: Sequence[float], phrases: Sequence[int]
) -> dict | LeftOutPair:
    instances = Instances(
        (30, 40),
        pred_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)),
        scores=torch.tensor(scores),
        pred_classes=torch.tensor(phrases, dtype=torch.int64),
    )
    return grounded_record(MappedPair(PAIR, MODEL_INPUT), instances, threshold=0.5)


def test_a_record_has_the_character_spans_of_every_box() -> None:
    boxes = [[1.0, 2.0, 20.0, 18.0], [0.0, 9.123, 30.0, 22.0]]
    assert record_of(boxes, [0.6, 0.9], [0, 1]) == {
        "image": "1.jpg",
        "caption": "a dog on a sofa",
        "boxes": [[0, 9.12, 30, 22], [1, 2, 20, 18]],
        "spans": [[[9, 15]], [[0, 5]]],
        "scores": [0.9, 0.6],
        "phrases": ["a sofa", "a dog"],
        "height": 30,
        "width": 40,
    }


def test_a_box_with_a_score_at_the_threshold_is_dropped() -> None:
    record = record_of([[1.0, 2.0, 20.0, 18.0]] * 2, [0.5, 0.5002], [0, 1])
    assert record["scores"] == [0.5002]


def test_boxes_are_clipped_to_the_image() -> None:
    record = record_of([[-3.0, 5.0, 40.6, 31.0]], [0.9], [0])
    assert record["boxes"] == [[0, 5, 40, 30]]


@pytest.mark.parametrize(
    ("boxes", "scores"),
    [
        ([], []),
        ([[1.0, 2.0, 20.0, 18.0]], [0.4]),
        ([[41.0, 5.0, 49.0, 20.0]], [0.9]),  # outside the image
        ([[1.0, 2.0, 20.0, 18.0]], [float("nan")]),
    ],
)
def test_a_pair_without_a_box_is_left_out(
    boxes: Sequence[Sequence[float]], scores: Sequence[float]
) -> None:
    assert record_of(boxes, scores, [0] * len(boxes)) == LeftOutPair(*PAIR, NO_BOX)


# With a model


@pytest.fixture
def build_labeler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., PseudoLabeler]:
    use_plain_tagger(monkeypatch)
    images = write_images(tmp_path / "set", 3)
    (images / "broken.png").write_bytes((images / "0.png").read_bytes()[:100])

    def build(*opts: object) -> PseudoLabeler:
        cfg = load_config(opts=["INPUT.MIN_SIZE_TEST", 32, *opts])
        mapper = GroundingMapper(cfg, is_train=False, class_names={})
        return PseudoLabeler(
            model=MeanColour(cfg),
            mapper=mapper,
            image_root=str(images),
            threshold=0.5,
            batch_size=2,
            num_workers=0,
        )

    return build


def test_results_are_in_the_order_of_the_pairs(build_labeler: Callable[..., PseudoLabeler]) -> None:
    results = build_labeler().label(
        [
            Pair("0.png", "a cat"),
            Pair("broken.png", "a cat"),
            Pair("none.png", "a cat"),
            Pair("1.png", "runs on"),
            Pair("1.png", "  "),
            Pair("1.png", "a cat \ud800"),
            Pair("2.png", "runs on a mat"),
        ]
    )
    kinds = [x.reason if isinstance(x, LeftOutPair) else x["phrases"] for x in results]
    assert kinds == [
        ["a cat"],
        BAD_IMAGE,
        BAD_IMAGE,
        NO_PHRASE,
        NO_PHRASE,
        BAD_CAPTION,
        ["a mat"],
    ]


def test_a_pair_that_the_model_cannot_predict_is_left_out(
    build_labeler: Callable[..., PseudoLabeler],
) -> None:
    def fail_for_image_1(_: object, args: tuple[list[dict]]) -> None:
        if any(x["file_name"].endswith("1.png") and x["height"] == 48 for x in args[0]):
            raise RuntimeError("out of memory")

    labeler = build_labeler()
    labeler.model.register_forward_pre_hook(fail_for_image_1)
    first, left_out, third = labeler.label([Pair(f"{i}.png", "a cat") for i in range(3)])
    assert (first["image"], third["image"]) == ("0.png", "2.png")
    assert left_out == LeftOutPair("1.png", "a cat", NOT_PREDICTED, "RuntimeError: out of memory")


def test_an_error_of_the_model_for_every_image_is_raised(
    build_labeler: Callable[..., PseudoLabeler],
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no weights")

    labeler = build_labeler()
    labeler.model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no weights"):
        list(labeler.label([Pair("0.png", "a cat"), Pair("1.png", "a cat")]))


def test_a_caption_without_a_known_word_is_left_out(
    build_labeler: Callable[..., PseudoLabeler],
) -> None:
    labeler = build_labeler()
    inputs: list[dict] = []
    labeler.model.register_forward_pre_hook(lambda _, args: inputs.extend(args[0]))
    left_out, _ = labeler.label([Pair("0.png", "猫"), Pair("0.png", "猫 on a cat")])
    assert left_out.reason == NO_PHRASE
    assert [x["prompt"].phrases for x in inputs] == [["a cat"]]


def test_boxes_and_sizes_refer_to_the_original_image(
    build_labeler: Callable[..., PseudoLabeler],
) -> None:
    [record] = build_labeler().label([Pair("2.png", "a cat")])
    assert (record["height"], record["width"], record["boxes"]) == (48, 50, [[4, 6, 24, 22]])


def test_phrases_beyond_the_token_limit_are_not_detected(
    build_labeler: Callable[..., PseudoLabeler],
) -> None:
    labeler = build_labeler(
        *("MODEL.PROMPT.MAX_TOKENS", 6),
        *("MODEL.LANGUAGE_BACKBONE.MODEL", tiny_bert_directory()),
    )
    inputs = []
    labeler.model.register_forward_pre_hook(lambda _, args: inputs.extend(args[0]))
    [record, left_out] = labeler.label(
        [Pair("0.png", "a cat on a mat"), Pair("0.png", "on on on on on a mat")]
    )
    assert [x["prompt"].phrases for x in inputs] == [["a cat"]]
    assert record["caption"] == "a cat on a mat"
    assert left_out.reason == NO_PHRASE
