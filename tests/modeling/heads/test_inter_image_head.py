from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.structures import Instances
from torch import Tensor

from glipv2_d2.modeling.heads import inter_image as module
from glipv2_d2.modeling.heads.inter_image import InterImageHead, label_name_ids, name_ids, words_of
from glipv2_d2.modeling.losses.inter_image import NO_NAME, NamedVectors, propagate_labels
from glipv2_d2.structures import DenseTargets, Prompt, TextFeatures, TokenBatch
from glipv2_d2.text.prompts import caption_prompt, class_prompt
from glipv2_d2.text.tokenizer import Tokenizer

# [CLS] cat . traffic light [SEP]
ASKED = class_prompt(["cat", "traffic light"])
# The same names, written otherwise, of another data set; the cat is not in the image.
ASKED_ELSEWHERE = class_prompt(["dog", "Cat", "Traffic_light_(road)"], classes=[40, 50, 60])
CAPTION = caption_prompt("a cat sits", [[(0, 5)]])


def ground_truth(*classes: int) -> Instances:
    return Instances((8, 8), gt_classes=torch.tensor(classes, dtype=torch.int64))


def tokenize(*prompts: Prompt) -> TokenBatch:
    return Tokenizer()(prompts)


def head(**arguments: Any) -> InterImageHead:
    torch.manual_seed(0)
    defaults = {
        "visual_dim": 2,
        "language_dim": 3,
        "dim": 4,
        "max_regions_per_image": 100,
        "temperature": 0.07,
        "weight": 1.0,
    }
    return InterImageHead(**{**defaults, **arguments})


def words_right_for(image: int, *gt: Instances, tokens: TokenBatch, box: int) -> list[list[bool]]:
    """Which tokens of every image carry the name of a box."""
    gt_names, token_names = name_ids(tokens, gt)
    return (
        propagate_labels(gt_names[image][box : box + 1], token_names.flatten())
        .view(token_names.shape)
        .tolist()
    )


def test_a_box_is_right_for_its_name_in_other_prompts_even_as_a_negative_there() -> None:
    tokens = tokenize(ASKED, ASKED_ELSEWHERE)
    right = words_right_for(0, ground_truth(1, 0), ground_truth(40), tokens=tokens, box=1)
    # [CLS] dog . cat . traffic light [SEP]
    assert right[1] == [False, False, False, True, False, False, False, False]


def test_all_tokens_of_a_name_are_right() -> None:
    tokens = tokenize(ASKED, ASKED_ELSEWHERE)
    right = words_right_for(1, ground_truth(0), ground_truth(40, 60), tokens=tokens, box=1)
    # [CLS] cat . traffic light [SEP]
    assert right[0] == [False, False, False, True, True, False, False, False]


def test_captions_neither_give_nor_take_names() -> None:
    tokens = tokenize(CAPTION, class_prompt(["a cat", "cat"]))
    gt_names, token_names = name_ids(tokens, [ground_truth(0), ground_truth(1)])
    assert gt_names[0].tolist() == [NO_NAME]
    assert set(token_names[0].tolist()) == {NO_NAME}


def test_a_name_has_the_same_number_in_every_process_and_run() -> None:
    """Processes exchange the numbers; Python's own hash of a text differs between them.

    ``int.from_bytes(hashlib.blake2b(b"cat", digest_size=8).digest(), "big") >> 1``
    """
    assert label_name_ids(class_prompt(["cat", "Traffic_Light"])) == [
        1843079001574132759,
        813670082399962353,
    ]


def test_words_are_names_in_lists_and_everything_in_captions() -> None:
    is_word = words_of(tokenize(ASKED, CAPTION))
    assert is_word[0].tolist() == [False, True, False, True, True, False]
    assert is_word[1].tolist() == [False, True, True, True, False, False]


class Seen:
    """What the head hands to the loss."""

    def __call__(
        self, regions: NamedVectors, words: NamedVectors, is_own_word: Tensor, temperature: Tensor
    ) -> Tensor:
        self.regions, self.words, self.is_own_word = regions, words, is_own_word
        self.temperature = temperature
        return regions.vectors.sum() + words.vectors.sum() + temperature.sum()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    seen = Seen()
    monkeypatch.setattr(module, "inter_image_loss", seen)
    return seen


def run_head(matched_idxs: list[list[int]], **arguments: Any) -> dict[str, Tensor]:
    """Two images of two levels (4 and 1 locations) with two ground truths each."""
    tokens = tokenize(ASKED, CAPTION)
    matched = torch.tensor(matched_idxs)
    token_targets = torch.zeros(2, 5, tokens.mask.shape[1])
    for image, gt_tokens in enumerate(([[1], [3, 4]], [[1, 2], [1, 2]])):
        for anchor, gt in enumerate(matched_idxs[image]):
            if gt >= 0:
                token_targets[image, anchor, gt_tokens[gt]] = 1
    features = {
        "p3": torch.arange(16.0).view(2, 2, 2, 2),
        "p4": 100 + torch.arange(4.0).view(2, 2, 1, 1),
    }
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, tokens.mask.shape[1], 3, generator=generator)
    return head(**arguments)(
        features,
        TextFeatures(hidden, tokens.mask),
        tokens,
        [ground_truth(0, 1), ground_truth(0, 0)],
        DenseTargets(matched, token_targets, torch.zeros(2, 5, 4)),
    )


def test_anchors_of_the_first_ground_truth_take_part(seen: Seen) -> None:
    """The reference leaves them out."""
    run_head([[0, -1, -1, 1, -1], [-1, -1, -1, -1, 0]])
    assert seen.regions.images.tolist() == [0, 0, 1]


def test_regions_are_the_feature_vectors_at_their_anchors(
    seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InterImageHead, "_project", staticmethod(lambda _, vectors: vectors))
    run_head([[0, -1, -1, 1, -1], [-1, -1, -1, -1, 0]])
    assert seen.regions.vectors.tolist() == [[0, 4], [3, 7], [102, 103]]


def test_the_own_block_is_the_map_of_boxes_to_tokens(seen: Seen) -> None:
    run_head([[0, -1, -1, 1, -1], [-1, -1, -1, -1, 0]])
    assert seen.words.images.tolist() == [0, 0, 0, 1, 1, 1]
    assert seen.is_own_word[:2, :3].tolist() == [[True, False, False], [False, True, True]]
    assert seen.is_own_word[2, 3:].tolist() == [True, True, False]


def test_vectors_have_length_one(seen: Seen) -> None:
    run_head([[0, -1, -1, 1, -1], [-1, -1, -1, -1, 0]])
    for vectors in (seen.regions.vectors, seen.words.vectors):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))


def test_at_most_so_many_regions_an_image_a_random_choice() -> None:
    capped = head(max_regions_per_image=2)
    chosen = set()
    for _ in range(20):
        image, anchor = capped.choose_regions(torch.tensor([[0, 0, -1, 1, 0], [-1, 2, -1, -1, -1]]))
        assert image.tolist() == [0, 0, 1]
        assert anchor[2] == 1
        chosen |= set(anchor[:2].tolist())
    assert chosen == {0, 1, 3, 4}


def test_the_temperature_starts_as_configured(seen: Seen) -> None:
    run_head([[0] * 5] * 2, temperature=0.2)
    assert seen.temperature.item() == pytest.approx(0.2)


def test_the_temperature_has_a_floor(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.math, "log", lambda _: -50.0)
    run_head([[0] * 5] * 2)
    assert seen.temperature.item() == pytest.approx(0.01)


def test_a_temperature_below_the_floor_is_refused() -> None:
    with pytest.raises(ValueError, match=r"MODEL\.INTER_IMAGE\.TEMPERATURE is 0\.0"):
        head(temperature=0.0)


def test_the_weight_scales_the_loss(seen: Seen) -> None:
    once = run_head([[0] * 5] * 2)["loss_inter_image"]
    torch.testing.assert_close(run_head([[0] * 5] * 2, weight=2.5)["loss_inter_image"], 2.5 * once)
