from __future__ import annotations

import torch

from glipv2_d2.modeling.label_scores import LabelScores
from glipv2_d2.structures import DensePredictions


def random_predictions(seed: int = 0) -> DensePredictions:
    """Two images, levels of six and two anchors, four tokens."""
    g = torch.Generator().manual_seed(seed)
    sizes = (6, 2)
    return DensePredictions(
        [torch.randn(2, n, 4, generator=g) for n in sizes],
        [torch.randn(2, n, 4, generator=g) for n in sizes],
        [torch.randn(2, n, generator=g) for n in sizes],
        [torch.rand(n, 4, generator=g) for n in sizes],
    )


TWO_LABELS = torch.tensor([[False, True, True, False], [False, False, False, True]])


def test_the_score_of_a_label_is_the_mean_of_its_tokens() -> None:
    predictions = random_predictions()
    scores = LabelScores.of_image(predictions, 1, TWO_LABELS, "mean")
    probs = predictions.token_logits_per_level[0][1].sigmoid()
    expected = torch.stack([probs[:, 1:3].mean(dim=1), probs[:, 3]], dim=1)
    torch.testing.assert_close(scores.scores_per_level[0], expected)
    torch.testing.assert_close(
        scores.centerness_per_level[1], predictions.centerness_per_level[1][1].sigmoid()
    )


def test_a_running_mean_weights_all_parts_equally() -> None:
    parts = [
        LabelScores.of_image(random_predictions(seed), 0, TWO_LABELS, "mean") for seed in range(3)
    ]
    mean = parts[0].lerp(parts[1], 1 / 2).lerp(parts[2], 1 / 3)
    for field in ("scores_per_level", "centerness_per_level", "box_deltas_per_level"):
        for level in range(2):
            expected = torch.stack([getattr(part, field)[level] for part in parts]).mean(dim=0)
            torch.testing.assert_close(getattr(mean, field)[level], expected)
    assert mean.anchors_per_level is parts[0].anchors_per_level


def test_the_best_score_is_the_maximal_product_with_centerness() -> None:
    scores = LabelScores.of_image(random_predictions(), 0, TWO_LABELS, "max")
    products = [
        (level[a, 1] * centerness[a]).item()
        for level, centerness in zip(
            scores.scores_per_level, scores.centerness_per_level, strict=True
        )
        for a in range(len(level))
    ]
    assert abs(scores.best_scores()[1].item() - max(products) ** 0.5) < 1e-6
