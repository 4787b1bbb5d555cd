"""Words read regions: alone, in a batch, from left to right."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from glipv2_d2.modeling.heads.region_reader import (
    ClassifierRegionReader,
    RegionReader,
    WordMatches,
)
from glipv2_d2.structures import Regions, TextFeatures

DIM, VISUAL, NUM_REGIONS = 12, 6, 5
LAYERS = {"num_layers": 2, "num_heads": 2, "ffn_dim": 16, "dropout": 0.0}


def make_reader(**parts: Any) -> RegionReader:
    torch.manual_seed(0)
    return RegionReader(finder=None, visual_dim=VISUAL, language_dim=DIM, **LAYERS, **parts)


def make_regions(num_images: int = 2, channels: int = VISUAL) -> Regions:
    torch.manual_seed(1)
    shape = (num_images, NUM_REGIONS)
    return Regions(
        torch.randn(*shape, channels), torch.randn(*shape, channels), torch.rand(*shape, 5)
    )


def make_words(num_texts: int = 2, num_tokens: int = 4, **fields: bool) -> TextFeatures:
    torch.manual_seed(2)
    hidden = torch.randn(num_texts, num_tokens, DIM)
    return TextFeatures(hidden, torch.ones(num_texts, num_tokens, dtype=torch.bool), **fields)


def changed(regions: Regions) -> Regions:
    return replace(regions, features=regions.features + torch.randn_like(regions.features))


def test_every_word_reads_the_regions_of_its_own_image() -> None:
    reader, words, regions = make_reader(), make_words(), make_regions()
    before = reader(words, regions).hidden
    other = changed(regions).features
    second = replace(regions, features=torch.stack([regions.features[0], other[1]]))
    after = reader(words, second).hidden
    torch.testing.assert_close(after[0], before[0])
    assert (after[1] - before[1]).abs().amax(dim=-1).min() > 1e-4


def test_the_order_of_regions_does_not_count() -> None:
    reader, regions = make_reader(), make_regions()
    order = [3, 0, 4, 1, 2]
    shuffled = Regions(
        regions.features[:, order], regions.fused_features[:, order], regions.places[:, order]
    )
    for causal in (False, True):
        words = make_words(causal=causal)
        ours, theirs = reader(words, regions).hidden, reader(words, shuffled).hidden
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_padding_of_a_question_is_read_by_nobody() -> None:
    reader, words, regions = make_reader(), make_words(), make_regions()
    padded = TextFeatures(
        F.pad(words.hidden, (0, 0, 0, 3), value=7.0), F.pad(words.mask, (0, 3), value=False)
    )
    ours = reader(padded, regions).hidden[:, : words.hidden.shape[1]]
    torch.testing.assert_close(ours, reader(words, regions).hidden)


def test_what_is_read_from_left_to_right_is_the_same_word_by_word() -> None:
    reader, words, regions = make_reader(), make_words(causal=True), make_regions()
    past, in_steps = reader.look(regions), []
    for word in words.hidden.split(1, dim=1):
        hidden, past = reader.read_on(word, past)
        in_steps.append(hidden)
    whole = reader(words, regions).hidden
    torch.testing.assert_close(torch.cat(in_steps, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_a_word_of_a_caption_knows_none_behind_it() -> None:
    reader, words, regions = make_reader(), make_words(causal=True), make_regions()
    ends_otherwise = replace(words, hidden=words.hidden.clone())
    ends_otherwise.hidden[:, 2:] += 1
    ours, theirs = reader(words, regions).hidden, reader(ends_otherwise, regions).hidden
    assert torch.equal(ours[:, :2], theirs[:, :2])
    assert not torch.allclose(ours[:, 2:], theirs[:, 2:])


def test_untrained_a_word_attends_most_to_the_region_that_is_like_it() -> None:
    reader = make_reader()
    layer = reader.layers[0]
    torch.manual_seed(3)
    things = F.normalize(torch.randn(8, DIM), dim=-1)
    query, key = things @ layer.query.weight.T, things @ layer.key.weight.T
    assert (query @ key.T).argmax(dim=1).tolist() == list(range(8))


def test_at_first_matches_change_no_word() -> None:
    reader, words, regions = make_reader(), make_words(), make_regions()
    logits = torch.randn(2, NUM_REGIONS, 4)
    torch.testing.assert_close(reader(words, regions, logits).hidden, reader(words, regions).hidden)


def test_a_word_learns_of_the_regions_that_match_it_and_of_no_others() -> None:
    torch.manual_seed(0)
    matches, words = WordMatches(language_dim=DIM), make_words()
    for parameter in matches.parameters():
        torch.nn.init.normal_(parameter)
    seen, logits = torch.randn(2, NUM_REGIONS, DIM), torch.randn(2, NUM_REGIONS, 4)
    is_found = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    hidden = matches(words, seen, logits, is_found).hidden[1, 2]
    own = logits[1, :3, 2]
    shares = own.exp() / own.exp().sum()
    scores = torch.stack([own.max(), own.exp().sum().log(), (1 / (1 + (-own).exp())).sum()])
    expected = words.hidden[1, 2] + matches.score(scores) + matches.region(shares @ seen[1, :3])
    torch.testing.assert_close(hidden, expected)


def test_a_region_says_the_names_that_it_matches_the_better_the_more() -> None:
    names = torch.randn(3, DIM)
    reader, regions = make_reader(names=lambda: names), make_regions()
    logits = torch.randn(2, NUM_REGIONS, 3)
    said = reader.said(replace(regions, name_logits=logits)) - reader.said(regions)
    weights = (4 * logits).exp()
    expected = (weights / weights.sum(dim=-1, keepdim=True)) @ names
    torch.testing.assert_close(said, expected, atol=1e-5, rtol=1e-5)


def test_a_region_of_a_classifiers_pyramid_is_the_word_that_is_seen_and_what_else_is_there() -> (
    None
):
    torch.manual_seed(0)
    reader = ClassifierRegionReader(finder=None, visual_dim=VISUAL, language_dim=DIM, **LAYERS)
    regions = make_regions(channels=VISUAL + DIM)
    visual = Regions(
        regions.features[..., :VISUAL], regions.fused_features[..., :VISUAL], regions.places
    )
    seen: Tensor = F.normalize(regions.features[..., VISUAL:], dim=-1) * math.sqrt(DIM)
    said = RegionReader.said(reader, visual)
    torch.testing.assert_close(reader.as_words(regions), reader.norm(seen + said))
