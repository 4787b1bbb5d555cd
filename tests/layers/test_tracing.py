from __future__ import annotations

from glipv2_d2.layers.tracing import computed_as_recorded, is_tracing


def test_a_comparison_computes_as_recorded_until_it_ends() -> None:
    with computed_as_recorded():
        within = is_tracing()
    assert within and not is_tracing()
