from __future__ import annotations

import torch

from glipv2_d2.structures import TextFeatures
from glipv2_mini.modeling.classifier_score import CLASSIFIER_INFERENCE_FACTOR, ClassifierScore


def test_gated_cosines_of_the_last_channels_are_added() -> None:
    torch.manual_seed(0)
    text = TextFeatures(torch.randn(2, 4, 10), torch.ones(2, 4, dtype=torch.bool))
    regions = torch.randn(2, 5, 6 + 10)
    score = ClassifierScore(visual_dim=16, language_dim=10, prior_prob=0.01)
    torch.nn.init.normal_(score.gate.weight)
    cosine = score.cosine([regions[..., :6]], text)[0]
    gate = score.gate(regions[..., :6]).sigmoid()
    similarity = torch.cosine_similarity(regions[:, :, None, 6:], text.hidden[:, None], dim=-1)
    added = gate * similarity / score.log_scale.exp()
    torch.testing.assert_close(score([regions], text)[0], cosine + added)
    score.eval()
    weighted = cosine + CLASSIFIER_INFERENCE_FACTOR * added
    torch.testing.assert_close(score([regions], text)[0], weighted)
