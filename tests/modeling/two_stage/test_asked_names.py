from __future__ import annotations

import threading

import pytest
import torch

from glipv2_d2.modeling.two_stage.asked_names import AskedNames, asked_names, asking


def names(*classes: int) -> AskedNames:
    return AskedNames(torch.tensor(classes).float()[:, None], classes)


def test_names_are_asked_within_the_block_only() -> None:
    with asking([names(1)]):
        with asking([names(2), names(3)]):
            assert [asked.classes for asked in asked_names()] == [(2,), (3,)]
        assert [asked.classes for asked in asked_names()] == [(1,)]
    with pytest.raises(RuntimeError, match="MODEL.META_ARCHITECTURE OpenVocabularyRCNN"):
        asked_names()


def test_threads_do_not_see_each_others_names() -> None:
    both_ask = threading.Barrier(2)
    seen = {}

    def ask(c: int) -> None:
        with asking([names(c)]):
            both_ask.wait()
            seen[c] = asked_names()[0].classes

    threads = [threading.Thread(target=ask, args=(c,)) for c in (4, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {4: (4,), 7: (7,)}


def test_parts_are_put_together_in_order() -> None:
    whole = AskedNames.cat([names(0, 1), names(5), names(3)])
    assert whole.classes == (0, 1, 5, 3)
    assert whole.vectors.flatten().tolist() == [0, 1, 5, 3]
    assert whole.num_classes == 6


def test_two_labels_of_one_class_are_refused() -> None:
    with pytest.raises(ValueError, match=r"several labels of one class.*\(2, 2\)"):
        names(2, 2)
