"""Faults of training records are repaired, counted and logged once."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from detectron2.structures import BoxMode

from glipv2_d2.data.sanitize import fit_caption, sanitize_dataset
from glipv2_d2.text import Tokenizer


def box(*xywh: float, category_id: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "bbox": list(xywh),
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": category_id,
        **more,
    }


def record(*annotations: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "file_name": "a.png",
        "height": 50,
        "width": 100,
        "annotations": list(annotations),
        **more,
    }


def sanitize(tokenizer: Tokenizer, *records: dict[str, Any]) -> list[dict[str, Any]]:
    return sanitize_dataset(
        list(records), name="set", class_names=["cat", "dog"], tokenizer=tokenizer
    )


def boxes_of(record: dict[str, Any]) -> list[list[float]]:
    return [annotation["bbox"] for annotation in record["annotations"]]


def test_boxes_are_clipped_to_the_image(tokenizer: Tokenizer) -> None:
    [sanitized] = sanitize(tokenizer, record(box(-5, 40, 20, 30)))
    assert boxes_of(sanitized) == [[0, 40, 15, 50]]


@pytest.mark.parametrize(
    "bad",
    [
        (10, 10, 0, 5),  # no width
        (10, 10, 5, -3),  # negative height
        (200, 10, 5, 5),  # beside the image
        (float("nan"), 10, 5, 5),
    ],
)
def test_boxes_without_area_are_dropped(bad: tuple[float, ...], tokenizer: Tokenizer) -> None:
    [sanitized] = sanitize(tokenizer, record(box(*bad), box(1, 2, 3, 4)))
    assert boxes_of(sanitized) == [[1, 2, 4, 6]]


def test_image_without_boxes_is_kept(tokenizer: Tokenizer) -> None:
    [sanitized] = sanitize(tokenizer, record(box(10, 10, 0, 0)))
    assert sanitized["annotations"] == []


def test_kinds_of_faults_are_counted_in_one_warning(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        sanitize(tokenizer, record(box(-5, 0, 9, 9), box(5, 5, 0, 9)), record(box(-1, 0, 9, 9)))
    [message] = [r.getMessage() for r in caplog.records if r.name.startswith("glipv2_d2")]
    assert "2 boxes extended beyond" in message
    assert "1 boxes had no area" in message


def test_valid_records_give_no_warning(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    # Beyond the image by a rounding error.
    sanitize(tokenizer, record(box(0, 0, 100.001, 50)))
    assert not [r for r in caplog.records if r.name.startswith("glipv2_d2")]


def test_input_records_are_not_modified(tokenizer: Tokenizer) -> None:
    original = record(box(-5, 0, 9, 9))
    sanitize(tokenizer, original)
    assert original == record(box(-5, 0, 9, 9))


@pytest.mark.parametrize("category_id", [2, -1])
def test_class_index_out_of_range_raises(category_id: int, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=f"a.png.*class {category_id}.*2 class names"):
        sanitize(tokenizer, record(box(1, 1, 5, 5, category_id=category_id)))


def test_class_names_of_the_image_are_used(tokenizer: Tokenizer) -> None:
    own = record(box(1, 1, 5, 5, category_id=2), classes=["a", "b", "c"])
    assert len(sanitize(tokenizer, own)[0]["annotations"]) == 1


def test_missing_annotations_raise(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"a\.png.*annotations"):
        sanitize(tokenizer, {"file_name": "a.png", "height": 5, "width": 5})


def test_phrases_beyond_the_token_limit_are_dropped_with_their_boxes(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    caption = "a cat " + "and so on " * 200 + "and a dog"
    begin = len(caption) - 5
    [sanitized] = sanitize(
        tokenizer,
        record(
            box(1, 1, 5, 5, tokens_positive=[[0, 5]]),
            box(2, 2, 5, 5, tokens_positive=[[begin, begin + 5]]),
            box(3, 3, 5, 5, tokens_positive=[]),
            caption=caption,
        ),
    )
    assert boxes_of(sanitized) == [[1, 1, 6, 6]]
    message = caplog.text
    assert "1 phrases were beyond" in message
    assert "1 boxes of phrases beyond" in message
    assert "1 boxes had no phrase" in message


def test_phrase_index_out_of_range_raises(tokenizer: Tokenizer) -> None:
    odd = record(box(1, 1, 5, 5, category_id=1), caption="a cat", phrases=[[(2, 5)]])
    with pytest.raises(ValueError, match=r"a\.png.*phrase 1.*1 phrases"):
        sanitize(tokenizer, odd)


def test_warning_names_the_first_images(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [record(box(-5, 0, 9, 9)) | {"file_name": f"{i}.png"} for i in range(9)]
    sanitize(tokenizer, *bad)
    assert "0.png, 1.png" in caplog.text
    assert "8.png" not in caplog.text


@pytest.mark.parametrize("span", [[-1, 3], [2, 99], [3, 3]])
def test_box_with_a_span_outside_its_caption_is_dropped(
    span: list[int], tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    odd = record(
        box(1, 1, 5, 5, tokens_positive=[[0, 5]]),
        box(2, 2, 5, 5, tokens_positive=[span]),
        caption="a cat",
    )
    [sanitized] = sanitize(tokenizer, odd)
    assert boxes_of(sanitized) == [[1, 1, 6, 6]]
    assert "1 boxes had a span outside" in caplog.text


def test_empty_caption_is_dropped_with_its_image(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    assert sanitize(tokenizer, record(caption=" ")) == []
    assert "1 captions were empty" in caplog.text
    assert "a.png" in caplog.text


def test_question_beyond_the_token_limit_is_dropped_and_logged(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    # The answer needs a token, too.
    room = tokenizer.max_tokens - tokenizer.num_special_tokens - 1
    fits = {
        "file_name": "q.png",
        "answers": {"yes": 1.0},
        "question_id": 1,
        "question": "why " * room,
    }
    assert sanitize(
        tokenizer, fits, {**fits, "question_id": 2, "question": "why " * (room + 1)}
    ) == [fits]
    assert "1 questions were longer" in caplog.text
    assert "question 2 of image 'q.png'" in caplog.text


def test_names_without_a_known_word_are_reported_once_and_their_boxes_dropped(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    records = [record(box(1, 2, 3, 4, category_id=i % 3)) for i in range(6)]
    with caplog.at_level(logging.WARNING):
        sanitized = sanitize_dataset(
            records, name="set", class_names=["cat", "猫", "杯"], tokenizer=tokenizer
        )
    assert [len(x["annotations"]) for x in sanitized] == [1, 0, 0, 1, 0, 0]
    [message] = [r.getMessage() for r in caplog.records if r.name.startswith("glipv2_d2")]
    assert "2 class names had no word" in message and "'猫', '杯'" in message
    assert "4 boxes of names without a word" in message


def test_names_of_an_image_without_a_known_word_are_reported(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    own = record(box(1, 2, 3, 4), box(1, 2, 3, 4, category_id=1), classes=["猫", "cat"])
    [sanitized] = sanitize(tokenizer, own)
    assert [a["category_id"] for a in sanitized["annotations"]] == [1]
    assert "1 class names had no word" in caplog.text


@pytest.mark.parametrize("names", [["猫"], ["猫", "杯"], [""], [5]])
def test_class_names_without_any_known_word_are_refused(
    names: list[Any], tokenizer: Tokenizer
) -> None:
    with pytest.raises(ValueError, match="image 'a.png': .*(none of the class|class name )"):
        sanitize(tokenizer, record(classes=names))


def test_phrases_without_a_known_word_are_dropped_with_their_boxes(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    boxes = [box(1, 2, 3, 4, tokens_positive=[span]) for span in ([0, 1], [2, 5])]
    [sanitized] = sanitize(tokenizer, record(*boxes, caption="猫 cat"))
    assert [a["category_id"] for a in sanitized["annotations"]] == [1]
    assert fit_caption("猫 cat", sanitized["phrases"], tokenizer).phrases == ["cat"]
    assert "1 phrases had no word in" in caplog.text
    assert "1 boxes of names without a word" in caplog.text
