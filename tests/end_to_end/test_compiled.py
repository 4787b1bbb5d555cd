"""Models under torch.compile give the numbers of eager mode.

The backends "eager" and "aot_eager" run the traced graphs without a compiler: a difference is an
error in tracing. "aot_eager" also decomposes the graphs into basic operations, as compilers do.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from helpers.models import random_image, tiny_model

from glipv2_d2.structures import TextFeatures


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@torch.no_grad()
def test_a_compiled_model_gives_the_same_detections() -> None:
    """The second call uses cached text features with another image."""
    model = tiny_model(
        *("MODEL.GROUNDING.SCORE_THRESH", 0.0, "MODEL.GROUNDING.DETECTIONS_PER_PROMPT", 1000)
    )
    compiled = torch.compile(model, backend="eager")
    for seed in range(2):
        inputs = [{"image": random_image(seed=seed), "classes": ["cat", "hot dog"]}]
        ours, expected = compiled(inputs)[0]["instances"], model(inputs)[0]["instances"]
        torch.testing.assert_close(ours.scores, expected.scores, atol=1e-5, rtol=0)
        assert torch.equal(ours.pred_classes, expected.pred_classes)
        torch.testing.assert_close(
            ours.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-3, rtol=0
        )


@torch.no_grad()
def test_a_compiled_fused_head_is_one_graph_and_gives_the_same_features() -> None:
    """As in glipv2 benchmark --compile; with ``fullgraph`` a graph break is an error."""
    head = tiny_model().fused_head
    features = {f"p{k}": torch.randn(1, 16, 256 >> k, 192 >> k) for k in (3, 4, 5)}
    mask = torch.ones(1, 6, dtype=torch.bool)
    language = TextFeatures(torch.randn(1, 6, 16), mask)
    compiled = torch.compile(head, backend="aot_eager", fullgraph=True)
    ours, our_text = compiled(features, language)
    expected, expected_text = head(features, language)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(our_text.hidden, expected_text.hidden)


def test_a_compiled_fused_head_has_the_same_gradients() -> None:
    head = tiny_model().fused_head.train()
    for part in head.modules():
        part.dropout = 0.0
    features = {f"p{k}": torch.randn(1, 16, 64 >> k, 64 >> k) for k in (3, 4)}
    language = TextFeatures(torch.randn(1, 6, 16), torch.ones(1, 6, dtype=torch.bool))
    gradients = []
    for run in (head, torch.compile(head, backend="aot_eager")):
        fused, text = run(features, language)
        loss = sum(x.square().sum() for x in (*fused.values(), text.hidden))
        gradients.append(torch.autograd.grad(loss, list(head.parameters())))
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_a_compiled_anchor_generator_gives_the_same_anchors() -> None:
    generator = tiny_model().proposal_generator.anchor_generator
    features = [torch.zeros(1, 1, 8 >> level or 1, 6 >> level or 1) for level in range(5)]
    compiled = torch.compile(generator, backend="aot_eager", fullgraph=True)
    for ours, expected in zip(compiled(features), generator(features), strict=True):
        assert torch.equal(ours, expected)
