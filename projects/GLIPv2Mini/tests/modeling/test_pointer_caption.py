"""Captions that copy class names of regions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from glipv2_d2.modeling.heads.caption import CaptionHead
from glipv2_d2.structures import GenerationConfig, Prompt, TextFeatures, TokenBatch
from glipv2_d2.text.tokenizer import Tokenizer
from glipv2_mini.modeling.pointer_caption import CaptionPointer, PointerCaptionHead, match_names
from glipv2_mini.modeling.region_text_tasks import RegionCaptionFeatures, RegionDecoderOutput
from glipv2_mini.modeling.regions import Regions

WIDTH, NUM_CHANNELS, VOCAB_SIZE = 6, 5, 30522
NAMES = ["cat", "fire truck", "t-rex"]
CAT, TRUCK, REX = range(3)


def name_tokens() -> list[list[int]]:
    return Tokenizer().encode(NAMES)


def padded_name_tokens() -> torch.Tensor:
    rows = [torch.tensor(tokens) for tokens in name_tokens()]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


def make_head() -> PointerCaptionHead:
    torch.manual_seed(0)
    return PointerCaptionHead(
        pointer=CaptionPointer(language_dim=WIDTH, name_tokens=name_tokens()),
        language_dim=WIDTH,
        decoder=nn.Linear(WIDTH, VOCAB_SIZE),
        tokenizer=Tokenizer(max_tokens=40),
        generation=GenerationConfig(),
        weight=1.0,
    )


def regions_of_classes(names_per_image: list[list[int]], num_regions: int = 3) -> Regions:
    """Regions that match one class name each, padded with rows of zeros."""
    num_images = len(names_per_image)
    boxes = torch.zeros(num_images, num_regions, 5)
    logits = torch.zeros(num_images, num_regions, len(NAMES))
    for i, names in enumerate(names_per_image):
        for r, name in enumerate(names):
            boxes[i, r] = torch.tensor([0.2 + 0.3 * r, 0.5, 0.1, 0.1, 0.9])
            logits[i, r, name] = 10.0
    features = torch.zeros(num_images, num_regions, NUM_CHANNELS)
    return Regions(features, features, boxes, logits)


def encode(texts: list[str]) -> tuple[TokenBatch, torch.Tensor]:
    tokens = replace(Tokenizer()([Prompt(text, (), ()) for text in texts]), causal=True)
    generator = torch.Generator().manual_seed(0)
    return tokens, torch.randn(*tokens.mask.shape, WIDTH, generator=generator)


def caption_features(
    hidden: torch.Tensor, tokens: TokenBatch, regions: Regions
) -> RegionCaptionFeatures:
    return RegionCaptionFeatures(TextFeatures(hidden, tokens.mask, causal=True), tokens, regions)


def test_a_name_is_mentioned_when_all_its_tokens_occur() -> None:
    tokens, _ = encode(["a fire truck"])
    _, _, is_mentioned = match_names(tokens.input_ids, padded_name_tokens())
    # [CLS] a fire truck [SEP]
    assert is_mentioned[0, :, TRUCK].int().tolist() == [0, 0, 0, 1, 1]
    assert not is_mentioned[..., [CAT, REX]].any()


def test_a_begun_name_continues_with_its_next_token() -> None:
    tokens, _ = encode(["t-rex"])
    token_ids, is_begun, _ = match_names(tokens.input_ids, padded_name_tokens())
    expected = name_tokens()[REX]
    # The tokens of the name in order, then its first one again.
    assert token_ids[0, : len(expected), REX].tolist() == expected
    assert is_begun[0, :, REX].int().tolist() == [0] + [1] * (len(expected) - 1) + [0, 0]
    assert token_ids[0, -1, REX] == expected[0]


def test_articles_agree_with_copied_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CaptionHead, "generate", lambda *_: ["a picture of a owl and a cat"])
    assert make_head().generate(None) == ["a picture of an owl and a cat"]


def test_a_mentioned_name_is_not_copied_again() -> None:
    tokens, hidden = encode(["cat"])
    names = make_head().pointer(hidden, tokens.input_ids, regions_of_classes([[CAT, TRUCK]]))
    before, after = names.probabilities[0, 0], names.probabilities[0, 1]
    assert before[CAT] / before[TRUCK] > 10 * after[CAT] / after[TRUCK]


def test_a_mentioned_name_is_not_generated_again() -> None:
    head = make_head()
    tokens, hidden = encode(["a cat"])
    cat = name_tokens()[CAT][0]
    log_probs = [
        head.next_log_probs(
            RegionDecoderOutput(hidden[:, 1], tokens.input_ids[:, :end], regions_of_classes([[]]))
        )[0, cat]
        for end in (2, 3)
    ]
    # The initial repetition weight, up to the normalisation.
    assert (log_probs[1] - log_probs[0]).item() == pytest.approx(-4, abs=0.01)


def test_padding_regions_are_not_copied() -> None:
    tokens, hidden = encode(["a"])
    regions = regions_of_classes([[CAT]])
    regions.class_logits[0, 2, REX] = 100.0
    names = make_head().pointer(hidden, tokens.input_ids, regions)
    assert names.probabilities[0, :, REX].max() < 1e-6


def test_an_image_without_regions_gets_the_tokens_of_the_plain_head() -> None:
    head = make_head()
    tokens, hidden = encode(["a dog"])
    own = head(hidden[:, -1]).log_softmax(dim=-1)
    output = RegionDecoderOutput(hidden[:, -1], tokens.input_ids, regions_of_classes([[]]))
    torch.testing.assert_close(head.next_log_probs(output), own)


def test_probabilities_of_the_next_token_sum_to_1() -> None:
    head = make_head()
    tokens, hidden = encode(["a fire", "the cat"])
    regions = regions_of_classes([[TRUCK, CAT], [CAT]])
    output = RegionDecoderOutput(hidden[:, 2], tokens.input_ids[:, :3], regions)
    log_probs = head.next_log_probs(output)
    torch.testing.assert_close(log_probs.exp().sum(dim=1), torch.ones(2))


def test_training_and_generation_give_a_token_the_same_probability() -> None:
    head = make_head()
    tokens, hidden = encode(["a fire truck", "t-rex", "cat"])
    regions = regions_of_classes([[TRUCK, CAT], [REX, REX, CAT], []])
    in_training = head.target_log_probs(caption_features(hidden, tokens, regions))
    in_generation = [
        head.next_log_probs(
            RegionDecoderOutput(
                hidden[[row], t], tokens.input_ids[[row], : t + 1], regions.rows([row])
            )
        )[0, tokens.input_ids[row, t + 1]]
        for row in range(3)
        for t in range(int(tokens.mask[row].sum()) - 1)
    ]
    torch.testing.assert_close(in_training, torch.stack(in_generation))


def test_training_copies_the_class_name_of_the_region() -> None:
    """Two images that differ in their regions only: the text features are the same."""
    head = make_head()
    tokens, hidden = encode(["cat", "t-rex"])
    hidden = hidden[:1].expand(2, -1, -1)
    regions = regions_of_classes([[CAT], [REX]])
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        head.losses(caption_features(hidden, tokens, regions))["loss_caption"].backward()
        optimizer.step()
    output = RegionDecoderOutput(hidden[:, 0], tokens.input_ids[:, :1], regions)
    firsts = head.next_log_probs(output).exp()
    assert firsts[0, name_tokens()[CAT][0]] > 0.9
    assert firsts[1, name_tokens()[REX][0]] > 0.9


def test_no_caption_gives_a_loss_of_0_with_gradients() -> None:
    head = make_head()
    tokens, hidden = encode(["a cat"])
    empty = caption_features(hidden[:0], tokens.rows([]), regions_of_classes([]))
    loss = head.losses(empty)["loss_caption"]
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_regions_without_class_logits_raise() -> None:
    tokens, hidden = encode(["a cat"])
    regions = replace(regions_of_classes([[CAT]]), class_logits=None)
    with pytest.raises(ValueError, match="needs regions with class logits"):
        make_head().target_log_probs(caption_features(hidden, tokens, regions))
