from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.structures import Instances
from helpers.queries import fused_features
from torch import Tensor

from glipv2_d2.modeling.heads import inter_image as module
from glipv2_d2.modeling.heads.inter_image import (
    InterImageHead,
    contrasted_tokens,
    label_name_ids,
    name_ids,
)
from glipv2_d2.modeling.losses.inter_image import NO_NAME, NamedVectors, propagate_labels
from glipv2_d2.structures import DenseTargets, Prompt, TextFeatures, TokenBatch
from glipv2_d2.text.prompts import caption_prompt, class_prompt
from glipv2_d2.text.tokenizer import Tokenizer

# [CLS] cat . traffic light [SEP]
NAMES = class_prompt(["cat", "traffic light"])
# The same names in other spellings, of another dataset; there is no cat in the image.
OTHER_NAMES = class_prompt(["dog", "Cat", "Traffic_light_(road)"], classes=[40, 50, 60])
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


def positive_tokens(image: int, *gt: Instances, tokens: TokenBatch, box: int) -> list[list[bool]]:
    """Which tokens of every image have the name of a box."""
    gt_names, token_names = name_ids(tokens, gt)
    return (
        propagate_labels(gt_names[image][box : box + 1], token_names.flatten())
        .view(token_names.shape)
        .tolist()
    )


def test_the_tokens_of_a_name_are_positives_in_other_images_even_as_a_negative_there() -> None:
    tokens = tokenize(NAMES, OTHER_NAMES)
    is_positive = positive_tokens(0, ground_truth(1, 0), ground_truth(40), tokens=tokens, box=1)
    # [CLS] dog . cat . traffic light [SEP]
    assert is_positive[1] == [False, False, False, True, False, False, False, False]


def test_all_tokens_of_a_name_are_positives() -> None:
    tokens = tokenize(NAMES, OTHER_NAMES)
    is_positive = positive_tokens(1, ground_truth(0), ground_truth(40, 60), tokens=tokens, box=1)
    # [CLS] cat . traffic light [SEP]
    assert is_positive[0] == [False, False, False, True, True, False, False, False]


def test_captions_have_no_names() -> None:
    tokens = tokenize(CAPTION, class_prompt(["a cat", "cat"]))
    gt_names, token_names = name_ids(tokens, [ground_truth(0), ground_truth(1)])
    assert gt_names[0].tolist() == [NO_NAME]
    assert set(token_names[0].tolist()) == {NO_NAME}


def test_a_name_has_the_same_id_in_every_process_and_run() -> None:
    """Processes exchange the ids; Python's own hash of a string differs between them.

    ``int.from_bytes(hashlib.blake2b(b"cat", digest_size=8).digest(), "big") >> 1``
    """
    assert label_name_ids(class_prompt(["cat", "Traffic_Light"])) == [
        1843079001574132759,
        813670082399962353,
    ]


def test_class_names_and_all_words_of_captions_are_contrasted() -> None:
    is_contrasted = contrasted_tokens(tokenize(NAMES, CAPTION))
    assert is_contrasted[0].tolist() == [False, True, False, True, True, False]
    assert is_contrasted[1].tolist() == [False, True, True, True, False, False]


class LossArguments:
    """Records the arguments of the loss."""

    def __call__(
        self, regions: NamedVectors, tokens: NamedVectors, is_own_token: Tensor, temperature: Tensor
    ) -> Tensor:
        self.regions, self.tokens, self.is_own_token = regions, tokens, is_own_token
        self.temperature = temperature
        return regions.vectors.sum() + tokens.vectors.sum() + temperature.sum()


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> LossArguments:
    passed = LossArguments()
    monkeypatch.setattr(module, "inter_image_loss", passed)
    return passed


def run_head(matched_idxs: list[list[int]], **arguments: Any) -> dict[str, Tensor]:
    """Two images of two levels (4 and 1 locations) with two ground truths each."""
    tokens = tokenize(NAMES, CAPTION)
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
    fused = fused_features(
        text=TextFeatures(hidden, tokens.mask),
        tokens=tokens,
        levels=features,
        gt_instances=[ground_truth(0, 1), ground_truth(0, 0)],
    )
    targets = DenseTargets(matched, token_targets, torch.zeros(2, 5, 4))
    return head(**arguments).losses(fused, targets)


def test_anchors_of_the_first_ground_truth_are_used(passed: LossArguments) -> None:
    """The reference drops them."""
    run_head([[0, -1, -1, 1, -1], [-1, -1, -1, -1, 0]])
    assert passed.regions.images.tolist() == [0, 0, 1]


def test_regions_are_the_feature_vectors_at_their_anchors(
    passed: LossArguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InterImageHead, "_project", staticmethod(lambda _, vectors: vectors))
    run_head([[0, -1, -1, 1, -1], [-1, -1, -1, -1, 0]])
    assert passed.regions.vectors.tolist() == [[0, 4], [3, 7], [102, 103]]


def test_the_block_of_an_image_is_its_map_of_boxes_to_tokens(passed: LossArguments) -> None:
    run_head([[0, -1, -1, 1, -1], [-1, -1, -1, -1, 0]])
    assert passed.tokens.images.tolist() == [0, 0, 0, 1, 1, 1]
    assert passed.is_own_token[:2, :3].tolist() == [[True, False, False], [False, True, True]]
    assert passed.is_own_token[2, 3:].tolist() == [True, True, False]


def test_vectors_are_normalised(passed: LossArguments) -> None:
    run_head([[0, -1, -1, 1, -1], [-1, -1, -1, -1, 0]])
    for vectors in (passed.regions.vectors, passed.tokens.vectors):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))


def test_a_random_subset_is_sampled_beyond_the_limit_of_regions() -> None:
    limited = head(max_regions_per_image=2)
    sampled = set()
    for _ in range(20):
        image, anchor = limited.sample_regions(
            torch.tensor([[0, 0, -1, 1, 0], [-1, 2, -1, -1, -1]])
        )
        assert image.tolist() == [0, 0, 1]
        assert anchor[2] == 1
        sampled |= set(anchor[:2].tolist())
    assert sampled == {0, 1, 3, 4}


def test_the_temperature_starts_as_configured(passed: LossArguments) -> None:
    run_head([[0] * 5] * 2, temperature=0.2)
    assert passed.temperature.item() == pytest.approx(0.2)


def test_the_temperature_has_a_minimum(
    passed: LossArguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.math, "log", lambda _: -50.0)
    run_head([[0] * 5] * 2)
    assert passed.temperature.item() == pytest.approx(0.01)


def test_an_initial_temperature_below_the_minimum_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"temperature is 0\.0"):
        head(temperature=0.0)


def test_the_weight_scales_the_loss(passed: LossArguments) -> None:
    once = run_head([[0] * 5] * 2)["loss_inter_image"]
    torch.testing.assert_close(run_head([[0] * 5] * 2, weight=2.5)["loss_inter_image"], 2.5 * once)
