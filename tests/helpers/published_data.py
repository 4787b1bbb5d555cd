"""Small datasets in the layout, formats and field types of the published files.

:func:`write_all` writes what the recipes of configs/ train and test on: a few generated images for
each dataset, laid out as in datasets/README.md. Class names are those of the real files where
Detectron2 or this project knows them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from helpers.published_entries import (
    IMAGENET_XML,
    OPENIMAGES_COLUMNS,
    mdetr_flickr,
    phrasecut_task,
    visual_genome_image,
    vqa_annotation,
)
from PIL import Image

from glipv2_d2.data.readers.odinw import few_shot_file, odinw_datasets
from glipv2_d2.data.readers.visual_genome import MIN_OCCURRENCES
from glipv2_d2.data.readers.vqa import VQAV2_SPLITS

WIDTH, HEIGHT = 96, 72
NUM_IMAGES = 2
BOXES = ([8.5, 10.25, 40.0, 30.5], [50.0, 20.0, 30.0, 44.0])
"""XYWH, of every image."""

ANSWERS = ("yes", "no", "2", "dog", *(f"answer {i}" for i in range(3125)))
"""As many as the vocabulary of VQAv2 has."""


def write_all(root: Path) -> None:
    """Write every dataset of the recipes below ``root``, in place of DETECTRON2_DATASETS."""
    write_coco_2017(root)
    write_lvis(root)
    write_objects365(root)
    write_openimages(root)
    write_imagenet_boxes(root)
    write_visual_genome(root)
    write_goldg(root)
    write_captions_with_boxes(root)
    write_vqa(root)
    write_karpathy(root)
    write_pothole(root)
    write_gqa(root)
    write_grounded_text(root)


def write_coco_2017(root: Path) -> None:
    """Instances with polygons, and a crowd with an uncompressed RLE as in COCO's files."""
    categories = [
        {"supercategory": "thing", "id": x["id"], "name": x["name"]}
        for x in COCO_CATEGORIES
        if x["isthing"]
    ]
    for split in ("train2017", "val2017"):
        images = [_coco_image(i, f"{i:012d}.jpg", split) for i in _coco_ids()]
        annotations = _annotations(images, category_ids=(1, 18))
        crowd = {"size": [HEIGHT, WIDTH], "counts": [0, 30, HEIGHT * WIDTH - 30]}
        annotations[1] |= {"iscrowd": 1, "segmentation": crowd}
        _write_images(root / "coco" / split, (x["file_name"] for x in images))
        _write_json(
            root / "coco" / "annotations" / f"instances_{split}.json",
            {
                "info": {"description": "COCO 2017 Dataset", "year": 2017},
                "licenses": [{"url": "", "id": 1, "name": ""}],
                "images": images,
                "annotations": annotations,
                "categories": categories,
            },
        )


def write_lvis(root: Path) -> None:
    """All 1203 categories; images in COCO's folders, and no ``file_name``."""
    # "instance_count" of Detectron2's list is not needed to be the file's.
    categories = [{**category} for category in LVIS_CATEGORIES]
    for split, folder in (("train", "train2017"), ("val", "val2017"), ("minival", "val2017")):
        images = []
        for i in _coco_ids():
            image = _coco_image(i, f"{i:012d}.jpg", folder)
            del image["file_name"]
            images.append({**image, "neg_category_ids": [5, 7], "not_exhaustive_category_ids": [3]})
        _write_images(root / "coco" / folder, (f"{i:012d}.jpg" for i in _coco_ids()))
        annotations = _annotations(images, category_ids=(1, 3))
        for annotation in annotations:
            del annotation["iscrowd"]
        _write_json(
            root / "lvis" / f"lvis_v1_{split}.json",
            {
                "info": {"version": "1.0"},
                "images": images,
                "annotations": annotations,
                "categories": categories,
                "licenses": [],
            },
        )


def write_objects365(root: Path) -> None:
    """365 categories of generated names; boxes of version 1, without masks."""
    names = [
        f"{colour} thing {i}" for i in range(73) for colour in ("red", "blue", "old", "wet", "big")
    ]
    images = [
        {"id": i, "file_name": f"obj365_train_{i:012d}.jpg", "width": WIDTH, "height": HEIGHT}
        for i in (6, 7)
    ]
    annotations = _annotations(images, category_ids=(4, 365))
    for annotation in annotations:
        del annotation["segmentation"]
        annotation |= {"isfake": 0, "isreflected": 0}
    _write_images(root / "objects365_v1" / "train", (x["file_name"] for x in images))
    _write_json(
        root / "objects365_v1" / "annotations" / "objects365_train.json",
        {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for i, name in enumerate(names, start=1)],
            "licenses": [{"name": "cc", "id": 1, "url": ""}],
        },
    )


def write_openimages(root: Path) -> None:
    """Boxes of version 6, names of version 7, verified labels and the hierarchy."""
    folder = root / "openimages"
    ids = [f"{i:016x}" for i in (11, 12)]
    _write_images(folder / "train", (f"{i}.jpg" for i in ids))
    clicks = ",".join(["-1"] * 8)
    boxes = [f"{i},xclick,/m/01g317,1,0.1,0.5,0.25,0.75,0,1,0,0,0,{clicks}" for i in ids]
    boxes.append(f"{ids[0]},xclick,/m/0bt9lr,1,0.5,0.9,0.1,0.6,0,0,0,0,0,{clicks}")
    _write_lines(folder / "oidv6-train-annotations-bbox.csv", [OPENIMAGES_COLUMNS, *boxes])
    names = ["LabelName,DisplayName", "/m/011k07,Tortoise", "/m/01g317,Person", "/m/0bt9lr,Dog"]
    names += ["/m/0jbk,Animal", "/m/0k4j,Car", "/m/07j7r,Tree"]
    _write_lines(folder / "oidv7-class-descriptions-boxable.csv", names)
    labels = [f"{i},verification,{name},0" for i in ids for name in ("/m/0k4j", "/m/07j7r")]
    _write_lines(
        folder / "oidv7-train-annotations-human-imagelabels-boxable.csv",
        ["ImageID,Source,LabelName,Confidence", *labels],
    )
    animals = [{"LabelName": "/m/0bt9lr"}, {"LabelName": "/m/011k07"}]
    others = [{"LabelName": name} for name in ("/m/01g317", "/m/0k4j", "/m/07j7r")]
    _write_json(
        folder / "bbox_labels_600_hierarchy.json",
        {
            "LabelName": "/m/0bl9f",
            "Subcategory": [{"LabelName": "/m/0jbk", "Subcategory": animals}, *others],
        },
    )


def write_imagenet_boxes(root: Path) -> None:
    folder = root / "imagenet" / "ILSVRC"
    for synset in ("n01440764", "n02012849"):
        image = folder / "Data" / "CLS-LOC" / "train" / synset / f"{synset}_10026.JPEG"
        _write_images(image.parent, [image.name], (500, 375))
        annotations = folder / "Annotations" / "CLS-LOC" / "train" / synset
        _write_lines(
            annotations / f"{synset}_10026.xml", [IMAGENET_XML.format(synset=synset, xmin=11)]
        )


def write_visual_genome(root: Path) -> None:
    """Objects, with as many occurrences of two names as the vocabulary needs, and PhraseCut."""
    folder = root / "visual_genome"
    ids = (1, 2)
    _write_images(folder / "VG_100K", (f"{i}.jpg" for i in ids))
    _write_json(folder / "image_data.json", [visual_genome_image(i, WIDTH, HEIGHT) for i in ids])
    thing = {"synsets": [], "merged_object_ids": []}
    _write_json(
        folder / "objects.json",
        [
            {
                "image_id": i,
                "image_url": f"https://cs.stanford.edu/people/rak248/VG_100K/{i}.jpg",
                "objects": [
                    {**thing, "object_id": 100 * i + k, "names": [("man", "tree")[k % 2]]}
                    | {"x": k % 50, "y": k % 30, "w": 30, "h": 25}
                    for k in range(MIN_OCCURRENCES)
                ],
            }
            for i in ids
        ],
    )
    for split in ("train", "miniv"):
        polygons = [[[[x, y], [x + w, y], [x + w, y + h]]] for x, y, w, h in BOXES]
        tasks = [phrasecut_task(i, "two triangles", BOXES, polygons) for i in ids]
        _write_json(root / "phrasecut" / f"refer_{split}.json", tasks)


def write_goldg(root: Path) -> None:
    """MDETR's files of Flickr30k Entities and of the mixed dataset."""
    for split in ("train", "val", "test"):
        content = mdetr_flickr()
        [image] = content["images"]
        content["images"] = [{**image, "id": i, "sentence_id": i} for i in range(NUM_IMAGES)]
        content["annotations"] = [
            {**annotation, "id": 3 * i + annotation["id"], "image_id": i}
            for i in range(NUM_IMAGES)
            for annotation in content["annotations"]
        ]
        images = root / "flickr30k" / "flickr30k_images" / split
        _write_images(images, [image["file_name"]], (333, 500))
        _write_json(root / "mdetr_annotations" / f"final_flickr_separateGT_{split}.json", content)
    caption = "a man in a red hat. the dog is brown"
    image = {"width": WIDTH, "height": HEIGHT, "caption": caption, "dataset_name": "mixed"}
    image |= {"tokens_negative": [[0, len(caption)]]}
    images = [
        {**image, "file_name": f"{2315 + i}.jpg", "id": i, "original_id": i, "data_source": "vg"}
        for i in range(NUM_IMAGES)
    ]
    annotations = _annotations(images, category_ids=(1,))
    for annotation, spans in zip(annotations, 2 * [[[0, 5]], [[20, 27]]], strict=True):
        del annotation["segmentation"]
        annotation["tokens_positive"] = spans
    _write_images(root / "gqa" / "images", (x["file_name"] for x in images))
    # Checked by the readers, though this file has none of its images.
    (root / "coco" / "train2014").mkdir(parents=True, exist_ok=True)
    categories = [{"supercategory": "object", "id": 1, "name": "object"}]
    _write_json(
        root / "mdetr_annotations" / "final_mixed_train_no_coco.json",
        {"info": [], "licenses": [], "images": images, "annotations": annotations}
        | {"categories": categories},
    )


def write_captions_with_boxes(root: Path) -> None:
    """The lines that ``glipv2 label`` writes."""
    folder = root / "captions"
    names = [f"{i}.jpg" for i in range(NUM_IMAGES)]
    _write_images(folder / "images", names)
    pair = {
        "caption": "a dog on a sofa",
        "boxes": [[x, y, x + w, y + h] for x, y, w, h in BOXES],
        "spans": [[[0, 5]], [[9, 15]]],
        "scores": [0.9, 0.75],
        "phrases": ["a dog", "a sofa"],
        "height": HEIGHT,
        "width": WIDTH,
    }
    _write_lines(folder / "train.jsonl", [json.dumps({"image": name, **pair}) for name in names])


def write_vqa(root: Path) -> None:
    """Questions with ten answers each, test questions without, and the answer vocabulary."""
    for images, questions, answers in VQAV2_SPLITS.values():
        ids = _coco_ids()
        _write_images(root / "coco" / images, (f"COCO_{images}_{i:012d}.jpg" for i in ids))
        entries = [
            {"image_id": i, "question": text, "question_id": 1000 * i + k}
            for i in ids
            for k, text in enumerate(("What is this?", "Is it red?"))
        ]
        common = {"info": {"version": "2.0"}, "license": {}, "data_type": "mscoco"}
        common |= {"data_subtype": questions}
        _write_json(
            root / "vqa" / f"v2_OpenEnded_mscoco_{questions}_questions.json",
            {**common, "task_type": "Open-Ended", "questions": entries},
        )
        if answers is not None:
            answered = [
                vqa_annotation(
                    q["question_id"],
                    ["no"] * 10 if q["question_id"] % 1000 else ["dog"] * 7 + ["2"] * 3,
                    "yes/no" if q["question_id"] % 1000 else "other",
                    q["image_id"],
                )
                for q in entries
            ]
            _write_json(
                root / "vqa" / f"v2_mscoco_{answers}_annotations.json",
                {**common, "annotations": answered},
            )
    _write_lines(root / "vqa" / "answers.txt", ANSWERS)


def write_karpathy(root: Path) -> None:
    """dataset_coco.json, with an image of "restval" among those of training."""
    images = []
    for number, split in enumerate(("train", "restval", "val", "val", "test", "test")):
        folder = "train2014" if split == "train" else "val2014"
        coco_id = 391895 + number
        file_name = f"COCO_{folder}_{coco_id:012d}.jpg"
        _write_images(root / "coco" / folder, [file_name])
        texts = ("A dog runs on the grass.", "The dog is brown.")
        images.append(
            {
                "filepath": folder,
                "filename": file_name,
                "cocoid": coco_id,
                "imgid": number,
                "split": split,
                "sentids": [2 * number, 2 * number + 1],
                "sentences": [
                    {
                        "raw": text,
                        "tokens": text.lower().strip(".").split(),
                        "imgid": number,
                        "sentid": 2 * number + i,
                    }
                    for i, text in enumerate(texts)
                ],
            }
        )
    path = root / "coco" / "annotations" / "dataset_coco.json"
    _write_json(path, {"dataset": "coco", "images": images})


def write_pothole(root: Path) -> None:
    """The set of ODinW that is the example of its configs: a few-shot split and the validation."""
    splits = odinw_datasets()["pothole"]["splits"]
    few_shot = Path(splits["train"]).with_name(few_shot_file("train", 10, 3))
    for path in (few_shot, Path(splits["val"])):
        images = [
            {"id": i, "file_name": f"img-{i}_jpg.rf.{i:032x}.jpg", "license": 1}
            | {"width": WIDTH, "height": HEIGHT, "date_captured": "2020-12-16T18:43:32+00:00"}
            for i in range(NUM_IMAGES)
        ]
        annotations = [
            {**annotation, "segmentation": []} for annotation in _annotations(images, (1,))
        ]
        categories = [{"id": 1, "name": "pothole", "supercategory": "potholes"}]
        _write_images(root / "odinw" / path.parent, (x["file_name"] for x in images))
        _write_json(
            root / "odinw" / path,
            {"images": images, "annotations": annotations, "categories": categories},
        )


def write_gqa(root: Path) -> None:
    """Validation questions with the objects of their words, on the images of the mixed dataset."""
    entry = {
        "question": "What is on the mat?",
        "answer": "dog",
        "fullAnswer": "The dog is on the mat.",
        "isBalanced": True,
        "types": {"semantic": "rel", "structural": "query", "detailed": "relS"},
        "annotations": {"question": {"4": "12"}, "answer": {"0": "11"}, "fullAnswer": {}},
    }
    objects = {
        number: {"name": name, **dict(zip("xywh", map(int, box), strict=True))}
        for number, name, box in zip(("11", "12"), ("dog", "mat"), BOXES, strict=True)
    }
    ids = [str(2315 + i) for i in range(NUM_IMAGES)]
    folder = root / "gqa"
    _write_images(folder / "images", (f"{i}.jpg" for i in ids))
    questions = {f"0{i}": {**entry, "imageId": i} for i in ids}
    _write_json(folder / "val_balanced_questions.json", questions)
    graph = {"width": WIDTH, "height": HEIGHT, "objects": objects}
    _write_json(folder / "val_sceneGraphs.json", dict.fromkeys(ids, graph))


def write_grounded_text(root: Path) -> None:
    """The lines of ``tools/ground_questions.py`` and ``glipv2 label``, in the working directory."""
    boxes = {"boxes": [[x, y, x + w, y + h] for x, y, w, h in BOXES], "scores": [0.9, 0.75]}
    question = "what is on the mat?"
    lines = {
        "grounded_questions/train.jsonl": {
            "caption": f"{question} dog",
            "spans": [[[20, 23]], [[11, 18]]],
            "question": question,
            "question_id": 7,
            "answers": {"dog": 1.0},
        },
        "grounded_captions/labels/labels.jsonl": {
            "caption": "a dog on a mat",
            "spans": [[[0, 5]], [[9, 14]]],
        },
    }
    names = [f"{i}.jpg" for i in range(NUM_IMAGES)]
    _write_images(root / "captions" / "images", names)
    for path, line in lines.items():
        pairs = [{"image": f"{root.name}/captions/images/{n}", **line, **boxes} for n in names]
        _write_lines(root.parent / "output" / path, [json.dumps(pair) for pair in pairs])


def _coco_ids() -> Sequence[int]:
    return range(139, 139 + NUM_IMAGES)


def _coco_image(image_id: int, file_name: str, folder: str) -> dict[str, Any]:
    return {
        "license": 1,
        "file_name": file_name,
        "coco_url": f"http://images.cocodataset.org/{folder}/{file_name}",
        "height": HEIGHT,
        "width": WIDTH,
        "date_captured": "2013-11-14 17:02:52",
        "flickr_url": "",
        "id": image_id,
    }


def _annotations(
    images: Sequence[dict[str, Any]], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """A triangle in each of :data:`BOXES` of each image, of the categories in turns."""
    return [
        {
            "id": 2 * i + k + 1,
            "image_id": image["id"],
            "category_id": category_ids[k % len(category_ids)],
            "bbox": list(box),
            "area": box[2] * box[3] / 2,
            "iscrowd": 0,
            "segmentation": [
                [box[0], box[1], box[0] + box[2], box[1], box[0] + box[2], box[1] + box[3]]
            ],
        }
        for i, image in enumerate(images)
        for k, box in enumerate(BOXES)
    ]


def _write_images(
    folder: Path, names: Iterable[str], size: tuple[int, int] = (WIDTH, HEIGHT)
) -> None:
    """Write images of large random patches, unless they exist. ``size``: width, height."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not (folder / name).exists():
            rng = np.random.default_rng(len(name) + sum(name.encode()))
            patches = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
            patches.resize(size).save(folder / name)


def _write_json(path: Path, content: Any) -> None:
    _write_lines(path, [json.dumps(content)])


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
