"""Predictions drawn onto pictures by Detectron2's Visualizer."""

from __future__ import annotations

import numpy as np
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer

from glipv2_d2.predictor import Prediction

# Small pictures are enlarged to this many pixels on their longer side, so that labels stay legible.
_MIN_LONGER_SIDE = 640


def draw_prediction(image: np.ndarray, prediction: Prediction) -> np.ndarray:
    """Draw boxes with names and scores.

    Args:
        image: (H, W, 3) uint8, R, G, B; the image that was asked.
        prediction: what was found in it; a class has the same colour in every picture.

    Returns:
        (H', W', 3) uint8, R, G, B; H' and W' are larger than H and W for a small image.
    """
    scale = max(1.0, _MIN_LONGER_SIDE / max(image.shape[:2]))
    colors = colormap(rgb=True, maximum=1)
    visualizer = Visualizer(image, scale=scale)
    drawn = visualizer.overlay_instances(
        boxes=prediction.instances.pred_boxes,
        labels=[
            _plain_text(f"{label} {score:.0%}")
            for label, score in zip(
                prediction.labels, prediction.instances.scores.tolist(), strict=True
            )
        ],
        assigned_colors=[
            colors[index % len(colors)] for index in prediction.instances.pred_classes.tolist()
        ],
    )
    return drawn.get_image()


def _plain_text(label: str) -> str:
    """Matplotlib would read what stands between dollar signs as a formula."""
    return label.replace("$", r"\$")
