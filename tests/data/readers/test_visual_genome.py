"""Visual Genome's objects and regions, and PhraseCut on its images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import MetadataCatalog

from glipv2_d2.data.readers import visual_genome
from glipv2_d2.data.readers.phrasecut import read_phrasecut
from glipv2_d2.data.readers.visual_genome import group_regions, read_objects, read_regions

Write = Callable[[str, Any], str]


@pytest.fixture
def image_data(write_json: Write) -> str:
    url = "https://cs.stanford.edu/people/rak248/VG_100K_2/{}.jpg"
    images = [
        {"image_id": i, "url": url.format(i), "width": 30, "height": 40, "coco_id": coco_id}
        for i, coco_id in ((1, None), (2, 77))
    ]
    return write_json("vg/image_data.json", images)


def thing(name: str) -> dict[str, Any]:
    return {"object_id": 1, "x": 1, "y": 2, "w": 3, "h": 4, "names": [name], "synsets": []}


def region(phrase: str, x: int) -> dict[str, Any]:
    box = {"x": x, "y": 0, "width": 10, "height": 10}
    return {"region_id": x, "image_id": 1, "phrase": phrase, **box}


@pytest.mark.parametrize(("with_coco", "count"), [(True, 2), (False, 1)])
def test_class_names_are_the_frequent_object_names(
    with_coco: bool,
    count: int,
    image_data: str,
    write_json: Write,
    dataset_name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(visual_genome, "MIN_OCCURRENCES", 2)
    objects = [
        {"image_id": 1, "objects": [thing("Man"), thing("man "), thing("odd thing")]},
        {"image_id": 2, "objects": [thing("tree"), thing("man"), thing("tree")]},
    ]
    records = read_objects(
        write_json("vg/objects.json", objects), image_data, dataset_name, with_coco=with_coco
    )
    assert MetadataCatalog.get(dataset_name).thing_classes == ["man", "tree"]
    assert len(records) == count
    assert records[0]["file_name"].endswith("vg/VG_100K_2/1.jpg")
    assert [a["category_id"] for a in records[0]["annotations"]] == [0, 0]


def test_phrases_of_different_regions_share_a_caption(image_data: str, write_json: Write) -> None:
    regions = [region("a red hat", 0), region("the hat", 1), region(" a dog.", 50)]
    path = write_json("vg/regions.json", [{"id": 1, "regions": regions}])
    first, second = read_regions(path, image_data, "set", with_coco=True)
    assert first["caption"] == "a red hat. a dog."
    assert second["caption"] == "the hat."
    spans = [a["tokens_positive"] for a in first["annotations"]]
    assert [first["caption"][b:e] for [[b, e]] in spans] == ["a red hat", "a dog"]
    assert first["annotations"][1]["bbox"] == [50, 0, 60, 10]


def test_region_captions_are_short_and_complete() -> None:
    regions = [region(f"thing number {i} " + "long " * 20, 20 * i) for i in range(6)]
    groups = list(group_regions(regions))
    assert sorted(r["region_id"] for g in groups for r in g) == [0, 20, 40, 60, 80, 100]
    assert all(sum(len(r["phrase"]) for r in g) <= 250 for g in groups)


def test_phrasecut_has_a_box_and_polygons_per_instance(image_data: str, write_json: Write) -> None:
    task = {
        "task_id": "1__0",
        "image_id": 1,
        "ann_ids": [5],
        "phrase": "black cat ",
        "phrase_structure": {},
        "instance_boxes": [[1, 2, 3, 4]],
        "Polygons": [[[[1, 1], [9, 1], [9, 9]], [[1, 1], [2, 2]]]],
    }
    unknown = {**task, "image_id": 99}
    path = write_json("phrasecut/refer_val.json", [task, unknown])
    [record] = read_phrasecut(path, image_data, "set")
    assert (record["caption"], record["phrases"]) == ("black cat", [[(0, 9)]])
    [annotation] = record["annotations"]
    assert annotation["bbox"] == [1, 2, 3, 4]
    assert annotation["segmentation"] == [[1, 1, 9, 1, 9, 9]]


def test_spellings_and_aliases_of_an_object_are_one_class(
    image_data: str, write_json: Write, dataset_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visual_genome, "MIN_OCCURRENCES", 2)
    names = ["wine glass", "wine glass", "wineglass", "motorbike", "motorcycle", "odd thing"]
    path = write_json("vg/objects.json", [{"image_id": 1, "objects": [thing(n) for n in names]}])
    (Path(path).parent / "object_alias.txt").write_text("motorcycle,motorbike,motor bike\nman\n")
    record, _ = read_objects(path, image_data, dataset_name, with_coco=True)
    assert MetadataCatalog.get(dataset_name).thing_classes == ["wine glass", "motorbike"]
    assert [a["category_id"] for a in record["annotations"]] == [0, 0, 0, 1, 1]


def test_the_vocabulary_of_vinvl_replaces_the_frequent_names(
    image_data: str, write_json: Write, dataset_name: str
) -> None:
    names = ["wineglass", "motor bike", "glasses", "odd thing"]
    path = write_json("vg/objects.json", [{"image_id": 1, "objects": [thing(n) for n in names]}])
    numbers = {"motorcycle": 2, "wine glass": 1, "glasses": 3}
    write_json("vg/VG-SGG-dicts-vgoi6-clipped.json", {"label_to_idx": numbers})
    (Path(path).parent / "object_alias.txt").write_text("motorcycle,motor bike\nglass,glasses\n")
    record, _ = read_objects(path, image_data, dataset_name, with_coco=True)
    assert MetadataCatalog.get(dataset_name).thing_classes == [
        "wine glass",
        "motorcycle",
        "glasses",
    ]
    assert [a["category_id"] for a in record["annotations"]] == [0, 1, 2]
