from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glipv2_d2.modeling.heads.mask_heads import Bottleneck, Hourglass, HourglassMaskHead


@pytest.fixture
def head() -> HourglassMaskHead:
    """With random values also for weights that are initialised to zero."""
    torch.manual_seed(0)
    head = HourglassMaskHead(dim=8, language_dim=5, num_hourglasses=2, norm="")
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(std=0.3)
    return head.double()


def pixels(head: HourglassMaskHead, regions: Tensor) -> Tensor:
    """The pixels that are compared with the text, (K, M, S, S)."""
    return F.relu(head.deconv(head.hourglasses(regions)))


def test_a_mask_has_twice_the_side_of_its_region(head: HourglassMaskHead) -> None:
    regions, text = torch.randn(3, 8, 14, 14).double(), torch.randn(3, 5).double()
    assert head(regions, text).shape == (3, 28, 28)


def test_the_mask_of_a_label_is_the_mean_of_the_masks_of_its_tokens(
    head: HourglassMaskHead,
) -> None:
    """The released code's formula for each token: x . Linear(w / 2) / exp(s) + w . b."""
    regions = torch.randn(1, 8, 4, 4).double()
    text = F.normalize(torch.randn(3, 5).double(), dim=-1)
    x = pixels(head, regions)[0]
    per_token = [
        torch.stack(
            [
                torch.stack([x[:, i, j] @ head.projection(token / 2) for j in range(8)])
                for i in range(8)
            ]
        )
        / head.log_scale.exp()
        + token @ head.bias_language
        for token in text
    ]
    mask = head(regions, text.mean(dim=0, keepdim=True))
    torch.testing.assert_close(mask[0], torch.stack(per_token).mean(dim=0))


def test_every_box_is_compared_with_its_own_text(head: HourglassMaskHead) -> None:
    regions, text = torch.randn(2, 8, 4, 4).double(), torch.randn(2, 5).double()
    together = head(regions, text)
    alone = [head(regions[i : i + 1], text[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_an_hourglass_adds_a_branch_at_half_the_resolution() -> None:
    torch.manual_seed(0)
    hourglass = Hourglass(4, norm="").double()
    with torch.no_grad():
        for parameter in hourglass.parameters():
            parameter.normal_(std=0.5)
    x = torch.randn(2, 4, 6, 6).double()
    coarser = F.max_pool2d(x, 2)
    for bottleneck in hourglass.coarser:
        coarser = bottleneck(coarser)
    upsampled = coarser.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(hourglass(x), (hourglass.same(x) + upsampled).clamp(min=0))


@pytest.mark.parametrize("norm", ["", "GN"])
def test_a_bottleneck_starts_as_the_identity(norm: str) -> None:
    x = torch.randn(2, 64, 6, 6)
    assert torch.equal(Bottleneck(64, norm)(x), x)


def test_a_region_of_an_odd_side_has_a_mask(head: HourglassMaskHead) -> None:
    assert head(torch.randn(1, 8, 7, 7).double(), torch.randn(1, 5).double()).shape == (1, 14, 14)


def test_initial_logits_of_a_full_size_head_are_small() -> None:
    """For features of unit variance through four hourglasses."""
    torch.manual_seed(0)
    head = HourglassMaskHead(dim=256, language_dim=768, num_hourglasses=4, norm="")
    text = F.normalize(torch.randn(2, 768), dim=-1)
    with torch.no_grad():
        assert head(torch.randn(2, 256, 14, 14), text).abs().mean() < 5


def test_the_product_is_in_full_precision_under_autocast() -> None:
    head = HourglassMaskHead(dim=8, language_dim=5, num_hourglasses=1, norm="")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(torch.randn(2, 8, 4, 4), torch.randn(2, 5))
    assert logits.dtype == torch.float32
