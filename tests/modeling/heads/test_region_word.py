import math

import torch

from glipv2_d2.modeling.heads.region_word import (
    CLASSIFIER_INFERENCE_FACTOR,
    ClassifierScore,
    CosineScore,
    DotProductScore,
)
from glipv2_d2.structures import TextFeatures


def make_inputs() -> tuple[DotProductScore, torch.Tensor, TextFeatures]:
    torch.manual_seed(0)
    score = DotProductScore(visual_dim=6, language_dim=10, prior_prob=0.01)
    with torch.no_grad():
        score.log_scale.fill_(0.3)
        score.bias_language.normal_()
    language = TextFeatures(torch.randn(2, 4, 10), torch.ones(2, 4, dtype=torch.bool))
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
    score = DotProductScore(visual_dim=6, language_dim=10, prior_prob=0.01)
    language = TextFeatures(torch.randn(1, 3, 10), torch.ones(1, 3, dtype=torch.bool))
    logits = score([torch.zeros(1, 2, 6)], language)[0]
    torch.testing.assert_close(logits.sigmoid(), torch.full((1, 2, 3), 0.01))


def test_longer_words_do_not_score_higher() -> None:
    score, regions, language = make_inputs()
    louder = TextFeatures(language.hidden * 7, language.mask)
    torch.testing.assert_close(score([regions], language)[0], score([regions], louder)[0])


def test_cosine_scores_equal_the_formula_written_out() -> None:
    _, regions, language = make_inputs()
    score = CosineScore(visual_dim=6, language_dim=10, prior_prob=0.01, log_scale=-1.0)
    ours = score([regions], language)[0]
    for n in range(2):
        for t in range(4):
            word = score.projection(language.hidden[n, t] / language.hidden[n, t].norm())
            cosine = torch.cosine_similarity(score.region_projection(regions[n]), word[None])
            expected = cosine * math.exp(1.0) + score.bias
            torch.testing.assert_close(ours[n, :, t], expected, atol=1e-5, rtol=1e-5)


def test_classifier_scores_add_the_trusted_cosine_of_the_last_channels_and_the_word() -> None:
    _, _, language = make_inputs()
    regions = torch.randn(2, 5, 6 + 10)
    score = ClassifierScore(visual_dim=16, language_dim=10, prior_prob=0.01)
    torch.nn.init.normal_(score.trust.weight)
    learned = score.learned([regions[..., :6]], language)[0]
    trust = score.trust(regions[..., :6]).sigmoid()
    seen = torch.cosine_similarity(regions[:, :, None, 6:], language.hidden[:, None], dim=-1)
    added = trust * seen / score.log_scale.exp()
    torch.testing.assert_close(score([regions], language)[0], learned + added)
    score.eval()
    counted_more = learned + CLASSIFIER_INFERENCE_FACTOR * added
    torch.testing.assert_close(score([regions], language)[0], counted_more)
