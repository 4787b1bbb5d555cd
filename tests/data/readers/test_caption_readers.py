"""Captions with pseudo boxes, in JSON lines and tar shards."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glipv2_d2.data.readers.captions import read_captions, read_shards
from glipv2_d2.images import read_image

PAIR = {
    "caption": "a dog on a sofa",
    "boxes": [[1, 2, 20, 18], [0, 9, 30, 22]],
    "spans": [[[0, 5]], [[9, 15]]],
    "scores": [0.9, 0.4],
    "phrases": ["a dog", "a sofa"],
    "height": 24,
    "width": 32,
}


def write_lines(path: Path, *lines: Any) -> str:
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return str(path)


def test_boxes_above_the_threshold_are_kept(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"image": "0/1.jpg", **PAIR})
    [record] = read_captions(path, "images", "set")
    assert record["file_name"] == "images/0/1.jpg"
    assert (record["height"], record["width"]) == (24, 32)
    [annotation] = record["annotations"]
    assert annotation["bbox"] == [1, 2, 20, 18]
    assert annotation["tokens_positive"] == [[0, 5]]


@pytest.mark.parametrize(
    "bad",
    [
        '{"image": "2.jpg", "capt',  # truncated
        {"image": "2.jpg", **PAIR, "spans": [[[0, 5]]]},  # one span for two boxes
        {"image": "2.jpg", **PAIR, "scores": [0.1, 0.2]},  # no box above the threshold
        {**PAIR},  # no image
        {"image": "2.jpg", **PAIR, "boxes": [[10**400, 1, 2, 3]] * 2},
        {"image": "2.jpg", **PAIR, "spans": [[[float("inf"), 5]]] * 2},
        {"image": "2.jpg", **PAIR, "height": float("inf"), "width": 32},
        {"image": "2.jpg", **PAIR, "height": 10**30, "width": 32},
        {"image": "2.jpg", **{k: v for k, v in PAIR.items() if k != "width"}, "height": 24},
    ],
)
def test_unusable_line_is_logged_and_the_others_are_loaded(
    bad: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = {"image": "1.jpg", **PAIR}
    path = write_lines(tmp_path / "a.jsonl", good, bad, good)
    records = read_captions(path, "images", "set")
    assert [record["image_id"] for record in records] == [0, 1]
    assert "a.jsonl:2" in caplog.text or "2.jpg" in caplog.text


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((24, 32, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path: Path) -> str:
    text = json.dumps(PAIR).encode()
    write_shard(tmp_path / "s-00.tar", {"a.json": text, "a.png": png(10), "b.png": png(20)})
    write_shard(tmp_path / "s-01.tar", {"c.png": png(30), "c.json": text, "d.json": text})
    return f"{tmp_path}/s-{{00..01}}.tar"


def test_shards_give_the_samples_with_image_and_caption(
    shards: str, caplog: pytest.LogCaptureFixture
) -> None:
    records = read_shards(shards, "set")
    assert [record["caption"] for record in records] == [PAIR["caption"]] * 2
    assert "2 samples" in caplog.text


def test_images_are_read_from_the_shard(shards: str) -> None:
    values = [read_image(r["file_name"])[0, 0, 0] for r in read_shards(shards, "set")]
    assert values == [10, 30]


def test_truncated_shard_gives_its_complete_samples(
    shards: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = (tmp_path / "s-01.tar").read_bytes()
    (tmp_path / "s-01.tar").write_bytes(whole[: len(whole) // 4])
    assert len(read_shards(shards, "set")) >= 1
    assert "s-01.tar" in caplog.text


def test_missing_shard_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no-1\.tar"):
        read_shards(f"{tmp_path}/no-1.tar", "set")
