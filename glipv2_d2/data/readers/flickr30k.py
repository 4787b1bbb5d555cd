"""Flickr30k Entities in its original files: sentences with marked phrases, boxes in XML.

    [/EN#283585/people Two young guys] with [/EN#283587/bodyparts shaggy hair] ...

is a line of ``Sentences/<image>.txt``; ``Annotations/<image>.xml`` has boxes whose ``name`` is the
number after ``EN#``. Coordinates are kept as they are in the file, as MDETR does.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from detectron2.structures import BoxMode

from glipv2_d2.data.faults import Faults
from glipv2_d2.data.readers.grounding import flickr30k_images
from glipv2_d2.data.registration import Record, register
from glipv2_d2.structures import fields
from glipv2_d2.structures.text import Span

logger = logging.getLogger(__name__)

NO_ANNOTATION = "images had no readable sentences or boxes and were dropped"

_MARKED = re.compile(r"\[/EN#(?P<entity>\d+)/?(?P<kinds>\S*) (?P<phrase>[^\]]*)\]")


@dataclass(frozen=True)
class Mention:
    """A marked phrase of a sentence.

    Attributes:
        entity: the number of the entity, shared with its boxes.
        kinds: categories of the entity: people, clothing, bodyparts, animals, vehicles,
            instruments, scene, other.
        span: [begin, end) characters of the sentence.
    """

    entity: str
    kinds: tuple[str, ...]
    span: Span


def register_flickr30k_entities(root: str) -> None:
    """Register ``flickr30k_entities_{train,val,test}`` below ``root``/flickr30k."""
    directory = os.path.join(root, "flickr30k")
    entities = os.path.join(directory, "flickr30k_entities")
    for split in ("train", "val", "test"):
        split_file = os.path.join(entities, f"{split}.txt")
        image_root = flickr30k_images(root, split)
        name = f"flickr30k_entities_{split}"
        register(
            name,
            functools.partial(read_entities, split_file, image_root, name),
            source_files=(split_file, image_root),
            evaluator_type="flickr30k",
        )


def read_entities(split_file: str, image_root: str, dataset_name: str) -> list[Record]:
    """One record per sentence, with the phrases that have boxes.

    Args:
        split_file: lists the images of the split, one name without suffix per line, beside the
            folders ``Sentences`` and ``Annotations``.
        dataset_name: for the report of dropped images.
    """
    directory = Path(split_file).parent
    faults = Faults()
    records = []
    for image_name in Path(split_file).read_text(encoding="utf-8").split():
        try:
            lines = (directory / "Sentences" / f"{image_name}.txt").read_text(encoding="utf-8")
            size, boxes_of = read_boxes(directory / "Annotations" / f"{image_name}.xml")
        except (OSError, UnicodeDecodeError, ElementTree.ParseError, ValueError) as error:
            faults.add(NO_ANNOTATION, f"{image_name} ({error})")
            continue
        for number, line in enumerate(lines.splitlines()):
            if not line.strip():
                continue
            caption, mentions = read_sentence(line)
            with_boxes = [mention for mention in mentions if boxes_of.get(mention.entity)]
            records.append(
                {
                    "file_name": os.path.join(image_root, f"{image_name}.jpg"),
                    # Results are matched by image_id, so every sentence has its own.
                    "image_id": f"{image_name}_{number}",
                    "height": size[0],
                    "width": size[1],
                    "original_img_id": image_name,
                    "sentence_id": number,
                    fields.CAPTION: caption,
                    fields.PHRASES: [[mention.span] for mention in with_boxes],
                    fields.PHRASE_TYPES: [mention.kinds for mention in with_boxes],
                    "annotations": [
                        {
                            "bbox": box,
                            "bbox_mode": BoxMode.XYXY_ABS,
                            "category_id": label,
                            "tokens_positive": [list(mention.span)],
                        }
                        for label, mention in enumerate(with_boxes)
                        for box in boxes_of[mention.entity]
                    ],
                }
            )
    faults.warn(logger, dataset_name)
    return records


def read_sentence(line: str) -> tuple[str, list[Mention]]:
    """The plain text of a marked sentence, and its marked phrases.

    >>> text, [man] = read_sentence("[/EN#1/people A man] with a hat .")
    >>> text, man.kinds, man.span
    ('A man with a hat .', ('people',), (0, 5))
    """
    line = line.strip()
    text, mentions, position = "", [], 0
    for match in _MARKED.finditer(line):
        text += line[position : match.start()]
        begin = len(text)
        text += match["phrase"]
        kinds = tuple(filter(None, match["kinds"].split("/")))
        mentions.append(Mention(match["entity"], kinds, (begin, len(text))))
        position = match.end()
    return text + line[position:], mentions


def read_boxes(xml_file: Path) -> tuple[tuple[int, int], dict[str, list[list[float]]]]:
    """The (height, width) of an image, and the boxes (XYXY) of each of its entities.

    Raises:
        OSError, ElementTree.ParseError, ValueError: the file cannot be read.
    """
    tree = ElementTree.parse(xml_file)
    height = int(tree.findtext("size/height", ""))
    width = int(tree.findtext("size/width", ""))
    boxes_of = defaultdict(list)
    for element in tree.iter("object"):
        if (box := element.find("bndbox")) is None:
            continue
        x1, y1, x2, y2 = (float(box.findtext(k, "")) for k in ("xmin", "ymin", "xmax", "ymax"))
        for name in element.iter("name"):
            boxes_of[name.text or ""].append([x1, y1, x2, y2])
    return (height, width), dict(boxes_of)
