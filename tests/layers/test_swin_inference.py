"""Swin stages against Detectron2's, with and without gradients."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from detectron2.modeling.backbone.swin import BasicLayer, PatchMerging, WindowAttention
from torch import Tensor

from glipv2_d2.layers import swin_inference
from glipv2_d2.layers.swin_inference import FastSwinStage, FastWindowAttention

CHANNELS = 32


def make_stages(**kwargs: Any) -> tuple[FastSwinStage, BasicLayer]:
    """Our stage and Detectron2's, with an unshifted and a shifted block and the same weights."""
    torch.manual_seed(0)
    theirs = BasicLayer(CHANNELS, 2, num_heads=2, window_size=4, downsample=PatchMerging, **kwargs)
    for block in theirs.blocks:
        torch.nn.init.normal_(block.attn.relative_position_bias_table)
    return FastSwinStage(theirs), theirs


@pytest.mark.parametrize("num_masks", [0, 3])
@pytest.mark.parametrize("method", ["_attend_by_products", "_attend_fused"])
def test_both_forms_of_window_attention_equal_detectron2s(
    method: str, num_masks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A CPU uses the first.
    selected = getattr(FastWindowAttention, method)
    monkeypatch.setattr(FastWindowAttention, "_attend_by_products", selected)
    torch.manual_seed(0)
    theirs = WindowAttention(8, (4, 4), num_heads=2)
    torch.nn.init.normal_(theirs.relative_position_bias_table)
    # Two images of three windows each.
    windows = torch.randn(6, 16, 8)
    mask = torch.randn(num_masks, 16, 16) if num_masks else None
    with torch.no_grad():
        ours = FastWindowAttention.from_detectron2(theirs)(windows, mask)
    torch.testing.assert_close(ours, theirs(windows, mask), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (13, 22), (4, 3), (1, 1), (9, 2)])
@pytest.mark.parametrize("training", [False, True])
def test_results_and_gradients_equal_detectron2s(size: tuple[int, int], training: bool) -> None:
    ours, theirs = (stage.double().train(training) for stage in make_stages(drop_path=0.3))
    x = torch.randn(3, size[0] * size[1], CHANNELS, dtype=torch.float64, requires_grad=True)
    results = []
    for stage in (ours, theirs):
        torch.manual_seed(1)  # drop path
        out = stage(x, *size)
        loss = out[0].square().sum() + out[3].square().sum()
        gradients = torch.autograd.grad(loss, [x, *stage.parameters()])
        results.append((out, gradients))
    (our_out, our_gradients), (their_out, their_gradients) = results
    torch.testing.assert_close(our_out, their_out)
    torch.testing.assert_close(our_gradients, their_gradients)


@pytest.mark.parametrize("size", [(8, 8), (13, 22), (4, 3), (1, 1), (9, 2)])
@pytest.mark.parametrize("num_images", [1, 3])
@pytest.mark.parametrize("elements", [1, 2000, 10**9], ids=["single rows", "uneven", "one chunk"])
def test_results_without_gradients_equal_detectron2s(
    size: tuple[int, int], num_images: int, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = (stage.double().eval() for stage in make_stages())
    x = torch.randn(num_images, size[0] * size[1], CHANNELS, dtype=torch.float64)
    expected = theirs(x, *size)
    monkeypatch.setitem(swin_inference._MAX_CHUNK_ELEMENTS, "cpu", elements)
    before = x.clone()
    channels_first_in_memory = x.transpose(1, 2).contiguous().transpose(1, 2)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, *size), expected)
        torch.testing.assert_close(ours(channels_first_in_memory, *size), expected)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_rounding_in_half_precision_is_as_small_as_detectron2s(dtype: torch.dtype) -> None:
    """Also with fp32 inputs, where only products are rounded, as on CUDA."""
    ours, theirs = (stage.eval() for stage in make_stages())
    x = torch.randn(2, 13 * 22, CHANNELS)
    exact = theirs(x, 13, 22)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = theirs(x.to(dtype), 13, 22)[0]
        with torch.no_grad():
            result = ours(x.to(dtype), 13, 22)[0]
    assert result.dtype == expected.dtype
    error, their_error = ((y - exact).norm().item() for y in (result, expected))
    assert 0 < error < 1.25 * their_error


@pytest.mark.parametrize("with_gradients", [False, True])
def test_threads_with_maps_of_different_sizes_do_not_affect_each_other(
    with_gradients: bool, eager_switching: None
) -> None:
    stage, _ = make_stages()
    stage.eval()
    sizes = [(8, 8), (4, 16), (16, 4), (5, 7)] * 4
    inputs = [torch.randn(1, height * width, CHANNELS) for height, width in sizes]

    def run(x: Tensor, size: tuple[int, int]) -> Tensor:
        with torch.set_grad_enabled(with_gradients):
            return stage(x, *size)[0]

    expected = [run(x, size) for x, size in zip(inputs, sizes, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        for result, alone in zip(pool.map(run, inputs, sizes), expected, strict=True):
            torch.testing.assert_close(result, alone)


def test_mask_of_a_size_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stage, _ = make_stages()
    computed = []

    def shift_mask(*args: Any) -> Tensor:
        computed.append(args)
        return compute(*args)

    compute = swin_inference.shift_mask
    monkeypatch.setattr(swin_inference, "shift_mask", shift_mask)
    for _ in range(2):
        stage(torch.randn(1, 13 * 22, CHANNELS), 13, 22)
    assert len(computed) == 1


def test_number_of_cached_masks_is_limited() -> None:
    stage, _ = make_stages()
    for height in range(4, 60, 4):
        stage.mask(height, 8, torch.device("cpu"))
    assert len(stage.masks) < 5
