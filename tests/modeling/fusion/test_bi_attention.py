from __future__ import annotations

import pytest
import torch

from glipv2_d2.modeling.fusion.bi_attention import BiAttention, bi_attention

SIZES = {"visual_dim": 6, "language_dim": 10, "attention_dim": 16, "num_heads": 4}


def random_inputs() -> tuple[torch.Tensor, ...]:
    return torch.randn(2, 7, 6), torch.randn(2, 5, 10), torch.ones(2, 5).bool(), torch.rand(6)


def test_textbook_form_equals_torchs_attention_in_each_direction() -> None:
    torch.manual_seed(0)
    inputs = random_inputs()
    visual, text, _, scale = inputs
    projections = BiAttention(**SIZES, dropout=0.0).projections
    updated, text_update = bi_attention(*inputs, projections)

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (4, 4)).transpose(1, 2)

    query, key = heads(projections.visual_query(visual)), heads(projections.language_key(text))
    attend = torch.nn.functional.scaled_dot_product_attention
    to_image = attend(query, key, heads(projections.language_value(text)))
    to_text = attend(key, query, heads(projections.visual_value(visual)))
    expected = visual + scale * projections.visual_out(to_image.transpose(1, 2).flatten(2))
    torch.testing.assert_close(updated, expected)
    expected = projections.language_out(to_text.transpose(1, 2).flatten(2))
    torch.testing.assert_close(text_update, expected)


def test_module_uses_the_given_function_with_dropout_in_training_only() -> None:
    calls = []

    def function(*args: object) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(args[-1])
        return bi_attention(*args)

    attention = BiAttention(**SIZES, dropout=0.1, function=function)
    inputs = random_inputs()
    attention.train()(*inputs)
    attention.eval()(*inputs)
    assert calls == [0.1, 0.0]


def test_names_of_the_parameters_are_those_of_checkpoints() -> None:
    names = {name.partition(".")[0] for name in BiAttention(**SIZES, dropout=0.0).state_dict()}
    queries_and_values = {"visual_query", "visual_value", "visual_out"}
    assert names == queries_and_values | {"language_key", "language_value", "language_out"}


def test_width_must_divide_into_heads() -> None:
    with pytest.raises(ValueError, match="attention_dim 10 is not a multiple of num_heads 4"):
        BiAttention(**(SIZES | {"attention_dim": 10}), dropout=0.0)
