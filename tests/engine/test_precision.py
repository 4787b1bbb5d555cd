from __future__ import annotations

import pytest
import torch
from helpers.models import tiny_cfg

from glipv2_d2.engine.precision import inference_precision


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)], ids=["fp32", "bf16"]
)
def test_products_run_in_the_precision_of_the_config(name: str, dtype: torch.dtype) -> None:
    with inference_precision(tiny_cfg("TEST.PRECISION", name)):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is dtype


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"TEST.PRECISION is 'int8'.*'bf16'"):
        inference_precision(tiny_cfg("TEST.PRECISION", "int8"))
