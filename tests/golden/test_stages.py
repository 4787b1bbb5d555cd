"""Every stage of the network equals the reference's, on every golden directory."""

from __future__ import annotations

import re

import pytest
import torch
from helpers import tolerances
from helpers.golden import LEVELS, Golden, golden_directories, load_golden

GOLDENS = [load_golden(directory) for directory in golden_directories()]


def cases(pattern: str) -> list:
    """(golden, key) for every stored array whose whole key matches."""
    return [
        pytest.param(golden, key, id=f"{golden}-{key}")
        for golden in GOLDENS
        for key in golden.arrays
        if re.fullmatch(pattern, key)
    ]


def assert_close(ours: torch.Tensor, reference: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, reference, atol=tolerance, rtol=0)


@pytest.mark.parametrize("golden", GOLDENS, ids=repr)
def test_preprocessed_images_are_the_references(golden: Golden) -> None:
    batch = golden.stages("one")["images"]
    height, width = golden.arrays["in/chelsea_tensor"].shape[1:]
    assert list(batch.tensor.shape) == golden.meta["one_batch_shape"]
    assert_close(batch.tensor[0, :, :height, :width], golden.tensor("in/chelsea_tensor"), 1e-5)


@pytest.mark.parametrize("golden", GOLDENS, ids=repr)
def test_tokens_of_class_names_are_the_references(golden: Golden) -> None:
    tokens = golden.stages("one")["fused"].tokens
    length = tokens.input_ids.shape[1]
    assert tokens.prompts[0].text == golden.meta["caption"]
    assert tokens.input_ids[0].tolist() == golden.arrays["txt/input_ids"][0, :length].tolist()
    assert golden.arrays["txt/attention_mask"].sum() == length
    ours = [row.nonzero()[:, 0].tolist() for row in tokens.positive_maps[0]]
    assert ours == list(golden.meta["label_to_tokens"].values())


@pytest.mark.parametrize(("golden", "key"), cases("(one|two)/swin/stage[345]"))
def test_swin_output(golden: Golden, key: str) -> None:
    images, _, stage = key.split("/")
    ours = golden.stages(images)["bottom_up"][f"p{int(stage[-1]) - 2}"]
    assert_close(ours, golden.tensor(key), tolerances.FEATURES)


@pytest.mark.parametrize(("golden", "key"), cases("(one|two)/fpn/p."))
def test_fpn_output(golden: Golden, key: str) -> None:
    images, _, level = key.split("/")
    assert_close(
        golden.stages(images)["fused"].features[level], golden.tensor(key), tolerances.FEATURES
    )


@pytest.mark.parametrize(("golden", "key"), cases("(one|two)/lang/hidden"))
def test_language_output(golden: Golden, key: str) -> None:
    hidden = golden.stages(key.split("/")[0])["fused"].text.hidden
    assert_close(hidden, golden.tensor(key)[:, : hidden.shape[1]], tolerances.FEATURES)


@pytest.mark.parametrize(("golden", "key"), cases(r"(one|two)/tower\d+_\w+/(p.|hidden)"))
def test_fused_head_module_output(golden: Golden, key: str) -> None:
    images, module, what = key.split("/")
    index = int(re.search(r"\d+", module).group())
    features, text = golden.stages(images)["head_states"][index]
    if what == "hidden":
        length = text.hidden.shape[1]
        assert_close(text.hidden, golden.tensor(key)[:, :length], tolerances.FEATURES)
    else:
        assert_close(features[LEVELS.index(what)], golden.tensor(key), tolerances.FEATURES)


@pytest.mark.parametrize(("golden", "key"), cases("(one|two)/head/dot_product_logits/p."))
def test_region_word_logits(golden: Golden, key: str) -> None:
    images, _, _, level = key.split("/")
    ours = golden.stages(images)["predictions"].token_logits_per_level[LEVELS.index(level)]
    length = min(ours.shape[2], golden.arrays[key].shape[2])
    assert_close(ours[..., :length], golden.tensor(key)[..., :length], tolerances.LOGITS)


@pytest.mark.parametrize(("golden", "key"), cases("(one|two)/head/bbox_reg/p."))
def test_box_deltas(golden: Golden, key: str) -> None:
    images, _, _, level = key.split("/")
    ours = golden.stages(images)["predictions"].box_deltas_per_level[LEVELS.index(level)]
    reference = golden.tensor(key).flatten(2).transpose(1, 2)
    assert_close(ours, reference, tolerances.BOX_DELTAS)


@pytest.mark.parametrize(("golden", "key"), cases("(one|two)/head/centerness/p."))
def test_centerness(golden: Golden, key: str) -> None:
    images, _, _, level = key.split("/")
    ours = golden.stages(images)["predictions"].centerness_per_level[LEVELS.index(level)]
    assert_close(ours, golden.tensor(key).flatten(1), tolerances.CENTERNESS)


@pytest.mark.parametrize(("golden", "key"), cases("one/anchors/p."))
def test_anchors(golden: Golden, key: str) -> None:
    level = LEVELS.index(key.split("/")[2])
    ours = golden.stages("one")["predictions"].anchors_per_level[level]
    assert_close(ours, golden.tensor(key), 0.0)
