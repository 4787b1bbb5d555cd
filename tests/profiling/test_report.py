from __future__ import annotations

import pytest

from glipv2_d2.profiling.report import summarize

RATES = {"product": 10.0, "convolution": 10.0, "copy": 100.0}


def test_summary_has_median_spread_floor_and_ratio() -> None:
    samples = [{"wall_s": x, "cpu_s": 2 * x} for x in (1.0, 2.0, 5.0)]
    products = {"product_flops": 10.0, "convolution_flops": 5.0, "bytes": 50.0}
    summary = summarize(samples, products, RATES)
    assert (summary["wall_s"], summary["spread_s"], summary["floor_s"]) == (2.0, 1.0, 2.0)
    assert summary["ratio"] == pytest.approx(2.0), "of the CPU time"


@pytest.mark.parametrize(
    "products", [None, {"product_flops": 0.01, "convolution_flops": 0.0, "bytes": 0.0}]
)
def test_stage_with_few_products_has_no_ratio(products: dict[str, float] | None) -> None:
    assert "ratio" not in summarize([{"wall_s": 1.0}], products, RATES)
