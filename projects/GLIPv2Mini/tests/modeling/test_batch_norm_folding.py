from __future__ import annotations

import timm
import torch
from torch import nn

from glipv2_mini.modeling.batch_norm_folding import fold_batch_norms


def test_a_folded_classifier_has_no_batch_norm_and_the_same_outputs():
    torch.manual_seed(0)
    classifier = timm.create_model("test_efficientnet").eval()
    norms = [part for part in classifier.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        nn.init.normal_(norm.bias)
    images = torch.randn(2, 3, 64, 64)
    expected = classifier(images)
    fold_batch_norms(classifier)
    assert norms
    assert not any(isinstance(part, nn.BatchNorm2d) for part in classifier.modules())
    torch.testing.assert_close(classifier(images), expected, rtol=1e-4, atol=1e-4)
