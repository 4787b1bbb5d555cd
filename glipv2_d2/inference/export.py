"""Files of results in the formats of other tools, made from a journal."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from glipv2_d2.file_writing import atomic_open, atomic_write, dump_json
from glipv2_d2.prediction import Prediction
from glipv2_d2.prediction_formats import label_studio_config


@dataclass(frozen=True)
class Result:
    """The prediction of an image or frame.

    Attributes:
        source: the path or address.
        number: of the frame; None for an image.
        stem: a name of its own among the results, for files.
        prediction: detections.
        text: the question and answer, or the caption; empty for class names.
    """

    source: str
    number: int | None
    stem: str
    prediction: Prediction
    text: dict[str, Any]


@dataclass(frozen=True)
class CocoIds:
    """Ids of images and classes in an annotation file in COCO's format.

    Attributes:
        file: the file.
        image_ids: file name -> id.
        category_ids: class name -> id.
    """

    file: Path
    image_ids: dict[str, int]
    category_ids: dict[str, int]

    @staticmethod
    def read(path: Path) -> CocoIds:
        """
        Raises:
            ValueError: the file cannot be read, or is not in COCO's format.
        """
        try:
            content = json.loads(path.read_bytes())
            images = {image["file_name"]: image["id"] for image in content["images"]}
            categories = {c["name"]: c["id"] for c in content["categories"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not an annotation file of COCO: {error!r}") from error
        return CocoIds(path, images, categories)

    def image_id(self, source: str) -> int:
        """
        Raises:
            ValueError: the file has no image of this name.
        """
        parts = Path(source).parts
        # The names in the file are below an image folder.
        for start in range(len(parts)):
            if (tail := Path(*parts[start:]).as_posix()) in self.image_ids:
                return self.image_ids[tail]
        raise ValueError(f"{self.file} has no image {Path(source).name!r}, of {source}")

    def category_id(self, name: str) -> int:
        """
        Raises:
            ValueError: the file has no class of this name.
        """
        if name not in self.category_ids:
            close = get_close_matches(name, self.category_ids, n=2)
            hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise ValueError(f"{self.file} has no class {name!r}{hint}")
        return self.category_ids[name]


MAX_CAPTION_NAMES = 40
"""Names in a caption of :func:`grounded_record`, if no more are found."""

Results = Callable[[], Iterable[Result]]
"""All results so far, in the order of the inputs."""


def save(name: str, results: Results, folder: Path, names: Sequence[str], model: str) -> Path:
    """Write one format; return the file or folder.

    Args:
        name: of the format: "coco", "yolo", "voc", "csv", "label-studio" or "grounding".
        names: the class names; phrases of captions are added.
        model: its name, for Label Studio.
    """
    writers: dict[str, Callable[[], Path]] = {
        "coco": lambda: save_coco(results, folder, names),
        "yolo": lambda: save_yolo(results, folder, names),
        "voc": lambda: save_voc(results, folder),
        "csv": lambda: save_csv(results, folder),
        "label-studio": lambda: save_label_studio(results, folder, names, model),
        "grounding": lambda: save_grounding(results, folder, names),
    }
    return writers[name]()


def save_coco(results: Results, folder: Path, names: Sequence[str]) -> Path:
    """A COCO dataset whose annotations are the detections, with scores."""
    ids = {name: number for number, name in enumerate(dict.fromkeys(names), 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for result in results():
        height, width = result.prediction.image_size
        image_id = len(images) + 1
        file_name = _file_name(result)
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        for row in result.prediction.to_coco(image_id):
            name = row.pop("category_name")
            # Phrases of captions differ from image to image.
            row["category_id"] = ids.setdefault(name, len(ids) + 1)
            area = row["bbox"][2] * row["bbox"][3]
            annotations.append({"id": len(annotations) + 1, **row, "area": area, "iscrowd": 0})
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return _write_json(folder / "coco.json", content)


def save_coco_results(results: Results, folder: Path, ids: CocoIds) -> Path:
    """A COCO result list with the ids of an annotation file, which pycocotools scores."""
    rows: list[dict[str, Any]] = []
    for result in results():
        detections = result.prediction.to_coco(ids.image_id(result.source))
        for row in detections:
            row["category_id"] = ids.category_id(row.pop("category_name"))
        rows += detections
    return _write_json(folder / "coco_results.json", rows)


def save_yolo(results: Results, folder: Path, names: Sequence[str]) -> Path:
    """A label file per image in ``labels/``, and the class names in ``data.yaml``."""
    for result in results():
        atomic_write(folder / "labels" / f"{result.stem}.txt", result.prediction.to_yolo())
    content = {"path": ".", "names": dict(enumerate(names))}
    atomic_write(folder / "data.yaml", yaml.safe_dump(content, allow_unicode=True, sort_keys=False))
    return folder / "labels"


def save_voc(results: Results, folder: Path) -> Path:
    """A Pascal VOC file per image in ``voc/``."""
    for result in results():
        text = result.prediction.to_voc(_file_name(result))
        atomic_write(folder / "voc" / f"{result.stem}.xml", text)
    return folder / "voc"


def save_csv(results: Results, folder: Path) -> Path:
    """A line per detection: image, class name, score, box (XYWH), and the text if there is one."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(("image", "name", "score", "x", "y", "width", "height", "text"))
    for result in results():
        text = result.text.get("answer", result.text.get("caption", ""))
        rows = result.prediction.to_coco(0)
        for row in rows:
            box = [f"{value:.2f}" for value in row["bbox"]]
            name, score = row["category_name"], f"{row['score']:.4f}"
            writer.writerow((_file_name(result), name, score, *box, text))
        if text and not rows:
            writer.writerow((_file_name(result), *[""] * 6, text))
    atomic_write(folder / "detections.csv", buffer.getvalue())
    return folder / "detections.csv"


def save_label_studio(results: Results, folder: Path, names: Sequence[str], model: str) -> Path:
    """Tasks with pre-annotations, and the labelling interface in ``label_config.xml``."""
    found = dict.fromkeys(names)
    tasks = []
    for result in results():
        found |= dict.fromkeys(result.prediction.labels)
        address = result.source
        if not address.startswith(("http://", "https://")):
            # Label Studio serves files below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT there.
            address = f"/data/local-files/?d={_file_name(result)}"
        tasks.append(result.prediction.to_label_studio(address, model))
    atomic_write(folder / "label_config.xml", label_studio_config(list(found)))
    return _write_json(folder / "label_studio.json", tasks)


def save_grounding(results: Results, folder: Path, names: Sequence[str]) -> Path:
    """Lines for ``DATASETS.CUSTOM`` in the format captions: the names are the caption.

    An image without detections has no line.
    """
    path = folder / "grounding.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as file:
        for result in results():
            record = grounded_record(result.prediction, _file_name(result), names)
            if record is not None:
                file.write(dump_json(record).encode() + b"\n")
    return path


def grounded_record(
    prediction: Prediction, image: str, names: Sequence[str]
) -> dict[str, Any] | None:
    """A line for :mod:`glipv2_d2.data.readers.captions`; None if there is no detection.

    The caption has the names that were found and, up to :data:`MAX_CAPTION_NAMES`, the first of the
    others, in the order of ``names``: "cat. coffee cup. dog."
    """
    labels = prediction.labels
    if not labels:
        return None
    found = set(labels)
    num_others = max(0, MAX_CAPTION_NAMES - len(found))
    others = [name for name in dict.fromkeys(names) if name not in found][:num_others]
    order = dict.fromkeys([*names, *labels])
    chosen = found | set(others)
    caption, spans = "", {}
    for name in (name for name in order if name in chosen):
        spans[name] = [[len(caption), len(caption) + len(name)]]
        caption += f"{name}. "
    height, width = prediction.image_size
    return {
        "image": image,
        "caption": caption.rstrip(),
        "boxes": [
            [round(value, 2) for value in box]
            for box in prediction.instances.pred_boxes.tensor.tolist()
        ],
        "spans": [spans[label] for label in labels],
        "scores": [round(score, 4) for score in prediction.instances.scores.tolist()],
        "phrases": labels,
        "height": height,
        "width": width,
    }


def _file_name(result: Result) -> str:
    """Of an image its path; a frame has no file, and gets the name of its drawn image."""
    return result.source if result.number is None else f"{result.stem}.jpg"


def _write_json(path: Path, content: Any) -> Path:
    atomic_write(path, json.dumps(content, ensure_ascii=False))
    return path
