"""A stand-in predictor of a service: each class name has a box of its own."""

from __future__ import annotations

import io
import threading

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from PIL import Image

from glipv2_d2.prediction import Answer, Caption, Prediction

LABEL_STUDIO_URL = "http://label-studio.test:8080"


class StandIn:
    """Scores fall from 0.9 in steps of 0.2; a class name "bad" is an error."""

    cfg = CfgNode({"MODEL": {"GROUNDING": {"NMS_THRESH": 0.6}}})
    threshold = 0.65
    class_names: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.batch_sizes: list[int] = []
        self.is_free = threading.Event()
        self.is_free.set()

    def predict(self, images, *, classes, threshold, channel_order, batch_size):
        assert threshold is None
        assert channel_order == "RGB" and batch_size == len(images) == len(classes)
        assert self.is_free.wait(timeout=30)
        if any("bad" in names for names in classes):
            raise ValueError("the class name 'bad' is invalid")
        self.batch_sizes.append(batch_size)
        return [detect(image, names) for image, names in zip(images, classes, strict=True)]

    def ground(self, images, captions, *, threshold, channel_order, batch_size):
        assert threshold is None
        assert channel_order == "RGB" and batch_size == len(images)
        return [
            detect(image, caption.split(" and "))
            for image, caption in zip(images, captions, strict=True)
        ]

    def answer(self, images, questions, *, choices, channel_order, batch_size):
        assert channel_order == "RGB" and batch_size == len(images)
        return [Answer(question, choices[0] if choices else "yes", 0.8) for question in questions]

    def caption(self, images, *, ground, threshold, channel_order, batch_size):
        assert threshold is None
        assert ground and channel_order == "RGB" and batch_size == len(images)
        return [Caption("a cat", detect(image, ["a cat"])) for image in images]


def detect(image: np.ndarray, names: list[str]) -> Prediction:
    number = len(names)
    left = 10.0 * torch.arange(number)
    instances = Instances(image.shape[:2])
    instances.pred_boxes = Boxes(torch.stack([left, left, left + 8, left + 6], dim=1))
    instances.scores = 0.9 - 0.2 * torch.arange(number)
    instances.pred_classes = torch.arange(number)
    instances.pred_masks = torch.zeros((number, *image.shape[:2]), dtype=torch.bool)
    return Prediction(instances, list(names), image.shape[:2])


def encode(width: int = 60, height: int = 40, image_format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, image_format)
    return file.getvalue()
