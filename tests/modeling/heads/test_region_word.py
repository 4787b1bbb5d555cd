import math

import torch

from glipv2_d2.modeling.heads.region_word import RegionWordScore
from glipv2_d2.structures import LanguageFeatures


def make_inputs() -> tuple[RegionWordScore, torch.Tensor, LanguageFeatures]:
    torch.manual_seed(0)
    score = RegionWordScore(visual_dim=6, language_dim=10, prior_prob=0.01)
    with torch.no_grad():
        score.log_scale.fill_(0.3)
        score.bias_language.normal_()
    language = LanguageFeatures(torch.randn(2, 4, 10), torch.ones(2, 4, dtype=torch.bool))
    return score, torch.randn(2, 5, 6), language


def test_equals_the_formula_written_out() -> None:
    score, regions, language = make_inputs()
    ours = score([regions], language)[0]
    for n in range(2):
        for t in range(4):
            word = language.hidden[n, t] / language.hidden[n, t].norm()
            projected = score.projection.weight @ (word / 2) + score.projection.bias
            bias = word @ score.bias_language + score.bias
            expected = regions[n] @ projected / math.exp(0.3) + bias
            torch.testing.assert_close(ours[n, :, t], expected, atol=1e-5, rtol=1e-5)


def test_untrained_scores_start_at_the_prior() -> None:
    score = RegionWordScore(visual_dim=6, language_dim=10, prior_prob=0.01)
    language = LanguageFeatures(torch.randn(1, 3, 10), torch.ones(1, 3, dtype=torch.bool))
    logits = score([torch.zeros(1, 2, 6)], language)[0]
    torch.testing.assert_close(logits.sigmoid(), torch.full((1, 2, 3), 0.01))


def test_longer_words_do_not_score_higher() -> None:
    score, regions, language = make_inputs()
    louder = LanguageFeatures(language.hidden * 7, language.mask)
    torch.testing.assert_close(score([regions], language)[0], score([regions], louder)[0])
