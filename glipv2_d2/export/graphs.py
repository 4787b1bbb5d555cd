"""The parts of a GLIPv2 as modules from tensors to tensors, which a tracer can record.

N: texts. T: tokens. D: width of the text features. K: numbers that describe a label. A: locations
of all levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from glipv2_d2.modeling import GLIPv2
from glipv2_d2.modeling.heads.grounding_rpn import GroundingRPN
from glipv2_d2.modeling.language.bert import BertLanguageBackbone
from glipv2_d2.modeling.postprocess import ChunkDetections, image_results
from glipv2_d2.modeling.queries import iterate_chunks
from glipv2_d2.structures import DensePredictions, FusedFeatures, TextFeatures, TokenBatch, fields


class TextGraph(nn.Module):
    """Token ids -> hidden states of the text encoder."""

    def __init__(self, language_backbone: BertLanguageBackbone) -> None:
        super().__init__()
        self.language_backbone = language_backbone

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """(N, T) int64 ids, and 1 on valid ones else 0 -> (N, T, D); of padding undefined."""
        return self.language_backbone.encode(input_ids, mask > 0)


def outputs_of(head: GroundingRPN, predictions: DensePredictions) -> tuple[Tensor, ...]:
    """Boxes (A, 4), region-word logits (A, T) and centerness logits (A,) of the first image."""
    deltas = torch.cat(predictions.box_deltas_per_level, dim=1)[0]
    return (
        head.box_coder.decode(deltas, torch.cat(predictions.anchors_per_level)),
        torch.cat(predictions.token_logits_per_level, dim=1)[0],
        torch.cat(predictions.centerness_per_level, dim=1)[0],
    )


class DetectorGraph(nn.Module):
    """An image and the features of a prompt -> boxes and region-word logits of all locations."""

    def __init__(self, model: GLIPv2, head: GroundingRPN) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.fused_head = model.fused_head
        self.proposal_generator = head

    def forward(self, image: Tensor, text: Tensor, *descriptions: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            image: (3, H, W), normalised and padded.
            text: (1, T, D), features of the prompt's tokens, before fusion.
            descriptions: (1, T, K), see
                :meth:`~glipv2_d2.modeling.heads.base.ProposalGenerator.describe_labels`; none if
                K is 0.

        Returns:
            (A, 4) boxes, XYXY with inclusive corners in pixels of the image, not clipped; (A, T)
            region-word logits; and (A,) centerness logits.
        """
        predictions = self._predict(image, text, *descriptions)
        return outputs_of(self.proposal_generator, predictions)

    def level_sizes(self, *inputs: Tensor) -> list[int]:
        """The locations of each level."""
        return [len(anchors) for anchors in self._predict(*inputs).anchors_per_level]

    def _predict(self, image: Tensor, text: Tensor, *descriptions: Tensor) -> DensePredictions:
        fused = self._fuse(image, text)
        if not descriptions:
            return self.proposal_generator.predict(fused)
        return self.proposal_generator.predict_described(fused, descriptions[0])

    def _fuse(self, image: Tensor, text: Tensor) -> FusedFeatures:
        features = self.backbone(image[None])
        # A prompt alone has no padding.
        mask = torch.ones_like(text[..., 0], dtype=torch.bool)
        before = TextFeatures(text, mask)
        fused_features, after = self.fused_head(features, before)
        return FusedFeatures(
            queries=(),
            tokens=TokenBatch(mask.long(), mask, (), (), ()),
            text=before,
            fused_text=after,
            region_text=self.fused_head.region_text(before, after),
            image_sizes=[],
            features=features,
            fused_features=fused_features,
        )


class FixedNamesDetector(nn.Module):
    """An image -> detections of class names that do not change, after thresholds and NMS."""

    def __init__(self, model: GLIPv2, class_names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.class_names = list(class_names)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            image: (3, H, W), 0..255, channels in the order of ``INPUT.FORMAT``.

        Returns:
            (K, 4) boxes, XYXY in pixels of the image; (K,) scores; and (K,) int64 indices of the
            class names.
        """
        x = {fields.IMAGE: image, fields.CLASSES: self.class_names}
        features = self.model.encode_images([x])
        chunks: list[ChunkDetections] = []
        for queries in iterate_chunks(self.model.query_builder.localized_queries([x], [{}])):
            fused = self.model.fuse_queries(features, queries)
            found = self.model.detect_boxes(features, fused)
            chunks += map(ChunkDetections, queries, found)
        limit = self.model.max_detections_per_image
        instances = image_results(x, chunks, features.image_sizes[0], limit)[fields.INSTANCES]
        return instances.pred_boxes.tensor, instances.scores, instances.pred_classes
