from __future__ import annotations

import numpy as np

from glipv2_d2.data_visualization import MARGIN, NEGATIVE_COLOR, draw_prompt, span_color
from glipv2_d2.structures import Prompt


def test_positives_are_coloured_negatives_grey_and_separators_plain() -> None:
    prompt = Prompt("cat. dog", (((0, 3),), ((5, 8),)), (0, 1))
    colors = [span_color(prompt, position, {0}) for position in (1, 3, 6)]
    assert colors[0] not in (None, NEGATIVE_COLOR)
    assert colors[1:] == [None, NEGATIVE_COLOR]


def test_long_prompts_are_wrapped() -> None:
    short = draw_prompt(Prompt("cat", (), ()), set(), 480)
    long = draw_prompt(Prompt("cat " * 100, (), ()), set(), 480)
    assert long.width == short.width == 480
    assert long.height > 3 * short.height
    assert (np.asarray(long)[:, -MARGIN:] == 255).all()
