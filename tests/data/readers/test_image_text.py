"""Image-caption pairs in COCO's format, JSON lines and tar shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.caption_data import write_lines, write_tar
from PIL import Image

from glipv2_d2.data.readers.image_text import Pair, read_pairs
from glipv2_d2.images import read_image

WriteJson = Callable[[str, Any], str]


def test_every_coco_caption_is_a_pair(write_json: WriteJson) -> None:
    source = write_json(
        "captions.json",
        {
            "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 8, "file_name": "8.jpg"}],
            "annotations": [
                {"image_id": 8, "caption": "a dog"},
                {"image_id": 7, "caption": "a cat"},
                {"image_id": 8, "caption": "a hound"},
            ],
        },
    )
    expected = [Pair("8.jpg", "a dog"), Pair("7.jpg", "a cat"), Pair("8.jpg", "a hound")]
    assert read_pairs(source) == expected


def test_coco_caption_of_an_unknown_image_is_logged(
    write_json: WriteJson, caplog: pytest.LogCaptureFixture
) -> None:
    captions = [{"image_id": 1, "caption": "a dog"}, {"image_id": 2, "caption": "a cat"}]
    images = [{"id": 1, "file_name": "1.jpg"}]
    pairs = read_pairs(write_json("c.json", {"images": images, "annotations": captions}))
    assert pairs == [Pair("1.jpg", "a dog")]
    assert "annotation None of image 2 in" in caplog.text


@pytest.mark.parametrize("bad", ['{"image": "2.jpg", "capt', '{"image": 2, "caption": "a cat"}'])
def test_invalid_line_is_logged_and_the_others_are_loaded(
    bad: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_lines(tmp_path / "a.jsonl", [("1.jpg", "a dog")])
    Path(source).write_text(f"{bad}\n\n{Path(source).read_text()}")
    assert read_pairs(source) == [Pair("1.jpg", "a dog")]
    assert "a.jsonl:1" in caplog.text


def test_shards_have_text_or_json_captions_and_readable_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, png: bytes
) -> None:
    write_tar(tmp_path / "s-0.tar", {"a.png": png, "a.txt": b"a dog\n", "b.txt": b"no image"})
    text = json.dumps({"caption": "a cat"}).encode()
    write_tar(tmp_path / "s-1.tar", {"c.json": text, "c.png": png, "d.png": png})
    pairs = read_pairs(f"{tmp_path}/s-{{0..1}}.tar")
    assert [pair.caption for pair in pairs] == ["a dog", "a cat"]
    assert [read_image(pair.image).shape for pair in pairs] == [(5, 6, 3)] * 2
    assert "2 samples" in caplog.text


def test_truncated_shard_gives_its_complete_samples(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, png: bytes
) -> None:
    source = write_tar(tmp_path / "s.tar", {"a.txt": b"a dog", "a.png": png, "b.txt": b"x" * 2000})
    whole = Path(source).read_bytes()
    Path(source).write_bytes(whole[: whole.index(b"b.txt") + 700])
    assert [pair.caption for pair in read_pairs(source)] == ["a dog"]
    assert "s.tar" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "1.jpg,a dog", "unknown suffix '.csv'"),
        ("a.json", '[{"image": "1.jpg"}]', "not in COCO's format"),
        ("a.json", "{", "not a valid JSON file"),
        ("a.jsonl", "", "has no image-caption pair"),
    ],
)
def test_unusable_source_raises(name: str, content: str, message: str, tmp_path: Path) -> None:
    source = tmp_path / name
    source.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_pairs(str(source))
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["no.json", "no.jsonl", "no.tar"])
def test_missing_file_raises(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=name):
        read_pairs(str(tmp_path / name))


@pytest.fixture
def png(tmp_path: Path) -> bytes:
    """6 pixels wide, 5 high."""
    path = tmp_path / "image.png"
    Image.new("RGB", (6, 5)).save(path)
    return path.read_bytes()
