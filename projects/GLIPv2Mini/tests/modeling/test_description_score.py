"""Scores of place, size and colour."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from glipv2_d2.structures import Prompt
from glipv2_d2.text.prompts import demo_prompt
from glipv2_d2.text.tokenizer import Tokenizer
from glipv2_mini.modeling.colors import color_logits
from glipv2_mini.modeling.description_score import Descriptions, DescriptionScore, describe
from glipv2_mini.text.phrases import COLOR_NAMES

# The same place and size.
BOX = [10.0, 10, 49, 49]
LEFT_BOX, RIGHT_BOX = [10.0, 50, 49, 89], [200.0, 50, 239, 89]


def descriptions(*words: tuple[tuple[float, float, float], set[str]]) -> Descriptions:
    """Of one image: the direction and the colours of each word."""
    directions = torch.tensor([direction for direction, _ in words])[None]
    colors = torch.tensor([[float(name in own) for name in COLOR_NAMES] for _, own in words])
    return Descriptions(directions, colors[None])


def color_probs(*shares: dict[str, float]) -> Tensor:
    """(1, A, 11) of boxes; the rest is gray."""
    rows = [{**own, "gray": own.get("gray", 0) + 1 - sum(own.values())} for own in shares]
    return torch.tensor([[[row.get(name, 0.0) for name in COLOR_NAMES] for row in rows]])


def score(
    colors: set[str],
    *shares: dict[str, float],
    direction: tuple[float, float, float] = (0.0, 0.0, 0.0),
    boxes: list[list[float]] | None = None,
) -> list[float]:
    """The logits of one word for boxes with logits of 2 and shares of colours."""
    boxes = boxes or [BOX] * len(shares)
    (after,) = DescriptionScore()(
        [torch.full((1, len(shares), 1), 2.0)],
        torch.tensor([boxes]),
        color_probs(*shares),
        descriptions((direction, colors)),
    )
    return after[0, :, 0].tolist()


def test_without_description_nothing_changes() -> None:
    assert score(set(), {"red": 0.5}, {"blue": 1.0}) == pytest.approx([2.0, 2.0], abs=1e-6)


def test_the_box_with_the_colour_wins() -> None:
    red, blue = score({"red"}, {"red": 0.4}, {"blue": 0.4})
    assert red > 2 > blue and red > blue + 2


def test_of_two_boxes_the_one_with_more_of_the_colour_than_usual_wins() -> None:
    """Gray is usual in photos, red is not."""
    gray, other = score({"gray"}, {"gray": 0.9}, {"red": 0.7})
    assert gray > other
    red, some = score({"red"}, {"red": 0.4}, {"red": 0.1})
    assert red > some > 2


def test_two_colours_need_both() -> None:
    both, black, white = score(
        {"black", "white"}, {"black": 0.5, "white": 0.5}, {"black": 1.0}, {"white": 1.0}
    )
    assert both > max(black, white)
    torch.testing.assert_close(
        torch.tensor(both - 2),
        (color_logits(color_probs({"black": 0.5, "white": 0.5}))[0, 0, [0, 9]]).mean(),
    )


def test_place_and_colour_add_up() -> None:
    """Of two on the left the red one wins, and of two red ones the left."""
    boxes = [LEFT_BOX, LEFT_BOX, RIGHT_BOX]
    shares = ({"red": 0.4}, {"blue": 0.4}, {"red": 0.4})
    left_red, left_blue, right_red = score(
        {"red"}, *shares, direction=(-1.0, 0.0, 0.0), boxes=boxes
    )
    assert left_red > left_blue + 1 and left_red > right_red + 1


def random_inputs() -> tuple[list[Tensor], Tensor, Tensor, Descriptions]:
    """Two levels of one image, and words with and without descriptions."""
    random = torch.Generator().manual_seed(0)
    corners = 200 * torch.rand(1, 7, 2, generator=random)
    boxes = torch.cat([corners, corners + 20 + 60 * torch.rand(1, 7, 2, generator=random)], dim=-1)
    colors = torch.rand(1, 7, 11, generator=random).softmax(dim=-1)
    colors[0, 0] = 0
    words = descriptions(
        ((0.0, 0.0, 0.0), set()),
        ((-1.0, 0.0, 0.0), set()),
        ((0.0, 0.0, 0.0), {"red"}),
        ((0.0, 0.7, 0.7), {"black", "white"}),
    )
    logits = torch.randn(1, 7, 4, generator=random)
    return [logits[:, :5], logits[:, 5:]], boxes, colors, words


def test_bfloat16_autocast_gives_finite_logits_near_those_of_float32() -> None:
    levels, *others = random_inputs()
    expected = DescriptionScore()(levels, *others)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = DescriptionScore()([level.bfloat16() for level in levels], *others)
    for ours, theirs, level in zip(found, expected, levels, strict=True):
        assert ours.dtype == torch.float32 and ours.shape == level.shape
        torch.testing.assert_close(ours, theirs, atol=0.1, rtol=0.02)


@pytest.mark.parametrize("is_described", [True, False])
def test_weights_and_logits_receive_gradients(is_described: bool) -> None:
    """Distributed training waits for all of them, also without descriptions."""
    levels, boxes, colors, words = random_inputs()
    if not is_described:
        words = Descriptions(words.directions * 0, words.colors * 0)
    for level in levels:
        level.requires_grad_()
    module = DescriptionScore()
    torch.cat(module(levels, boxes, colors, words), dim=1).square().sum().backward()
    assert all(level.grad.all() for level in levels)
    for parameter in module.parameters():
        assert parameter.grad.isfinite().all()
        assert bool(parameter.grad.any()) == is_described


def test_the_tokens_of_a_label_have_its_description_and_others_zeros() -> None:
    text = "the red dog and the bus on the left are near a big dark gray car"
    phrases = ["the red dog", "the bus on the left"]
    spans = tuple(((text.index(x), text.index(x) + len(x)),) for x in phrases)
    tokens = Tokenizer()([Prompt(text, spans, (0, 1)), demo_prompt(["red panda", "cat"])])
    found = describe(tokens)
    words = text.split()
    expected = torch.zeros(2, tokens.input_ids.shape[1], 3 + len(COLOR_NAMES))
    # After [CLS].
    start, end = words.index("red"), words.index("left") + 2
    expected[0, start : start + 3, 3 + COLOR_NAMES.index("red")] = 1
    expected[0, end - 5 : end, 0] = -1
    assert torch.equal(found, expected)


def test_the_spans_of_a_split_label_are_one_phrase() -> None:
    text = "the left and right dog"
    prompt = Prompt(text, (((0, 8), (19, 22)),), (0,))
    found = Descriptions.split(describe(Tokenizer()([prompt])))
    assert found.directions[0, :, 0].tolist() == [0, -1, -1, 0, 0, -1, 0]


def test_a_prompt_without_labels_has_no_description() -> None:
    question = Prompt("what is the red thing on the left?", (), (), is_question=True)
    found = Descriptions.split(describe(Tokenizer()([question])))
    assert found.directions.shape[-1] == 3 and found.colors.shape[-1] == 11
    assert not found.directions.any() and not found.colors.any()
