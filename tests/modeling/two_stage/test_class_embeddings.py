from __future__ import annotations

import pytest
import torch

from glipv2_d2.modeling.two_stage import ClassEmbeddings


def embeddings(*classes: int) -> ClassEmbeddings:
    return ClassEmbeddings(torch.tensor(classes).float()[:, None], classes)


def test_parts_are_concatenated_in_order() -> None:
    whole = ClassEmbeddings.cat([embeddings(0, 1), embeddings(5), embeddings(3)])
    assert whole.classes == (0, 1, 5, 3)
    assert whole.embeddings.flatten().tolist() == [0, 1, 5, 3]
    assert whole.num_classes == 6


def test_two_embeddings_of_one_class_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"several labels of one class.*\(2, 2\)"):
        embeddings(2, 2)
