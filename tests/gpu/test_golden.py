"""The reference's numbers on CUDA."""

from __future__ import annotations

import pytest
import torch
from helpers.device_stages import DEVICES
from helpers.golden import ASSETS, load_golden


@pytest.mark.parametrize("device", DEVICES)
def test_detections_of_a_photo_are_the_references(device: str) -> None:
    golden = load_golden(ASSETS / "tiny_T_s0")
    model = golden.build_model().eval().to(device)
    width, height = golden.arrays["one/resized_det0/size_wh"].tolist()
    size = {"width": width, "height": height}
    x = golden.inputs("one")[0] | size | {"classes": golden.meta["categories"]}
    with torch.no_grad():
        found = model([x])[0]["instances"].to("cpu")
    # The reference does not sort, and its corners are inclusive.
    scores = golden.tensor("one/resized_det0/scores").sort(descending=True).values
    torch.testing.assert_close(found.scores, scores, atol=1e-4, rtol=0)
    boxes = found.pred_boxes.tensor - torch.tensor([0.0, 0.0, 1.0, 1.0])
    expected = golden.tensor("one/resized_det0/boxes")
    by_column = [x.sort(dim=0).values for x in (boxes, expected)]
    torch.testing.assert_close(*by_column, atol=2e-2, rtol=0)
