from __future__ import annotations

import pytest
import torch

from glipv2_d2.modeling.class_embeddings import ClassEmbeddings, num_columns
from glipv2_d2.modeling.heads.region_word_score import MAX_LOGIT


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


def test_the_scores_of_classes_are_put_into_the_columns_of_their_indices() -> None:
    logits = embeddings(3, 0).to_columns(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 5)
    assert logits[:, [3, 0]].tolist() == [[1, 2], [3, 4]]
    assert (logits[:, [1, 2, 4]] == -MAX_LOGIT).all()


def test_training_has_a_fixed_number_of_columns() -> None:
    batch = [embeddings(0, 1), embeddings(4, 2)]
    assert num_columns(batch, num_classes=9, training=False) == 5
    assert num_columns(batch, num_classes=9, training=True) == 9
    with pytest.raises(ValueError, match="num_classes is 4, but class_embeddings has class 4"):
        num_columns(batch, num_classes=4, training=True)
