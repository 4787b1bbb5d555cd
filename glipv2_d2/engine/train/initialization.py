"""Layers that are set in closed form from images, before the first iteration of a training."""

from __future__ import annotations

import itertools
import logging
import math

from detectron2.engine import HookBase
from torch import nn

from glipv2_d2.modeling.meta_arch import GLIPv2

logger = logging.getLogger(__name__)


class InitializeFromImages(HookBase):
    """Calls :meth:`GLIPv2.initialize_from` with the first images of a training (our choice).

    A resumed training has these layers.
    """

    def __init__(self, model: nn.Module, num_images: int, images_per_batch: int) -> None:
        """
        Args:
            model: without its DDP wrapper.
            num_images, images_per_batch: over all processes.

        Raises:
            ValueError: the model is of another class.
        """
        if not isinstance(model, GLIPv2):
            raise ValueError(
                f"SOLVER.INITIALIZE_FROM_IMAGES must be 0: {type(model).__name__} "
                "(MODEL.META_ARCHITECTURE) sets no layers from images"
            )
        self.model = model
        self.num_batches = math.ceil(num_images / images_per_batch)

    def before_train(self) -> None:
        if self.trainer.start_iter > 0:
            return
        batches = iter(self.trainer.data_loader)
        logger.info("setting layers from the first %d batches", self.num_batches)
        self.model.initialize_from(itertools.islice(batches, self.num_batches))
