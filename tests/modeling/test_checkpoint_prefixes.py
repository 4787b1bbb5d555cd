from __future__ import annotations

from torch import nn

from glipv2_d2.modeling.checkpoint_prefixes import excluded_prefixes


class Pretrained(nn.Module):
    checkpoint_excluded = ("body.", "head.weight")


def test_prefixes_are_relative_to_the_model() -> None:
    model = nn.ModuleDict({"first": nn.Sequential(nn.ReLU(), Pretrained()), "second": Pretrained()})
    assert excluded_prefixes(model) == (
        *("first.1.body.", "first.1.head.weight"),
        *("second.body.", "second.head.weight"),
    )


def test_other_modules_exclude_nothing() -> None:
    assert excluded_prefixes(nn.Linear(2, 2)) == ()
