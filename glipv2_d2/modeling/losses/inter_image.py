"""L_inter: regions against the words of every image in the batch of all GPUs.

R: regions of this process. W: words (tokens). E: width of the space in which they are compared.
A *name* is the id of a normalised class name, which means the same in every image of every data
set. -1 stands for none: what a caption says is about its own image only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.utils import comm
from torch import Tensor

from glipv2_d2.modeling.losses.across_gpus import count_per_gpu, gather_rows

NO_NAME = -1


@dataclass(frozen=True)
class NamedVectors:
    """Regions, or words, of the images of one process.

    Attributes:
        vectors: (K, E) of length 1, at least float32.
        images: (K,) int64, the image of the process's batch that each is from.
        names: (K,) int64, see above.
    """

    vectors: Tensor
    images: Tensor
    names: Tensor


def inter_image_loss(
    regions: NamedVectors, words: NamedVectors, is_own_word: Tensor, temperature: Tensor
) -> Tensor:
    """Cross-entropy of regions over all words plus that of words over all regions, halved.

    Where several are right, each is as much so (GLIPv2 paper, section 3.2, with the released code's
    half and its division by the number of regions). What is right: in its own image, the words
    that spell a region's label; elsewhere, by *label propagation*, words with its name, also where
    they were asked as a negative. A region or word to which nothing is right adds nothing.

    The regions and words of other processes get their gradients, unlike in the released code.

    Args:
        regions, words: of this process.
        is_own_word: (R, W) bool, whether a word spells the label of a region of its image; pairs
            of different images are not read.
        temperature: scalar that cosines are divided by.

    Returns:
        Scalar; 0, connected to all vectors, where there is nothing to tell.
    """
    of_regions = _cross_entropy(regions, words, is_own_word, temperature)
    of_words = _cross_entropy(words, regions, is_own_word.T, temperature)
    num_regions = count_per_gpu(len(regions.vectors), like=regions.vectors)
    return (of_regions + of_words) / 2 / num_regions


def propagate_labels(names: Tensor, other_names: Tensor) -> Tensor:
    """Which regions and words of different images have the same name.

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
    is_right = propagate_labels(queries.names, torch.cat(gather_rows(candidates.names)))
    # This process's candidates stand behind those of lower ranks.
    first = sum(map(len, vectors_per_gpu[: comm.get_rank()]))
    local = is_right[:, first : first + len(candidates.names)]
    is_same_image = queries.images[:, None] == candidates.images
    local.copy_(torch.where(is_same_image, is_own, local))

    log_probs = (queries.vectors @ torch.cat(vectors_per_gpu).T / temperature).log_softmax(dim=1)
    num_right = is_right.sum(dim=1, keepdim=True).clamp(min=1)
    return -(log_probs * is_right / num_right).sum()
