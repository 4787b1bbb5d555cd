from __future__ import annotations

import torch
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from glipv2_d2.modeling.fusion.dynamic_conv import DynamicConv, reinterpret_memory


def pyramid() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 8, size, size, generator=generator) for size in (8, 4, 2)]


def test_equals_the_reference_computation_with_torchvisions_operator() -> None:
    torch.manual_seed(0)
    layer, features = DynamicConv(channels=8, num_groups=4), pyramid()
    ours = layer(features)
    for level, x in enumerate(features):
        steering = layer.offset(x)
        offsets, modulation = steering[:, :18], steering[:, 18:].sigmoid()

        def branch(part, source, stride, at_size=None, o=offsets, m=modulation):
            if at_size is not None:  # the kernel reads the start of the finer map's memory
                h, w = at_size
                o = o.reshape(2, -1)[:, : 18 * h * w].reshape(2, 18, h, w)
                m = m.reshape(2, -1)[:, : 9 * h * w].reshape(2, 9, h, w)
            conv = part.conv
            out = deform_conv2d(source, o, conv.weight, conv.bias, stride=stride, padding=1, mask=m)
            return part.norm(out)

        outputs = [branch(layer.same, x, 1)]
        if level > 0:
            outputs.append(branch(layer.finer, features[level - 1], 2))
        if level < 2:
            coarse = features[level + 1]
            out = branch(layer.coarser, coarse, 1, at_size=coarse.shape[-2:])
            outputs.append(
                F.interpolate(out, size=x.shape[-2:], mode="bilinear", align_corners=True)
            )
        weights = [
            (layer.scale_attention(f.mean((2, 3), keepdim=True)).relu() + 3).clamp(0, 6) / 6
            for f in outputs
        ]
        mean = torch.stack([w * f for w, f in zip(weights, outputs, strict=True)]).mean(dim=0)
        torch.testing.assert_close(ours[level], layer.dynamic_relu(mean), atol=1e-5, rtol=1e-4)


def test_inputs_are_not_modified() -> None:
    features = pyramid()
    copies = [x.clone() for x in features]
    DynamicConv(channels=8, num_groups=4)(features)
    assert all(torch.equal(x, copy) for x, copy in zip(features, copies, strict=True))


def test_reinterpreting_memory_works_per_image_of_the_batch() -> None:
    maps = torch.arange(2 * 2 * 4 * 4).view(2, 2, 4, 4)
    assert reinterpret_memory(maps, (2, 2))[1].flatten().tolist() == list(range(32, 40))
