from __future__ import annotations

import pytest
import torch

from glipv2_d2.checkpoint.name_table import NameTable

TABLE = NameTable(
    {"a.{n}.b.{m}.{p}": "x.{m}.y.{n}.{p}", "scale": "level.scale"},
    recomputed=["a.{n}.index"],
    ignored={"head.{rest}": "a head"},
)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("a.0.b.12.weight", "x.12.y.0.weight"),
        ("a.3.b.4.bias", "x.4.y.3.bias"),
        ("scale", "level.scale"),
    ],
)
def test_names_are_mapped_in_both_directions(left: str, right: str) -> None:
    assert TABLE.forward(left) == right
    assert TABLE.backward(right) == left


@pytest.mark.parametrize(
    "name",
    [
        "a.0.b.1.gamma",
        "a.x.b.1.bias",
        "pre.a.0.b.1.bias",
        "a.0.b.1.bias.more",
        "a.0xb.1.bias",  # a dot of a template is a dot
    ],
)
def test_a_template_matches_only_whole_names(name: str) -> None:
    assert TABLE.forward(name) is None


def test_every_name_of_a_state_dict_is_reported() -> None:
    names = ["a.0.b.1.bias", "a.2.index", "head.deep.weight", "odd"]
    tensors = {name: torch.tensor(i) for i, name in enumerate(names)}
    renamed, account = TABLE.rename(tensors)
    assert renamed == {"x.1.y.0.bias": tensors["a.0.b.1.bias"]}
    assert account.loaded == {"a.0.b.1.bias": "x.1.y.0.bias"}
    assert account.recomputed == ("a.2.index",)
    assert account.ignored == {"head.deep.weight": "a head"}
    assert account.unknown == ("odd",)
