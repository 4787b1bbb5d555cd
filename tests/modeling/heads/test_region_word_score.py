import math

import torch

from glipv2_d2.modeling.heads.region_word_score import CosineScore, DotProductScore
from glipv2_d2.structures import TextFeatures


def make_inputs() -> tuple[DotProductScore, torch.Tensor, TextFeatures]:
    torch.manual_seed(0)
    score = DotProductScore(visual_dim=6, language_dim=10, prior_prob=0.01)
    with torch.no_grad():
        score.log_scale.fill_(0.3)
        score.bias_language.normal_()
    text = TextFeatures(torch.randn(2, 4, 10), torch.ones(2, 4, dtype=torch.bool))
    return score, torch.randn(2, 5, 6), text


def test_dot_product_scores_equal_the_formula() -> None:
    score, regions, text = make_inputs()
    ours = score([regions], text)[0]
    for n in range(2):
        for t in range(4):
            token = text.hidden[n, t] / text.hidden[n, t].norm()
            projected = score.projection.weight @ (token / 2) + score.projection.bias
            bias = token @ score.bias_language + score.bias
            expected = regions[n] @ projected / math.exp(0.3) + bias
            torch.testing.assert_close(ours[n, :, t], expected, atol=1e-5, rtol=1e-5)


def test_untrained_scores_are_the_prior() -> None:
    score = DotProductScore(visual_dim=6, language_dim=10, prior_prob=0.01)
    text = TextFeatures(torch.randn(1, 3, 10), torch.ones(1, 3, dtype=torch.bool))
    logits = score([torch.zeros(1, 2, 6)], text)[0]
    torch.testing.assert_close(logits.sigmoid(), torch.full((1, 2, 3), 0.01))


def test_the_norm_of_the_text_does_not_matter() -> None:
    score, regions, text = make_inputs()
    scaled = TextFeatures(text.hidden * 7, text.mask)
    torch.testing.assert_close(score([regions], text)[0], score([regions], scaled)[0])


def test_cosine_scores_equal_the_formula() -> None:
    _, regions, text = make_inputs()
    score = CosineScore(visual_dim=6, language_dim=10, prior_prob=0.01, log_scale=-1.0)
    ours = score([regions], text)[0]
    for n in range(2):
        for t in range(4):
            token = score.projection(text.hidden[n, t] / text.hidden[n, t].norm())
            cosine = torch.cosine_similarity(score.region_projection(regions[n]), token[None])
            expected = cosine * math.exp(1.0) + score.bias
            torch.testing.assert_close(ours[n, :, t], expected, atol=1e-5, rtol=1e-5)
