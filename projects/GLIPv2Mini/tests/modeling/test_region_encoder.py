"""Text attends to regions: alone, in a batch, from left to right."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional as F

from glipv2_d2.structures import TextFeatures
from glipv2_mini.modeling.region_encoder import MatchEncoder, RegionEncoder
from glipv2_mini.modeling.regions import Regions

DIM, VISUAL_DIM, NUM_REGIONS = 12, 6, 5
LAYERS = {"num_layers": 2, "num_heads": 2, "ffn_dim": 16, "dropout": 0.0}


def make_encoder(**parts: Any) -> RegionEncoder:
    torch.manual_seed(0)
    return RegionEncoder(proposer=None, visual_dim=VISUAL_DIM, language_dim=DIM, **LAYERS, **parts)


def make_regions(num_images: int = 2, channels: int = VISUAL_DIM) -> Regions:
    torch.manual_seed(1)
    shape = (num_images, NUM_REGIONS)
    return Regions(
        torch.randn(*shape, channels), torch.randn(*shape, channels), torch.rand(*shape, 5)
    )


def make_text(num_texts: int = 2, num_tokens: int = 4, **fields: bool) -> TextFeatures:
    torch.manual_seed(2)
    hidden = torch.randn(num_texts, num_tokens, DIM)
    return TextFeatures(hidden, torch.ones(num_texts, num_tokens, dtype=torch.bool), **fields)


def changed(regions: Regions) -> Regions:
    return replace(regions, features=regions.features + torch.randn_like(regions.features))


def test_every_token_attends_to_the_regions_of_its_own_image() -> None:
    encoder, text, regions = make_encoder(), make_text(), make_regions()
    before = encoder(text, regions).hidden
    other = changed(regions).features
    second = replace(regions, features=torch.stack([regions.features[0], other[1]]))
    after = encoder(text, second).hidden
    torch.testing.assert_close(after[0], before[0])
    assert (after[1] - before[1]).abs().amax(dim=-1).min() > 1e-4


def test_the_order_of_regions_does_not_matter() -> None:
    encoder, regions = make_encoder(), make_regions()
    order = [3, 0, 4, 1, 2]
    shuffled = Regions(
        regions.features[:, order], regions.fused_features[:, order], regions.boxes[:, order]
    )
    for causal in (False, True):
        text = make_text(causal=causal)
        ours, theirs = encoder(text, regions).hidden, encoder(text, shuffled).hidden
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_padding_of_a_question_has_no_influence() -> None:
    encoder, text, regions = make_encoder(), make_text(), make_regions()
    padded = TextFeatures(
        F.pad(text.hidden, (0, 0, 0, 3), value=7.0), F.pad(text.mask, (0, 3), value=False)
    )
    ours = encoder(padded, regions).hidden[:, : text.hidden.shape[1]]
    torch.testing.assert_close(ours, encoder(text, regions).hidden)


def test_decoding_token_by_token_equals_encoding_at_once() -> None:
    encoder, text, regions = make_encoder(), make_text(causal=True), make_regions()
    cache, steps = encoder.encode(regions), []
    for token in text.hidden.split(1, dim=1):
        hidden, cache = encoder.decode_step(token, cache)
        steps.append(hidden)
    whole = encoder(text, regions).hidden
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_a_token_of_a_caption_depends_on_no_later_token() -> None:
    encoder, text, regions = make_encoder(), make_text(causal=True), make_regions()
    other_end = replace(text, hidden=text.hidden.clone())
    other_end.hidden[:, 2:] += 1
    ours, theirs = encoder(text, regions).hidden, encoder(other_end, regions).hidden
    assert torch.equal(ours[:, :2], theirs[:, :2])
    assert not torch.allclose(ours[:, 2:], theirs[:, 2:])


def test_initially_a_token_attends_most_to_the_most_similar_region() -> None:
    layer = make_encoder().layers[0]
    torch.manual_seed(3)
    embeddings = F.normalize(torch.randn(8, DIM), dim=-1)
    query, key = embeddings @ layer.query.weight.T, embeddings @ layer.key.weight.T
    assert (query @ key.T).argmax(dim=1).tolist() == list(range(8))


def test_initially_region_word_logits_change_no_token() -> None:
    encoder, text, regions = make_encoder(), make_text(), make_regions()
    logits = torch.randn(2, NUM_REGIONS, 4)
    torch.testing.assert_close(encoder(text, regions, logits).hidden, encoder(text, regions).hidden)


def test_a_token_gets_an_encoding_of_the_valid_regions_that_match_it() -> None:
    torch.manual_seed(0)
    matches, text = MatchEncoder(language_dim=DIM), make_text()
    for parameter in matches.parameters():
        torch.nn.init.normal_(parameter)
    tokens, logits = torch.randn(2, NUM_REGIONS, DIM), torch.randn(2, NUM_REGIONS, 4)
    is_valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    hidden = matches(text, tokens, logits, is_valid).hidden[1, 2]
    own = logits[1, :3, 2]
    weights = own.exp() / own.exp().sum()
    scores = torch.stack([own.max(), own.exp().sum().log(), (1 / (1 + (-own).exp())).sum()])
    expected = text.hidden[1, 2] + matches.score(scores) + matches.region(weights @ tokens[1, :3])
    torch.testing.assert_close(hidden, expected)


def test_class_embeddings_are_added_by_their_probability() -> None:
    embeddings = torch.randn(3, DIM)
    encoder, regions = make_encoder(class_embeddings=lambda: embeddings), make_regions()
    logits = torch.randn(2, NUM_REGIONS, 3)
    added = encoder.embed(replace(regions, class_logits=logits)) - encoder.embed(regions)
    weights = (4 * logits).exp()
    expected = (weights / weights.sum(dim=-1, keepdim=True)) @ embeddings
    torch.testing.assert_close(added, expected, atol=1e-5, rtol=1e-5)


def test_the_evidence_of_a_region_is_no_part_of_its_token() -> None:
    encoder, regions = make_encoder(), make_regions(channels=VISUAL_DIM + 3)
    visual = Regions(
        regions.features[..., :VISUAL_DIM],
        regions.fused_features[..., :VISUAL_DIM],
        regions.boxes,
    )
    torch.testing.assert_close(encoder.region_tokens(regions), encoder.region_tokens(visual))
