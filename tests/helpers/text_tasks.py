"""Inputs of a model that also answers questions and captions images."""

from __future__ import annotations

from typing import Any

from helpers.models import random_image, training_input

ANSWERS = ["yes", "no", "2", "dog"]
ANSWERING = ("MODEL.ANSWER.WEIGHT", 1.0, "MODEL.ANSWER.ANSWERS", ANSWERS)
CAPTIONING = (
    *("MODEL.CAPTION.WEIGHT", 1.0, "MODEL.CAPTION.BEAM_SIZE", 2, "MODEL.CAPTION.MAX_LENGTH", 6),
)
TEXT_TASKS = (*ANSWERING, *CAPTIONING)

GROUNDED = "what is on the mat?"


def question_input(question: str = "is there a dog?", seed: int = 1, **fields: Any) -> dict:
    return {
        "image": random_image(seed=seed),
        "question": question,
        "question_id": 7,
        "file_name": "7.jpg",
        "answers": {"yes": 1.0, "maybe": 0.6},
        **fields,
    }


def caption_input(caption: str = "a dog on a mat", seed: int = 2, **fields: Any) -> dict:
    return {"image": random_image(seed=seed), "target_captions": [caption], **fields}


def detection_input() -> dict:
    return training_input([[5, 5, 50, 60]], [0], classes=["cat", "traffic light"])


def grounded_question_input() -> dict:
    """Where the mat is, and where its answer."""
    return training_input(
        [[5, 5, 50, 60], [20, 10, 40, 30]],
        [0, 1],
        caption=f"{GROUNDED} a dog",
        phrases=[[[11, 18]], [[20, 25]]],
        question=GROUNDED,
        answers={"dog": 1.0},
    )
