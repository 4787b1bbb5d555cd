"""The interface of fused heads, which sit between the pyramid and the predictions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from glipv2_d2.layers.checkpoint_prefixes import CheckpointPrefixes
from glipv2_d2.modeling.generation.kv_cache import KVCache
from glipv2_d2.structures import ImageFeatures, TextFeatures


class FusedHead(CheckpointPrefixes, ABC):
    """Fuses the feature pyramid of each image with a prompt.

    Subclasses implement :meth:`forward`. Those that set :attr:`fuses_text` also implement
    :meth:`fuse_text` for question answering, and :meth:`project_visual` and :meth:`decode_step` for
    captioning.

    N: images. T: tokens. D: channels of the text features.
    """

    fuses_text: ClassVar[bool] = False
    """Whether the fused text depends on the image."""

    def __init__(self, *, score_fused_text: bool = True) -> None:
        """
        Args:
            score_fused_text: score regions against the fused text; else against the text features
                of the language backbone.
        """
        super().__init__()
        self.score_fused_text = score_fused_text

    @abstractmethod
    def forward(
        self, features: dict[str, Tensor], text: TextFeatures
    ) -> tuple[dict[str, Tensor], TextFeatures]:
        """Fuse N pyramids with one prompt each.

        Args:
            features: finest level first, (N, C, H_i, W_i) each.
            text: (N, T, D). If it is causal, no position attends to it, and a token attends to
                the positions and to the tokens on its left only, as in :meth:`decode_step`.

        Returns:
            features and text of the same shapes. The inputs are not modified.
        """

    def region_text(self, text: TextFeatures, fused_text: TextFeatures) -> TextFeatures:
        """The text that regions are scored against: after or before fusion."""
        return fused_text if self.score_fused_text else text

    def fuse_text(self, features: ImageFeatures, text: TextFeatures) -> TextFeatures:
        """Compute the text output of :meth:`forward` only.

        Args:
            features: of the images of M prompts; ``rows`` has the image of each prompt.
            text: (M, T, D).

        Returns:
            (M, T, D).
        """
        raise NotImplementedError(self._does_not_fuse_text)

    def project_visual(self, features: dict[str, Tensor]) -> list[Tensor]:
        """Compute what the tokens of a causal text attend to, once per image.

        Returns:
            (N, P, C) per block, for :meth:`decode_step`.
        """
        raise NotImplementedError(self._does_not_fuse_text)

    def decode_step(
        self, visual: Sequence[Tensor], hidden: Tensor, cache: Sequence[KVCache] | None
    ) -> tuple[Tensor, list[KVCache]]:
        """Fuse the next tokens of causal texts with their images.

        Args:
            visual: of N images, from :meth:`project_visual`.
            hidden: (N K, T, D), the next T tokens of K texts per image, grouped by image.
            cache: keys and values of the previous tokens, per block; None: there are none.

        Returns:
            (N K, T, D), and the extended cache.
        """
        raise NotImplementedError(self._does_not_fuse_text)

    @property
    def _does_not_fuse_text(self) -> str:
        return (
            f"{type(self).__name__} does not fuse text with the image (fuses_text is "
            f"{self.fuses_text}): answers and captions need a head that does, such as "
            "FusedDynamicHead"
        )
