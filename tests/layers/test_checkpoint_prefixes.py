from __future__ import annotations

from torch import nn

from glipv2_d2.layers.checkpoint_prefixes import (
    CheckpointPrefixes,
    excluded_prefixes,
    loss_only_prefixes,
    optional_prefixes,
)


class Pretrained(CheckpointPrefixes):
    checkpoint_excluded = ("body.", "head.weight")


class WithOptionalParts(nn.ModuleDict, CheckpointPrefixes):
    checkpoint_optional = ("masks.", "losses.")
    checkpoint_loss_only = ("losses.",)


def test_prefixes_are_relative_to_the_model() -> None:
    model = nn.ModuleDict({"first": nn.Sequential(nn.ReLU(), Pretrained()), "second": Pretrained()})
    assert excluded_prefixes(model) == (
        *("first.1.body.", "first.1.head.weight"),
        *("second.body.", "second.head.weight"),
    )


def test_a_model_and_its_parts_contribute_prefixes() -> None:
    model = WithOptionalParts({"part": WithOptionalParts()})
    assert optional_prefixes(model) == ("masks.", "losses.", "part.masks.", "part.losses.")
    assert loss_only_prefixes(model) == ("losses.", "part.losses.")


def test_other_modules_have_no_prefixes() -> None:
    for prefixes in (excluded_prefixes, optional_prefixes, loss_only_prefixes):
        assert prefixes(nn.Linear(2, 2)) == ()
