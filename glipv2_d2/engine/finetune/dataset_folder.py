"""Recognising the layout of a dataset folder."""

from __future__ import annotations

from pathlib import Path

from glipv2_d2.engine.finetune.coco_folder import UNDIVIDED, open_coco_folder, searched_files
from glipv2_d2.engine.finetune.splits import DatasetFolder
from glipv2_d2.engine.finetune.yolo_folder import YOLO_FILES, open_yolo_folder


def open_dataset_folder(root: Path) -> DatasetFolder:
    """The splits of a folder in COCO's or YOLO's format.

    Raises:
        FileNotFoundError: it does not exist or has none of the known layouts; the message lists
            the searched files.
        ValueError: its files are invalid.
    """
    if not root.is_dir():
        hint = "; pass the folder that has it" if root.is_file() else ""
        raise FileNotFoundError(f"'{root}' is not a folder{hint}")
    if any((root / name).is_file() for name in YOLO_FILES):
        return open_yolo_folder(root)
    try:
        return open_coco_folder(root)
    except FileNotFoundError as error:
        if any(root.rglob("*.json")):
            raise
        yolo, undivided = ("\n".join(f"  {name}" for name in x) for x in (YOLO_FILES, UNDIVIDED))
        raise FileNotFoundError(
            f"'{root}' is no dataset folder that is known here. Searched for COCO's format "
            f"(Roboflow, CVAT, Label Studio)\n{chr(10).join(searched_files('train'))}\n{undivided}"
            f"\nand for YOLO's\n{yolo}"
        ) from error
