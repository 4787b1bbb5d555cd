"""Files in COCO's format with any kind of annotations: entries with consistent ids and sizes.

:mod:`glipv2_d2.data.coco_truth` validates the boxes of detection datasets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glipv2_d2.data.coco_fields import Id, parse_id, parse_size
from glipv2_d2.data.faults import Faults
from glipv2_d2.data.json_files import load_json

UNKNOWN_IMAGE = "annotations had an image_id that is not in the file's images"
REPEATED_IMAGE = "image ids occurred more than once"
REPEATED_ANNOTATION = "annotation ids occurred more than once and were numbered anew"
ID_AS_TEXT = "ids were text in place of a whole number"
SIZE_AS_TEXT = "images had a width or height as text"
UNKNOWN_SIZE = "images had no usable width and height"


@dataclass(frozen=True)
class AnnotationFile:
    """The entries of a file with consistent ids; their other fields are as in the file.

    Attributes:
        path: of the file, for messages.
        images: image id -> entry, in ascending order of the ids, which are all integers or all
            text. ``height`` and ``width`` are integers, or both are absent.
        annotations: those of the images, in the order of the file.
        num_listed: the number of annotations in the file; None for a test set, whose file has no
            list of annotations.
        categories: entries, which are not validated.
        faults: what was left out or repaired.
    """

    path: str
    images: dict[Id, dict[str, Any]]
    annotations: list[dict[str, Any]]
    num_listed: int | None
    categories: list[dict[str, Any]]
    faults: Faults

    def annotations_of(self) -> dict[Id, list[dict[str, Any]]]:
        """Image id -> its annotations, for every image."""
        found: dict[Id, list[dict[str, Any]]] = {image_id: [] for image_id in self.images}
        for annotation in self.annotations:
            found[annotation["image_id"]].append(annotation)
        return found

    def find_image(self, image_id: Any) -> dict[str, Any] | None:
        """The image of an id in another file, which may be written as another type."""
        parsed = parse_id(image_id)
        if parsed is None:
            return None
        found = self.images.get(parsed)
        return self.images.get(str(parsed)) if found is None else found

    def place(self, annotation: Mapping[str, Any]) -> str:
        """The location of an annotation, for messages: annotation, image and file."""
        image_id = annotation.get("image_id")
        image = self.find_image(image_id)
        name = f" ({image.get('file_name')!r})" if image else ""
        return f"annotation {annotation.get('id')!r} of image {image_id!r}{name} in {self.path!r}"


def read_annotation_file(path: str) -> AnnotationFile:
    """Load a file in COCO's format, with any kind of annotations, and make its ids consistent.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not in COCO's format, an entry has no usable id, or two images
            have the same id.
    """
    content = load_json(path)
    if not isinstance(content, dict):
        content = {}
    lists = {key: content.get(key) for key in ("images", "annotations", "categories")}
    for key, entries in lists.items():
        if entries is None and key != "images":
            continue
        if not isinstance(entries, list):
            raise ValueError(
                f"{path!r} is not in COCO's format: it should be a JSON object with the lists "
                f"images, annotations and categories, but {key!r} is {entries!r:.80}"
            )
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise ValueError(
                    f"{path!r} is not in COCO's format: number {number} of its {key!r} is "
                    f"{entry!r:.80}; it should be an object"
                )
    faults = Faults()
    images = _parse_images(path, lists["images"] or [], faults)
    listed = lists["annotations"]
    annotations = _parse_annotations(path, listed or [], images, faults)
    num_listed = None if listed is None else len(listed)
    return AnnotationFile(path, images, annotations, num_listed, lists["categories"] or [], faults)


def _parse_images(
    path: str, entries: Sequence[dict[str, Any]], faults: Faults
) -> dict[Id, dict[str, Any]]:
    ids = [
        required_id(entry, "id", f"number {i} of the images in {path!r}", faults)
        for i, entry in enumerate(entries)
    ]
    # Ids are sorted and compared, so they have one type.
    if len({type(image_id) for image_id in ids}) > 1:
        ids = [str(image_id) for image_id in ids]
    images: dict[Id, dict[str, Any]] = {}
    for image_id, entry in zip(ids, entries, strict=True):
        image = {**_with_size(entry, path, faults), "id": image_id}
        first = images.setdefault(image_id, image)
        if first is image:
            continue
        if first.get("file_name") != image.get("file_name"):
            raise ValueError(
                f"{path!r} has the image id {image_id!r} twice, for {first.get('file_name')!r} and "
                f"{image.get('file_name')!r}: give every image an id of its own"
            )
        faults.add(REPEATED_IMAGE, f"{image_id!r} in {path!r}")
    return {image_id: images[image_id] for image_id in sorted(images, key=id_order)}


def id_order(image_id: Id) -> tuple[bool, Id]:
    return isinstance(image_id, str), image_id


def required_id(entry: Mapping[str, Any], key: str, where: str, faults: Faults) -> Id:
    value = entry.get(key)
    parsed = parse_id(value)
    if parsed is None:
        raise ValueError(
            f"{where} has the {key!r} {value!r:.80}; it should be a whole number: add it, or "
            "remove the entry"
        )
    if isinstance(value, str) and isinstance(parsed, int):
        faults.add(ID_AS_TEXT, where)
    return parsed


def _with_size(entry: dict[str, Any], path: str, faults: Faults) -> dict[str, Any]:
    """A copy of an image entry with its size as integers, or without it."""
    given = [entry[key] for key in ("height", "width") if key in entry]
    size = parse_size(entry)
    if (size is None and given) or any(isinstance(value, str) for value in given):
        where = f"{entry.get('file_name')!r} (height and width {given!r:.80}) in {path!r}"
        faults.add(UNKNOWN_SIZE if size is None else SIZE_AS_TEXT, where)
    if size is not None:
        return {**entry, "height": size[0], "width": size[1]}
    return {key: value for key, value in entry.items() if key not in ("height", "width")}


def _parse_annotations(
    path: str,
    entries: Iterable[dict[str, Any]],
    images: Mapping[Id, dict[str, Any]],
    faults: Faults,
) -> list[dict[str, Any]]:
    """The annotations of the images, each with the id of its image as the images have it."""
    as_text = isinstance(next(iter(images), None), str)
    annotations = []
    seen: set[Any] = set()
    for number, entry in enumerate(entries):
        image_id = entry.get("image_id")
        if type(image_id) is not int or as_text:
            where = f"annotation {entry.get('id')!r:.80} (number {number}) in {path!r}"
            image_id = required_id(entry, "image_id", where, faults)
            image_id = str(image_id) if as_text else image_id
        if image_id not in images:
            where = f"annotation {entry.get('id')!r:.80} of image {image_id!r:.80} in {path!r}"
            faults.add(UNKNOWN_IMAGE, where)
            continue
        annotation_id = parse_id(entry.get("id"))
        if annotation_id in seen:
            faults.add(REPEATED_ANNOTATION, f"{annotation_id!r} in {path!r}")
        elif annotation_id is not None:
            seen.add(annotation_id)
        annotations.append({**entry, "image_id": image_id})
    return annotations
