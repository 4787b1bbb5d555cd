"""More class names than fit in a prompt: all LVIS classes on one photo."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from helpers.golden import PHOTO
from helpers.models import tiny_model
from PIL import Image

NAMES = [c["synonyms"][0] for c in sorted(LVIS_CATEGORIES, key=lambda c: c["id"])]


def test_each_of_1203_classes_is_detected_with_its_own_index() -> None:
    """With all candidates kept, each class has detections, in whichever prompt chunk it is."""
    model = tiny_model(
        *("MODEL.PROMPT.MAX_CLASSES", 40, "TEST.DETECTIONS_PER_IMAGE", -1),
        *("MODEL.GROUNDING.SCORE_THRESH", 0.0, "MODEL.GROUNDING.DETECTIONS_PER_PROMPT", 4000),
        *("MODEL.GROUNDING.PRE_NMS_TOPK", 4000, "MODEL.GROUNDING.NMS_THRESH", 0.99),
    )
    with Image.open(PHOTO) as file:
        pixels = np.asarray(file.convert("RGB").resize((64, 64)))[:, :, ::-1]
    image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    with torch.no_grad():
        found = model([{"image": image, "classes": NAMES}])[0]["instances"]
    assert set(found.pred_classes.tolist()) == set(range(1203))
