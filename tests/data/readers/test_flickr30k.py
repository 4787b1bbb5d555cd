"""Flickr30k Entities' original sentences and boxes."""

from __future__ import annotations

from pathlib import Path

import pytest

from glipv2_d2.data.readers.flickr30k import read_entities
from glipv2_d2.data.readers.grounding import flickr30k_images

XML = """<annotation><filename>1000.jpg</filename>
<size><width>30</width><height>40</height><depth>3</depth></size>
<object><name>7</name><name>8</name>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>10</xmax><ymax>20</ymax></bndbox></object>
<object><name>9</name><scene>1</scene><nobndbox>1</nobndbox></object>
</annotation>"""
SENTENCES = """[/EN#7/people Two guys] with [/EN#9/scene a street] .
[/EN#0/notvisual It] shows [/EN#8/people/other men] .
"""


@pytest.fixture
def split_file(tmp_path: Path) -> str:
    (tmp_path / "Sentences").mkdir()
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Sentences" / "1000.txt").write_text(SENTENCES)
    (tmp_path / "Annotations" / "1000.xml").write_text(XML)
    (tmp_path / "val.txt").write_text("1000\n2000\n")
    return str(tmp_path / "val.txt")


def test_each_sentence_is_a_record_of_its_phrases_with_boxes(split_file: str) -> None:
    records = read_entities(split_file, "images", "set")
    assert [r["caption"] for r in records] == ["Two guys with a street .", "It shows men ."]
    assert [r["phrases"] for r in records] == [[[(0, 8)]], [[(9, 12)]]]
    assert {r["file_name"] for r in records} == {"images/1000.jpg"}
    assert len({r["image_id"] for r in records}) == 2


def test_phrase_types_come_from_the_markup(split_file: str) -> None:
    records = read_entities(split_file, "images", "set")
    assert [r["phrase_types"] for r in records] == [[("people",)], [("people", "other")]]


def test_boxes_are_those_of_the_file(split_file: str) -> None:
    record = read_entities(split_file, "images", "set")[0]
    assert (record["height"], record["width"]) == (40, 30)
    assert [a["bbox"] for a in record["annotations"]] == [[1, 2, 10, 20]]


def test_image_without_files_is_logged(split_file: str, caplog: pytest.LogCaptureFixture) -> None:
    read_entities(split_file, "images", "set")
    assert "2000" in caplog.text


def test_flickr30k_has_one_folder_of_images_or_one_per_split(tmp_path: Path) -> None:
    folder = tmp_path / "flickr30k" / "flickr30k_images"
    folder.mkdir(parents=True)
    assert flickr30k_images(str(tmp_path), "val") == str(folder)
    (folder / "val").mkdir()
    assert flickr30k_images(str(tmp_path), "val") == str(folder / "val")
