"""Captions that copy class names of regions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from glipv2_d2.modeling.heads.caption import CaptionHead
from glipv2_d2.structures import GenerationConfig, Prompt, TextFeatures, TokenBatch
from glipv2_d2.text.tokenizer import Tokenizer
from glipv2_mini.modeling.pointer_caption import (
    CaptionPointer,
    PointerCaptionHead,
    is_mentioned_region,
    match_names,
    nameable_regions,
)
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


class StandInDecoder:
    """A caption decoder for images with these regions; the text features are zeros."""

    def __init__(self, regions: Regions) -> None:
        self.regions = regions
        self.num_images = len(regions.boxes)
        self.device = regions.boxes.device
        self.input_ids = torch.zeros(self.num_images, 0, dtype=torch.int64)

    def decode(self, input_ids: torch.Tensor) -> RegionDecoderOutput:
        self.input_ids = torch.cat([self.input_ids, input_ids], dim=1)
        num_beams = len(input_ids) // self.num_images
        rows = torch.arange(self.num_images).repeat_interleave(num_beams).tolist()
        hidden = torch.zeros(len(input_ids), WIDTH)
        return RegionDecoderOutput(hidden, self.input_ids, self.regions.rows(rows))

    def reorder(self, rows: torch.Tensor) -> None:
        self.input_ids = self.input_ids[rows]


def generate(regions: Regions, **settings: int) -> list[str]:
    """Captions of a head that copies whenever it can, and otherwise writes "and" or "t"."""
    head = make_head()
    nn.init.constant_(head.pointer.is_name.bias, 8.0)
    words = Tokenizer().encode(["and t"])[0]
    with torch.no_grad():
        head.decoder.bias[words] = torch.tensor([20.0, 22.0])
    return head.generate(StandInDecoder(regions), GenerationConfig(**settings))


def matching_regions(logits: list[float], boxes: list[list[float]] | None = None) -> Regions:
    """Regions of one image with these logits for "cat", side by side by default."""
    regions = regions_of_classes([[CAT] * len(logits)])
    regions.class_logits[:] = -20.0
    regions.class_logits[0, : len(logits), CAT] = torch.tensor(logits)
    if boxes:
        regions.boxes[0, : len(boxes), :4] = torch.tensor(boxes)
    return regions


def test_sure_regions_are_nameable() -> None:
    assert nameable_regions(matching_regions([2.0, 0.0, -0.1])).tolist() == [[True, True, False]]


def test_without_a_sure_region_the_best_is_nameable() -> None:
    regions = matching_regions([-3.0, -1.0, -2.0])
    assert nameable_regions(regions).tolist() == [[False, True, False]]


@pytest.mark.parametrize(("logits", "expected"), [([2.0, 1.0], [1, 0]), ([1.0, 2.0], [1, 1])])
def test_a_region_in_a_better_one_is_not_nameable(logits: list[float], expected: list[int]) -> None:
    head_in_cat = [[0.5, 0.5, 0.6, 0.6], [0.4, 0.4, 0.1, 0.1]]
    assert nameable_regions(matching_regions(logits, head_in_cat))[0, :2].tolist() == expected


def test_rows_of_zeros_are_never_nameable() -> None:
    regions = regions_of_classes([[], [CAT]])
    regions.class_logits[:, 1:] = 100.0
    assert nameable_regions(regions).tolist() == [[False] * 3, [True, False, False]]


def test_a_region_is_mentioned_by_its_most_probable_class() -> None:
    regions = regions_of_classes([[CAT, TRUCK, CAT]])
    regions.class_logits[0, 2, TRUCK] = 9.0
    is_mentioned = torch.tensor([[[False, False, True], [False, True, False], [True, True, False]]])
    assert is_mentioned_region(regions, is_mentioned)[0].int().tolist() == [
        [0, 0, 0],
        [0, 1, 0],
        [1, 1, 1],
    ]


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_caption_ends_when_every_sure_region_is_named(beam_size: int) -> None:
    regions = regions_of_classes([[TRUCK], [TRUCK, TRUCK], [TRUCK, CAT]])
    regions.class_logits[2, 1, CAT] = -1.0
    regions.class_logits[2, 1, [TRUCK, REX]] = -9.0
    assert generate(regions, beam_size=beam_size) == ["fire truck"] * 3


def test_names_do_not_follow_each_other_directly() -> None:
    """Although the head's own distribution prefers the first token of a name."""
    (caption,) = generate(regions_of_classes([[CAT, TRUCK]]), beam_size=1)
    assert caption in ("cat and fire truck", "fire truck and cat")


def test_a_complete_caption_that_is_too_short_continues_with_the_likeliest_token() -> None:
    (caption,) = generate(regions_of_classes([[CAT]]), beam_size=1, min_length=2, max_length=2)
    assert caption == "cat and"


def test_after_a_name_no_name_is_copied_but_one_that_is_begun() -> None:
    tokens, hidden = encode(["cat and fire truck"])
    regions = regions_of_classes([[CAT, TRUCK, REX]])
    names = make_head().pointer(hidden, tokens.input_ids, regions)
    # [CLS] cat and fire truck [SEP]
    can_copy = names.logits[0] > torch.finfo(names.logits.dtype).min
    assert can_copy.int().tolist() == [1, 0, 1, 1, 0, 1]
    assert names.is_barred[0].all(dim=1).int().tolist() == [0, 1, 0, 0, 1, 0]


def test_a_region_of_a_mentioned_class_is_not_pointed_at_again() -> None:
    """Its second class would be copied otherwise."""
    tokens, hidden = encode(["cat and"])
    regions = regions_of_classes([[CAT, TRUCK]])
    regions.class_logits[0, 0, REX] = 9.9
    names = make_head().pointer(hidden, tokens.input_ids, regions)
    assert names.probabilities[0, 2, TRUCK] > 0.99


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
    nn.init.constant_(head.pointer.is_name.bias, -30.0)
    tokens, hidden = encode(["a cat and"])
    cat = name_tokens()[CAT][0]
    regions = regions_of_classes([[TRUCK]])
    log_probs = [
        head.next_log_probs(RegionDecoderOutput(hidden[:, 1], tokens.input_ids[:, :end], regions))[
            0, cat
        ]
        for end in (2, 4)
    ]
    # The initial repetition weight, up to the normalisation.
    assert (log_probs[1] - log_probs[0]).item() == pytest.approx(-4, abs=0.01)


def test_padding_regions_are_not_copied() -> None:
    tokens, hidden = encode(["a"])
    regions = regions_of_classes([[CAT]])
    regions.class_logits[0, 2, REX] = 100.0
    names = make_head().pointer(hidden, tokens.input_ids, regions)
    assert names.probabilities[0, :, REX].max() < 1e-6


@pytest.mark.parametrize("text", ["a dog", "a fire"])
def test_an_image_without_regions_gets_the_tokens_of_the_plain_head(text: str) -> None:
    """Also after the beginning of a name, which the image cannot distinguish from others."""
    head = make_head()
    tokens, hidden = encode([text])
    own = head(hidden[:, 2]).log_softmax(dim=-1)
    output = RegionDecoderOutput(hidden[:, 2], tokens.input_ids[:, :3], regions_of_classes([[]]))
    torch.testing.assert_close(head.next_log_probs(output), own)


def test_probabilities_of_the_next_token_sum_to_1() -> None:
    """In the middle of a name, after one of two names, and after the only one."""
    head = make_head()
    tokens, hidden = encode(["a fire", "the cat", "the cat"])
    regions = regions_of_classes([[TRUCK, CAT], [TRUCK, CAT], [CAT]])
    output = RegionDecoderOutput(hidden[:, 2], tokens.input_ids[:, :3], regions)
    log_probs = head.next_log_probs(output)
    torch.testing.assert_close(log_probs.exp().sum(dim=1), torch.ones(3))


def test_training_and_generation_give_a_token_within_a_caption_the_same_probability() -> None:
    head = make_head()
    # In generation, few words may follow a name or its beginning: the last token is left out, and
    # "a" begins no name.
    tokens, hidden = encode(["a truck", "a cat", "dog"])
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
    is_end = tokens.input_ids[:, 1:][tokens.mask[:, 1:]] == head.tokenizer.end_id
    torch.testing.assert_close(in_training[~is_end], torch.stack(in_generation)[~is_end])


def test_another_name_or_word_cannot_follow_a_name_directly() -> None:
    head = make_head()
    tokens, hidden = encode(["the cat"])
    regions = regions_of_classes([[TRUCK, CAT]])
    output = RegionDecoderOutput(hidden[:, 2], tokens.input_ids[:, :3], regions)
    following, others = (
        head.tokenizer.encode([text])[0] for text in ("and on", "truck fire the cat")
    )
    log_probs = head.next_log_probs(output)[0]
    assert log_probs[following].min() > -100 > log_probs[others].max()


def test_a_caption_does_not_end_within_a_name() -> None:
    head = make_head()
    tokens, hidden = encode(["a fire"])
    regions = regions_of_classes([[CAT]])
    output = RegionDecoderOutput(hidden[:, 2], tokens.input_ids[:, :3], regions)
    log_probs = head.next_log_probs(output)[0]
    following, others = (head.tokenizer.encode([text])[0] for text in ("and on", "the truck"))
    assert log_probs[others].min() > -80 > log_probs[[*following, head.tokenizer.end_id]].max()


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


@pytest.mark.parametrize(
    "classes", [[CAT, TRUCK], [CAT], []], ids=["both", "one of them", "no region"]
)
def test_gradients_are_finite_for_captions_that_break_the_rules(classes: list[int]) -> None:
    """Names that follow each other, occur again, or have no region."""
    head = make_head()
    tokens, hidden = encode(["cat fire truck and a cat"])
    head.losses(caption_features(hidden, tokens, regions_of_classes([classes])))[
        "loss_caption"
    ].backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_a_caption_of_two_names_trains_every_parameter() -> None:
    head = make_head()
    tokens, hidden = encode(["a cat and a fire truck and a cat"])
    regions = regions_of_classes([[CAT, TRUCK]])
    regions.class_logits.div_(20)
    regions.boxes[0, 1, 4] = 0.5
    head.losses(caption_features(hidden, tokens, regions))["loss_caption"].backward()
    untrained = {name for name, p in head.named_parameters() if not p.grad.any()}
    # The last bias adds the same to all regions.
    assert untrained <= {"pointer.box.2.bias"}


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
