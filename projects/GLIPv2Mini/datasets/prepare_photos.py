#!/usr/bin/env python
"""Write the 14 dev photos: real photos with boxes, questions and phrases made by hand.

The photos are taken from two Debian packages, opencv-doc and gcompris-qt-data, which are downloaded
with apt-get where --packages does not have them (140 MB). They stay outside the project, which has
only the annotations, photos_dev.json. A photo that differs from the annotated one is refused.

The photos are for evaluation (tools/score_photos.py; mini_photos_dev and mini_photos_dev_vqa in
DATASETS.TEST). They are never training data, not even as backgrounds.

Writes images/, annotations_questions.json and annotations_answers.json in VQAv2's format, and
annotations.json. That is a COCO file with boxes, some of them crowds, and for every image also

    caption                        one sentence
    questions                      [{question, answers}], ten answers as in VQAv2's files
    referring                      [{phrase, bbox, annotation_id}], phrases for one object
    neg_category_ids               as in LVIS: categories that are not in the photo
    not_exhaustive_category_ids    as in LVIS: categories that may be in it without a box

A category that is also one of COCO's has that name in "coco80".
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from glipv2_d2.data.composed_dataset import vqa_files_of_answers
from glipv2_d2.file_writing import atomic_write, dump_json
from glipv2_d2.images import open_image
from glipv2_mini.data.debian_packages import find_package, read_package
from glipv2_mini.data.qt_resources import QtResources

ANNOTATIONS = Path(__file__).with_name("photos_dev.json")
NUM_ANSWERS = 10
JPEG_QUALITY = 95


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    source = json.loads(ANNOTATIONS.read_text(encoding="utf-8"))
    try:
        images = read_photos(source, args.packages or args.output / "packages")
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    write_images(args.output / "images", images)
    coco = build_coco(source, {name: image.size for name, image in images.items()})
    pairs = {
        image["id"]: [(entry["question"], entry["answers"]) for entry in image["questions"]]
        for image in coco["images"]
    }
    for ending, content in vqa_files_of_answers(pairs).items():
        atomic_write(args.output / f"annotations{ending}.json", dump_json(content))
    atomic_write(args.output / "annotations.json", dump_json(coco))
    print(
        f"{len(coco['images'])} photos in {args.output / 'images'}, their "
        f"{len(coco['annotations'])} boxes of {len(coco['categories'])} names, questions and "
        f"phrases in {args.output / 'annotations.json'}"
    )


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--packages",
        type=Path,
        help="directory of downloaded .deb files; missing ones are added (default: below --output)",
    )
    parser.add_argument(
        "--output", type=Path, default=root / "mini_photos", help="default: %(default)s"
    )
    return parser.parse_args(argv)


def read_photos(source: Mapping[str, Any], directory: Path) -> dict[str, Image.Image]:
    """The photos by name, in RGB.

    Args:
        source: the content of photos_dev.json.
        directory: of the packages.

    Raises:
        FileNotFoundError: a package cannot be downloaded.
        ValueError: a package is damaged, or photos are missing or differ from the annotated ones.
    """
    files: dict[str, bytes] = {}
    for package in source["packages"]:
        sources = [p["source"] for p in source["photos"] if p["source"].split(":")[0] == package]
        files |= read_sources(sources, source["packages"][package], directory)
    refused, images = [], {}
    for photo in source["photos"]:
        content = files.get(photo["source"])
        if content is None:
            refused.append(f"{photo['name']} (missing)")
        elif not hashlib.sha256(content).hexdigest().startswith(photo["sha256"]):
            refused.append(f"{photo['name']} (changed)")
        else:
            images[photo["name"]] = open_image(io.BytesIO(content)).convert("RGB")
    if refused:
        versions = ", ".join(f"{p['apt']} {p['made_with']}" for p in source["packages"].values())
        raise ValueError(
            f"the packages in {directory} do not have these annotated photos: "
            f"{', '.join(refused)}. Get the versions {versions}"
        )
    return images


def read_sources(
    sources: Sequence[str], package: Mapping[str, str], directory: Path
) -> dict[str, bytes]:
    """The contents of photos of one package, without those that it does not have.

    Args:
        sources: "package:file", or "package:file.rcc:end" for the file of a Qt resource file whose
            path ends with "end".
        package: its name ("apt") and the folder in it ("prefix").
    """
    path_of = {source: package["prefix"] + source.split(":")[1] for source in sources}
    contents = read_package(find_package(directory, package["apt"]), set(path_of.values()))
    photos = {}
    for source, path in path_of.items():
        if path not in contents:
            continue
        _, file, *end = source.split(":")
        photos[source] = contents[path]
        if end:
            resources = QtResources(contents[path], file)
            photos[source] = resources.read(resources.find(end[0]))
    return photos


def write_images(folder: Path, images: Mapping[str, Image.Image]) -> None:
    """Write the photos as JPEG files, with their folder renamed when complete."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, image in images.items():
        image.save(partial / f"{name}.jpg", quality=JPEG_QUALITY)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def build_coco(source: Mapping[str, Any], sizes: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """The COCO file of the photos.

    Args:
        source: the content of photos_dev.json.
        sizes: (width, height) by the name of the photo.
    """
    names = sorted({name for photo in source["photos"] for name in names_in(photo)})
    id_of = {name: number for number, name in enumerate(names, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, photo in enumerate(source["photos"], start=1):
        boxes = photo_annotations(photo, id_of)
        for annotation_id, annotation in enumerate(boxes, start=len(annotations) + 1):
            annotation |= {"id": annotation_id, "image_id": image_id}
        annotations += boxes
        present = names_in(photo)
        implied = {name for label in present for name in source["also_true"].get(label, ())}
        uncertain = (implied | set(photo.get("unsure", ()))) & set(names)
        width, height = sizes[photo["name"]]
        images.append(
            {
                "id": image_id,
                "file_name": f"{photo['name']}.jpg",
                "width": width,
                "height": height,
                "source": photo["source"],
                "caption": photo["caption"],
                "questions": [
                    {"question": question, "answers": repeat_answers(answers.split("|"))}
                    for question, answers in photo["questions"]
                ],
                "referring": [
                    {
                        "phrase": phrase,
                        "bbox": boxes[index]["bbox"],
                        "annotation_id": boxes[index]["id"],
                    }
                    for phrase, index in photo.get("referring", ())
                ],
                "not_exhaustive_category_ids": sorted(id_of[name] for name in uncertain),
                "neg_category_ids": [
                    id_of[name] for name in names if name not in present | uncertain
                ],
            }
        )
    return {
        "info": {"description": "hand-annotated photos from Debian and PyPI packages"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": id_of[name], "name": name}
            | ({"coco80": source["coco80"][name]} if name in source["coco80"] else {})
            for name in names
        ],
    }


def names_in(photo: Mapping[str, Any]) -> set[str]:
    """The class names of the boxes and crowds of a photo."""
    return {name for name, _ in (*photo["boxes"], *photo.get("crowd", ()))}


def photo_annotations(photo: Mapping[str, Any], id_of: Mapping[str, int]) -> list[dict[str, Any]]:
    """The boxes of a photo, then its crowds, without ids.

    ``tokens_positive`` is the span of characters of the caption that names the object, if one does.
    """
    labels = [(*box, 0) for box in photo["boxes"]] + [(*box, 1) for box in photo.get("crowd", ())]
    annotations = []
    for name, (x1, y1, x2, y2), is_crowd in labels:
        phrase = re.escape(photo.get("phrases", {}).get(name, name))
        mention = re.search(rf"\b{phrase}(s|es)?\b", photo["caption"])
        annotations.append(
            {
                "category_id": id_of[name],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": is_crowd,
                "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
                "box_only": True,
                "tokens_positive": [list(mention.span())] if mention else [],
            }
        )
    return annotations


def repeat_answers(answers: Sequence[str]) -> list[str]:
    """Ten answers, as in VQAv2's files: the accepted ones in turn.

    >>> repeat_answers(["branch", "log"])[:3]
    ['branch', 'log', 'branch']
    """
    return [answers[number % len(answers)] for number in range(NUM_ANSWERS)]


if __name__ == "__main__":
    main()
