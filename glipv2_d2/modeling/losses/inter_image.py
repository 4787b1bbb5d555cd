"""L_inter: contrasts regions with the tokens of every image in the batch of all GPUs.

R: regions of this process. W: tokens. E: width of the space in which they are compared.
A *name* is the id of a normalised class name, the same in every image of every dataset. -1 means
none: the words of a caption describe its own image only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.utils import comm
from torch import Tensor

from glipv2_d2.modeling.losses.distributed import count_per_gpu, gather_rows

NO_NAME = -1


@dataclass(frozen=True)
class NamedVectors:
    """Regions, or tokens, of the images of one process.

    Attributes:
        vectors: (K, E), L2-normalised, at least float32.
        images: (K,) int64, index of the image in the process's batch.
        names: (K,) int64, see above.
    """

    vectors: Tensor
    images: Tensor
    names: Tensor


def inter_image_loss(
    regions: NamedVectors, tokens: NamedVectors, is_own_token: Tensor, temperature: Tensor
) -> Tensor:
    """Cross-entropy of regions over all tokens plus that of tokens over all regions, halved.

    Several positives share the target equally (GLIPv2 paper, section 3.2, with the released code's
    half and its division by the number of regions). Positives: in the same image, the tokens that
    spell a region's label; in other images, by *label propagation*, tokens with its name, also
    where the name is a negative of that image. A region or token without positives adds nothing.

    Unlike in the released code, the regions and tokens of other processes receive gradients.

    Args:
        regions, tokens: of this process.
        is_own_token: (R, W) bool, whether a token spells the label of a region of the same image;
            ignored for pairs from different images.
        temperature: scalar that divides the cosines.

    Returns:
        Scalar; 0, connected to all vectors, without positives.
    """
    over_tokens = _cross_entropy(regions, tokens, is_own_token, temperature)
    over_regions = _cross_entropy(tokens, regions, is_own_token.T, temperature)
    num_regions = count_per_gpu(len(regions.vectors), like=regions.vectors)
    return (over_tokens + over_regions) / 2 / num_regions


def propagate_labels(names: Tensor, other_names: Tensor) -> Tensor:
    """Whether regions and tokens of different images have the same name.

    Args:
        names: (Q,) int64.
        other_names: (C,) int64.

    Returns:
        (Q, C) bool.
    """
    return (names[:, None] == other_names) & (names[:, None] != NO_NAME)


def _cross_entropy(
    queries: NamedVectors, candidates: NamedVectors, is_own: Tensor, temperature: Tensor
) -> Tensor:
    """Sum over this process's queries of their cross-entropy over all processes' candidates."""
    vectors_per_gpu = gather_rows(candidates.vectors)
    is_positive = propagate_labels(queries.names, torch.cat(gather_rows(candidates.names)))
    # This process's candidates follow those of lower ranks.
    first = sum(map(len, vectors_per_gpu[: comm.get_rank()]))
    local = is_positive[:, first : first + len(candidates.names)]
    is_same_image = queries.images[:, None] == candidates.images
    local.copy_(torch.where(is_same_image, is_own, local))

    log_probs = (queries.vectors @ torch.cat(vectors_per_gpu).T / temperature).log_softmax(dim=1)
    num_positives = is_positive.sum(dim=1, keepdim=True).clamp(min=1)
    return -(log_probs * is_positive / num_positives).sum()
