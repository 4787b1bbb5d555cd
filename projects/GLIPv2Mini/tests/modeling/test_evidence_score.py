from __future__ import annotations

import pytest
import torch
from mini_models import random_class_evidence
from torch import Tensor
from torch.nn import functional as F

from glipv2_d2.layers.checkpoint_prefixes import loss_only_prefixes, optional_prefixes
from glipv2_d2.modeling.class_evidence import ClassEvidence
from glipv2_d2.modeling.heads.region_word_score import ResidualScore
from glipv2_d2.structures import TextFeatures
from glipv2_mini.modeling.evidence_score import LearnedEvidenceScore

DIM, NUM_TOKENS = 6, 5
CLASS = 3
"""The most probable class of every cut-out."""
CUT_OUT = [(0, 1), (0, 4), (0, 6), (1, 2)]
"""Image and region of each cut-out, of regions of both levels."""


def make_score() -> LearnedEvidenceScore:
    torch.manual_seed(0)
    return LearnedEvidenceScore(
        detector_evidence=random_class_evidence(80, DIM),
        classifier_evidence=random_class_evidence(1000, DIM),
        language_dim=DIM,
    )


def trained_score() -> LearnedEvidenceScore:
    """A score whose learned parts all contribute."""
    score = make_score()
    with torch.no_grad():
        for name, value in (("scale", 1.5), ("bias", -0.2)):
            getattr(score, f"evidence_{name}").fill_(value)
        for part in (score.feature_score, score.cutout_score):
            torch.nn.init.normal_(part.projection.weight)
        torch.nn.init.normal_(score.objectness.weight)
    return score


def make_regions() -> list[Tensor]:
    """Regions of two images, on levels of 4 and 3 locations."""
    generator = torch.Generator().manual_seed(1)
    regions = torch.zeros(2, 7, 128 + 1096)
    regions[..., :128] = torch.randn(2, 7, 128, generator=generator)
    regions[..., 128:208] = torch.rand(2, 7, 80, generator=generator) ** 4
    for image, row in CUT_OUT:
        regions[image, row, 223] = 1
        regions[image, row, 224:] = torch.randn(1000, generator=generator)
        # Confident, as a trained classifier.
        regions[image, row, 224 + CLASS] = 9.0
    regions[..., 212:223] = torch.rand(2, 7, 11, generator=generator)
    return list(regions.split((4, 3), dim=1))


def make_text() -> TextFeatures:
    """Random words; the first one is the class of the cut-outs."""
    hidden = torch.randn(2, NUM_TOKENS, DIM, generator=torch.Generator().manual_seed(2))
    hidden[:, 0] = make_score().classifier_evidence.class_embeddings[CLASS]
    return TextFeatures(hidden, torch.ones(2, NUM_TOKENS, dtype=torch.bool))


def similarities(word: Tensor, evidence: ClassEvidence) -> Tensor:
    """(K,) similarity of a word to each class; class and embedding have the same index."""
    cosines = torch.cosine_similarity(word[None], evidence.class_embeddings, dim=-1)
    return ((cosines - 0.45) / 0.4).clamp(0, 1)


def coefficients(word: Tensor, score: LearnedEvidenceScore) -> Tensor:
    """(1000,) of the ridge regression of a word on the class names, in its dual form."""
    names = score.classifier_evidence.class_embeddings
    gram = names @ names.T + torch.eye(len(names))
    return torch.linalg.solve(gram, names @ F.normalize(word, dim=0))


def expected_evidence(score: LearnedEvidenceScore) -> tuple[Tensor, set[int]]:
    """(2, 7, T) the evidence of each region and word, one by one; which sources are the largest."""
    regions, hidden = torch.cat(make_regions(), dim=1), make_text().hidden
    evidence = torch.zeros(2, 7, NUM_TOKENS)
    sources = set()
    for image in range(2):
        for row in range(7):
            probs = regions[image, row, 128:208]
            class_logits = regions[image, row, 224:]
            for token in range(NUM_TOKENS):
                word = hidden[image, token]
                candidates: list[float] = [
                    float((probs * similarities(word, score.detector_evidence)).max()),
                    float(0.02 * probs.max()),
                ]
                if (image, row) in CUT_OUT:
                    names = similarities(word, score.classifier_evidence)
                    expected = (class_logits.softmax(dim=0) * names).sum()
                    candidates.append(float(0.9 * probs.max().sqrt() * expected))
                evidence[image, row, token] = max(candidates)
                sources.add(candidates.index(max(candidates)))
                if (image, row) in CUT_OUT:
                    weight = similarities(word, score.detector_evidence).max()
                    combined = (class_logits - class_logits.mean()) @ coefficients(word, score)
                    logit = evidence[image, row, token].clamp(1e-5, 1 - 1e-6).logit()
                    evidence[image, row, token] = (
                        logit + (weight * combined).clamp(max=1)
                    ).sigmoid()
    return evidence, sources


def products(score: LearnedEvidenceScore, part: ResidualScore, inputs: Tensor) -> Tensor:
    """(2, 7, T) of regions and projected words, without what all class names have in common."""
    names = [score.detector_evidence, score.classifier_evidence]
    mean = torch.cat([F.normalize(x.class_embeddings, dim=-1) for x in names]).mean(dim=0)
    centered = F.normalize(F.normalize(make_text().hidden, dim=-1) - mean, dim=-1)
    words = centered / 2 @ part.projection.weight.T
    return (inputs[:, :, None] * words[:, None]).sum(dim=-1)


def test_untrained_logits_are_those_of_the_evidence() -> None:
    score = make_score()
    logits = torch.cat(score(make_regions(), make_text()), dim=1)
    evidence, sources = expected_evidence(score)
    assert sources == {0, 1, 2}
    torch.testing.assert_close(logits.sigmoid(), evidence, atol=1e-5, rtol=1e-4)


def test_learned_products_are_added_those_of_class_logits_where_cut_out() -> None:
    score = trained_score()
    regions = torch.cat(make_regions(), dim=1)
    # Features and colours.
    visual = torch.cat([regions[..., :128], regions[..., 212:223]], dim=-1)
    is_cut_out = torch.zeros(2, 7, 1)
    for image, row in CUT_OUT:
        is_cut_out[image, row] = 1
    expected = (
        1.5 * expected_evidence(score)[0].logit()
        - 0.2
        + products(score, score.feature_score, visual)
        + (visual * score.objectness.weight).sum(dim=-1, keepdim=True)
        + products(score, score.cutout_score, F.normalize(regions[..., 224:], dim=-1)) * is_cut_out
    )
    logits = torch.cat(score(make_regions(), make_text()), dim=1)
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)


def test_regions_without_class_logits_have_the_logits_of_regions_that_were_not_cut_out() -> None:
    score, regions = trained_score(), make_regions()
    plain = [x * (torch.arange(1224) < 223) for x in regions]
    for ours, expected in zip(
        score([x[..., :224] for x in plain], make_text()), score(plain, make_text()), strict=True
    ):
        torch.testing.assert_close(ours, expected)


def test_levels_keep_their_sizes() -> None:
    shapes = [x.shape for x in make_score()(make_regions(), make_text())]
    assert shapes == [(2, 4, NUM_TOKENS), (2, 3, NUM_TOKENS)]


def test_an_image_has_the_logits_that_it_has_alone() -> None:
    """The other image has more cut-outs."""
    score, text = trained_score(), make_text()
    alone = score([x[1:] for x in make_regions()], text.rows([1]))
    for ours, both in zip(alone, score(make_regions(), text), strict=True):
        torch.testing.assert_close(ours[0], both[1])


@pytest.mark.parametrize("make", [make_score, trained_score], ids=["untrained", "trained"])
@pytest.mark.parametrize("num_channels", [1224, 224])
def test_every_parameter_receives_a_gradient(make, num_channels: int) -> None:
    """Distributed training waits for all of them, also without class logits."""
    score, regions = make(), [x[..., :num_channels] for x in make_regions()]
    has_cut_outs = num_channels == 1224
    logits = torch.cat(score(regions, make_text()), dim=1)
    logits.square().sum().backward()
    for name, parameter in score.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if make is trained_score and has_cut_outs:
            assert parameter.grad.any(), name


def test_weights_of_zero_receive_gradients_other_than_zero() -> None:
    score = make_score()
    torch.cat(score(make_regions(), make_text()), dim=1).square().sum().backward()
    for part in (score.feature_score.projection, score.cutout_score.projection, score.objectness):
        assert part.weight.grad.any()


def test_evidence_receives_no_gradient_and_features_do() -> None:
    regions = [x.requires_grad_() for x in make_regions()]
    torch.cat(trained_score()(regions, make_text()), dim=1).sum().backward()
    for level in regions:
        assert level.grad[..., :128].any()
        assert not level.grad[..., 128:212].any()


def test_logits_under_bfloat16_autocast_are_finite_and_near_those_of_float32() -> None:
    score, regions, text = make_score(), make_regions(), make_text()
    expected = torch.cat(score(regions, text), dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = torch.cat(score(regions, text), dim=1)
    torch.testing.assert_close(logits.float(), expected, atol=0.05, rtol=0.05)


def test_learned_products_are_saved_with_inference_weights_and_may_be_missing() -> None:
    score = trained_score()
    assert loss_only_prefixes(score) == ()
    kept = {name for name in score.state_dict() if name.startswith(optional_prefixes(score))}
    assert {f"{part}_score.projection.weight" for part in ("feature", "cutout")} < kept
