"""Every data set that this project knows, in Detectron2's catalogs.

They lie below the directory that the environment variable DETECTRON2_DATASETS names (default:
``datasets``); ``datasets/README.md`` says how they get there. COCO and LVIS are registered by
Detectron2 itself.
"""

from __future__ import annotations

import os

from glipv2_d2.data.answer_vocabulary import unlikely_answers
from glipv2_d2.data.readers.coco import register_coco
from glipv2_d2.data.readers.coco_captions import register_captioning, register_coco_captions
from glipv2_d2.data.readers.flickr30k import register_flickr30k_entities
from glipv2_d2.data.readers.gqa import register_gqa
from glipv2_d2.data.readers.grounding import register_described_boxes, register_goldg
from glipv2_d2.data.readers.lvis import register_lvis_minival
from glipv2_d2.data.readers.objects365 import register_objects365
from glipv2_d2.data.readers.odinw import register_odinw
from glipv2_d2.data.readers.openimages import register_openimages
from glipv2_d2.data.readers.phrasecut import register_phrasecut
from glipv2_d2.data.readers.refcoco import register_refcoco, register_referring
from glipv2_d2.data.readers.visual_genome import register_visual_genome
from glipv2_d2.data.readers.vqa import register_listed_questions, register_vqav2
from glipv2_d2.data.registration import Record, register_first, register_part
from glipv2_d2.data.scenes.language import question_type
from glipv2_d2.structures import fields

STAMPS_SPLITS = ("train", "seen", "seen_new_cutouts", "novel")
STAMPS_TEST_SPLITS = STAMPS_SPLITS[1:]
# Of a test split's tasks, how many records a table of many runs reads.
NUM_FIRST = {"": 200, "_captions": 200, "_referring": 200, "_vqa": 600, "_captioning": 200}
NUM_FIRST_EASY_VQA = 600
DRAWN_SPLITS = ("train", "val", "base", "novel")
TRAINED_SPLITS = ("train", "base")
EASY_VQA_SPLITS = ("train", "test")


def register_builtin(root: str) -> None:
    """Register everything below ``root``, each name once."""
    register_mini(root)
    register_lvis_minival(root)
    register_objects365(root)
    register_openimages(root)
    register_visual_genome(root)
    register_odinw(root)
    register_flickr30k_entities(root)
    register_goldg(root)
    register_refcoco(root)
    register_phrasecut(root)
    register_vqav2(root)
    register_gqa(root)
    register_easy_vqa(root)
    register_coco_captions(root)


def register_mini(root: str) -> None:
    """``mini_stamps_<split>`` and ``mini_drawn_<split>``, and both for other tasks.

    ``..._captions`` asks the phrases of the captions, ``..._referring`` phrases that tell two
    things of one name apart, ``..._vqa`` questions; ``..._captioning`` has the captions to be said.
    ``..._further_vqa`` has more questions, and ``..._retold`` more captions of a training split.
    ``mini_stamps_<split>_200``, ``..._captions_200``, ``..._vqa_600`` and so on (:data:`NUM_FIRST`)
    are the first images or questions of a test split, for tables of many runs.
    """
    for kind, splits in (("stamps", STAMPS_SPLITS), ("drawn", DRAWN_SPLITS)):
        for split in splits:
            directory = os.path.join(root, kind)
            files = (os.path.join(directory, f"{split}.json"), os.path.join(directory, split))
            register_coco(f"mini_{kind}_{split}", *files)
            register_described_boxes(f"mini_{kind}_{split}_captions", *files)
            register_captioning(f"mini_{kind}_{split}_captioning", *files)
            register_referring(
                f"mini_{kind}_{split}_referring",
                os.path.join(directory, f"{split}_referring.json"),
                files[1],
                is_train=split in TRAINED_SPLITS,
            )
            register_listed_questions(
                f"mini_{kind}_{split}_vqa",
                *files,
                os.path.join(directory, f"{split}_questions.json"),
                os.path.join(directory, f"{split}_answers.json"),
                question_type,
            )
            register_listed_questions(
                f"mini_{kind}_{split}_further_vqa",
                *files,
                os.path.join(directory, f"{split}_further_questions.json"),
                os.path.join(directory, f"{split}_further_answers.json"),
                question_type,
            )
            if split in TRAINED_SPLITS:
                register_captioning(
                    f"mini_{kind}_{split}_retold",
                    os.path.join(directory, f"{split}_retold.json"),
                    files[1],
                )
    for split in STAMPS_TEST_SPLITS:
        for task, num_records in NUM_FIRST.items():
            register_first(f"mini_stamps_{split}{task}", num_records)


def register_easy_vqa(root: str) -> None:
    """``easy_vqa_{train,test}``, as ``datasets/prepare_easy_vqa.py`` lays it out.

    Of the first, ``easy_vqa_train_open`` is the quarter that is not answered by yes or no, and
    ``easy_vqa_train_unlikely`` the third whose answer is not the commonest to the same question:
    who has not seen the picture is wrong there.
    """
    folder = os.path.join(root, "easy_vqa")
    for split in EASY_VQA_SPLITS:
        register_listed_questions(
            f"easy_vqa_{split}",
            os.path.join(folder, f"{split}.json"),
            os.path.join(folder, split),
            os.path.join(folder, f"{split}_questions.json"),
            os.path.join(folder, f"{split}_answers.json"),
        )
    register_first("easy_vqa_test", NUM_FIRST_EASY_VQA)
    register_part("easy_vqa_train", "easy_vqa_train_open", _open_questions)
    register_part("easy_vqa_train", "easy_vqa_train_unlikely", unlikely_answers)


def _open_questions(records: list[Record]) -> list[Record]:
    return [record for record in records if record[fields.ANSWER_TYPE] != "yes/no"]


register_builtin(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))
