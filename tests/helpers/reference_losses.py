"""The reference's inter-image loss with its defects, compared with its stored numbers.

It drops anchors of the first ground truth, uses fused tokens and pads with random negative anchors
or masked zeros (glip_reference.md 15). The library's own loss does none of this.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glipv2_d2.modeling.heads.base import LossHead
from glipv2_d2.structures import DenseTargets, FusedFeatures, TokenBatch

MASKED_LOGIT = -1e6


class ReferenceInterImage(LossHead):
    """Replaces the model's ``inter_image`` loss head; weights come from model_extra.pth."""

    def __init__(
        self,
        weights: dict[str, Tensor],
        classes: list[list[int]],
        padding_anchors: list[list[int]] | None,
    ) -> None:
        """
        Args:
            weights: under the reference's names without ``module.rpn.loss_evaluator.``.
            classes: for each image the class of each label, the same number in all images.
            padding_anchors: for each image the negative anchors that the reference drew to pad it;
                None: zeros.
        """
        super().__init__()
        self.shallow_log_scale = nn.Parameter(torch.zeros(1))
        for name in ("image", "text"):
            key = f"shallow_contrastive_projection_{name}"
            self.add_module(key, nn.Linear(*weights[f"{key}.weight"].shape[::-1]))
        self.load_state_dict(weights)
        self.classes = classes
        self.padding_anchors = padding_anchors

    def losses(self, fused: FusedFeatures, targets: DenseTargets) -> dict[str, Tensor]:
        features, tokens = fused.features, fused.tokens
        locations = torch.cat([level.flatten(2).transpose(1, 2) for level in features.values()], 1)
        # Anchors of the first ground truth are left out, as if they were background.
        anchors_per_image = [(matched > 0).nonzero().squeeze(1) for matched in targets.matched_idxs]
        num_regions = max(map(len, anchors_per_image))
        regions, is_region, box_classes, own_words = [], [], [], []
        for i, anchors in enumerate(anchors_per_image):
            drawn = [] if self.padding_anchors is None else self.padding_anchors[i]
            vectors = locations[i, torch.cat([anchors, torch.tensor(drawn, dtype=torch.int64)])]
            padding = num_regions - len(anchors)
            classes = torch.tensor(self.classes[i])[targets.matched_idxs[i, anchors]]
            regions.append(F.pad(vectors, (0, 0, 0, num_regions - len(vectors))))
            is_region.append(torch.arange(num_regions) < len(vectors))
            box_classes.append(F.pad(classes, (0, padding), value=-100))
            own_words.append(F.pad(targets.token_targets[i, anchors], (0, 0, 0, padding)))

        is_right = (torch.cat(box_classes)[:, None] == self._token_classes(tokens)).float()
        is_own_block = torch.block_diag(*map(torch.ones_like, own_words)) > 0
        is_right = torch.where(is_own_block, torch.block_diag(*own_words), is_right)
        image_vectors = self.shallow_contrastive_projection_image(torch.cat(regions))
        text_vectors = self.shallow_contrastive_projection_text(
            F.normalize(fused.fused_text.hidden, dim=-1).flatten(0, 1)
        )
        logits = F.normalize(image_vectors, dim=-1) @ F.normalize(text_vectors, dim=-1).T
        logits = logits / self.shallow_log_scale.exp()
        logits = logits.masked_fill(~torch.cat(is_region)[:, None], MASKED_LOGIT)
        logits = logits.masked_fill(~tokens.mask.flatten(), MASKED_LOGIT)
        loss = soft_cross_entropy(logits, is_right) + soft_cross_entropy(logits.T, is_right.T)
        return {"loss_inter_image": loss / 2 / (targets.matched_idxs >= 0).sum()}

    def _token_classes(self, tokens: TokenBatch) -> Tensor:
        """(N * T,) the class that each token spells, -1 for none."""
        token_classes = torch.full_like(tokens.input_ids, -1)
        for i, positive_map in enumerate(tokens.positive_maps):
            labels, positions = positive_map.nonzero(as_tuple=True)
            token_classes[i, positions] = torch.tensor(self.classes[i])[labels]
        return token_classes.flatten()


def soft_cross_entropy(logits: Tensor, right: Tensor) -> Tensor:
    """Sum over rows; rows to which nothing is right add nothing."""
    shares = right / right.sum(dim=1, keepdim=True).clamp(min=1)
    return -(shares * logits.log_softmax(dim=1)).sum()
