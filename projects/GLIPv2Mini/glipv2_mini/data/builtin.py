"""The datasets of the small model: composed scenes (``mini_stamps_*``), easy-VQA and dev photos."""

from __future__ import annotations

import os

from detectron2.data import MetadataCatalog

from glipv2_d2.data.readers.coco import register_coco
from glipv2_d2.data.readers.coco_captions import register_captioning
from glipv2_d2.data.readers.grounding import register_phrase_boxes
from glipv2_d2.data.readers.refcoco import register_referring
from glipv2_d2.data.readers.vqa import register_questions
from glipv2_d2.data.registration import register_first
from glipv2_mini.data.questions import question_type

STAMPS_SPLITS = ("train", "seen", "seen_new_cutouts", "novel")
STAMPS_TEST_SPLITS = STAMPS_SPLITS[1:]
NUM_FIRST = {"": 200, "_captions": 200, "_referring": 200, "_vqa": 600, "_captioning": 200}
"""Task of a test split -> number of records in its subset for tables of many runs."""
NUM_FIRST_EASY_VQA = 600
EASY_VQA_SPLITS = ("train", "test")


def register_datasets(root: str) -> None:
    """Register the datasets below ``root``, each name once."""
    register_stamps(root)
    register_easy_vqa(root)
    register_dev_photos(root)


def register_stamps(root: str) -> None:
    """``mini_stamps_<split>``, and the same scenes for other tasks.

    ``..._captions`` has the phrases of the captions, ``..._referring`` phrases for one object,
    ``..._vqa`` questions, ``..._captioning`` captions to generate.
    ``..._augmented_vqa`` has more questions, ``..._train_augmented_captioning`` more captions.
    ``mini_stamps_<split>_200``, ``..._captions_200``, ``..._vqa_600`` and so on (:data:`NUM_FIRST`)
    are the first images or questions of a test split.
    """
    directory = os.path.join(root, "stamps")
    for split in STAMPS_SPLITS:
        name = f"mini_stamps_{split}"
        stem = os.path.join(directory, split)
        files = (f"{stem}.json", stem)
        register_coco(name, *files)
        register_phrase_boxes(f"{name}_captions", *files)
        register_captioning(f"{name}_captioning", *files)
        register_referring(
            f"{name}_referring", f"{stem}_referring.json", stem, is_train=split == "train"
        )
        for prefix in ("", "augmented_"):
            register_questions(
                f"{name}_{prefix}vqa",
                *files,
                f"{stem}_{prefix}questions.json",
                f"{stem}_{prefix}answers.json",
                question_type,
            )
    train = os.path.join(directory, "train")
    register_captioning(
        "mini_stamps_train_augmented_captioning", f"{train}_augmented_captioning.json", train
    )
    for split in STAMPS_TEST_SPLITS:
        for task, num_records in NUM_FIRST.items():
            register_first(f"mini_stamps_{split}{task}", num_records)


def register_easy_vqa(root: str) -> None:
    """``easy_vqa_{train,test}`` as ``datasets/prepare_easy_vqa.py`` writes them."""
    folder = os.path.join(root, "easy_vqa")
    for split in EASY_VQA_SPLITS:
        register_questions(
            f"easy_vqa_{split}",
            os.path.join(folder, f"{split}.json"),
            os.path.join(folder, split),
            os.path.join(folder, f"{split}_questions.json"),
            os.path.join(folder, f"{split}_answers.json"),
        )
    register_first("easy_vqa_test", NUM_FIRST_EASY_VQA)


def register_dev_photos(root: str) -> None:
    """``mini_photos_dev`` and ``mini_photos_dev_vqa`` of ``datasets/prepare_photos.py``."""
    folder = os.path.join(root, "mini_photos")
    files = (os.path.join(folder, "annotations.json"), os.path.join(folder, "images"))
    register_coco("mini_photos_dev", *files)
    register_questions(
        "mini_photos_dev_vqa",
        *files,
        os.path.join(folder, "annotations_questions.json"),
        os.path.join(folder, "annotations_answers.json"),
        question_type,
    )
    for name in ("mini_photos_dev", "mini_photos_dev_vqa"):
        MetadataCatalog.get(name).set(evaluation_only=True)
