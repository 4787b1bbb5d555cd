from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog
from helpers.models import tiny_cfg, tiny_model
from torch.nn import functional as F

from glipv2_d2.modeling.heads.answer import (
    AnswerHead,
    ListedScores,
    TextScores,
    configured_answers,
)
from glipv2_d2.modeling.language.text_vectors import TextVectors
from glipv2_d2.structures import ReadQuestions, TextFeatures

ANSWERS = ["yes", "no", "2", "traffic light"]
WIDTH = 6


@pytest.fixture
def head() -> AnswerHead:
    torch.manual_seed(0)
    scores = ListedScores(language_dim=WIDTH, answers=ANSWERS)
    return AnswerHead(language_dim=WIDTH, answers=ANSWERS, scores=scores, weight=2.0)


@pytest.fixture
def words() -> TextFeatures:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 5, WIDTH, generator=generator)
    return TextFeatures(hidden, torch.tensor([[True] * 5, [True] * 3 + [False] * 2]))


def test_pooling_is_a_softmax_over_the_valid_words(head: AnswerHead, words: TextFeatures) -> None:
    for row, num_words in enumerate((5, 3)):
        hidden = words.hidden[row, :num_words]
        logits = hidden @ head.attention.weight[0] + head.attention.bias
        mean = (logits.exp() / logits.exp().sum()) @ hidden
        first, _, second, _ = head.mlp
        expected = F.gelu(second(F.gelu(first(mean))))
        torch.testing.assert_close(head.pool(words)[row], expected)


@pytest.mark.parametrize("garbage", [100.0, float("inf"), float("nan")])
def test_padding_changes_nothing(head: AnswerHead, words: TextFeatures, garbage: float) -> None:
    before = head.pool(words)
    words.hidden[1, 3:] = garbage
    assert torch.equal(head.pool(words), before)


def test_the_loss_is_the_weighted_mean_over_questions(
    head: AnswerHead, words: TextFeatures
) -> None:
    loss = head([ReadQuestions(words)], [{"yes": 1.0, "maybe": 0.6}, {"Two": 0.3}])["loss_answer"]
    targets = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0.3, 0]])
    expected = (
        F.binary_cross_entropy_with_logits(head.scores.linear(head.pool(words)), targets) * 4 * 2
    )
    torch.testing.assert_close(loss, expected)


def test_parts_that_were_read_apart_have_the_loss_of_all_together(
    head: AnswerHead, words: TextFeatures
) -> None:
    parts = [ReadQuestions(words.rows([row])) for row in (0, 1)]
    answers = [{"yes": 1.0}, {"2": 0.3}]
    apart, together = head(parts, answers), head([ReadQuestions(words)], answers)
    torch.testing.assert_close(apart["loss_answer"], together["loss_answer"])


def test_no_question_costs_nothing_and_reaches_every_weight(
    head: AnswerHead, words: TextFeatures
) -> None:
    loss = head([ReadQuestions(words.rows([]))], [])["loss_answer"]
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_at_first_about_one_answer_is_expected(head: AnswerHead, words: TextFeatures) -> None:
    torch.nn.init.zeros_(head.scores.linear.weight)
    probabilities = head.scores(head.pool(words), ANSWERS).sigmoid()
    torch.testing.assert_close(probabilities, torch.full((2, 4), 1 / 5))


def test_the_guess_is_the_likeliest_of_the_choices(head: AnswerHead, words: TextFeatures) -> None:
    probabilities = head.scores(head.pool(words), ANSWERS).sigmoid()
    guesses = head.guess(ReadQuestions(words), [None, ["Traffic light", "2"]])
    assert guesses[0] == (
        ANSWERS[probabilities[0].argmax()],
        pytest.approx(probabilities[0].max().item()),
    )
    expected = {"Traffic light": probabilities[1, 3], "2": probabilities[1, 2]}
    assert guesses[1].answer == max(expected, key=expected.__getitem__)
    assert guesses[1].score == pytest.approx(max(expected.values()).item())


def test_a_choice_that_was_never_learned_is_refused(head: AnswerHead, words: TextFeatures) -> None:
    with pytest.raises(ValueError, match="'purple' is not in the list of 4 answers.*SCORE 'words'"):
        head.guess(ReadQuestions(words), [["yes", "purple"], None])


def text_scores(freeze: bool = True) -> TextScores:
    model = tiny_model("MODEL.LANGUAGE_BACKBONE.FREEZE", freeze)
    torch.manual_seed(0)
    texts = TextVectors(model.language_backbone, model.tokenizer)
    return TextScores(language_dim=16, num_answers=4, texts=texts)


def test_answers_are_matched_with_the_mean_of_their_words() -> None:
    scores = text_scores()
    backbone, tokenizer = scores.texts.language_backbone, scores.texts.tokenizer
    pooled = torch.randn(3, 16)
    logits = scores(pooled, ["yes", "traffic light"])
    ids = torch.tensor([[101, *tokenizer.pieces(["traffic light"])[0], 102]])
    hidden = backbone.encode(ids, torch.ones_like(ids).bool())[0, 1:-1]
    vector = F.normalize(hidden.mean(dim=0), dim=0)
    match = scores.match
    expected = pooled @ match.projection(vector / 2) / match.log_scale.exp()
    expected = expected + vector @ match.bias_language + match.bias
    torch.testing.assert_close(logits[:, 1], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [("cat " * 300, "'cat cat.*300 tokens.*room for 254"), ("🐱", "'🐱' has no word")],
)
def test_an_answer_that_cannot_be_read_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        text_scores().texts(["yes", text])


def test_the_texts_of_a_frozen_backbone_are_read_once() -> None:
    scores = text_scores()
    calls = []
    scores.texts.language_backbone.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        scores(torch.randn(1, 16), ANSWERS)
    assert len(calls) == 1


def test_texts_follow_what_the_backbone_learns_and_it_stays_in_training() -> None:
    scores = text_scores(freeze=False)
    backbone = scores.texts.language_backbone.train()
    before = scores.texts(ANSWERS)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1)
    after = scores.texts(ANSWERS)
    assert not torch.allclose(before, after)
    assert backbone.training and not after.requires_grad
    torch.testing.assert_close(scores.texts(ANSWERS), after)  # no dropout


def test_the_list_is_that_of_a_file_of_the_config_or_of_the_data_sets(tmp_path: Path) -> None:
    path = tmp_path / "answers.txt"
    path.write_text("yes\nno\n")
    assert configured_answers(tiny_cfg("MODEL.ANSWER.FILE", str(path))) == ["yes", "no"]
    assert configured_answers(tiny_cfg("MODEL.ANSWER.ANSWERS", ["a b"])) == ["a b"]
    MetadataCatalog.get("answers_one").set(answers=["yes", "no"])
    MetadataCatalog.get("answers_two").set(answers=["no", "2"])
    cfg = tiny_cfg("DATASETS.TRAIN", ("answers_one", "answers_two"), "DATASETS.TEST", ())
    assert configured_answers(cfg) == ["yes", "no", "2"]


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        ((), "nothing says which answers there are"),
        (
            ("MODEL.ANSWER.ANSWERS", ["yes", "no", "Yes"]),
            r"'yes' \(number 0\) and 'Yes' \(number 2",
        ),
        (("MODEL.ANSWER.ANSWERS", ["yes"], "MODEL.ANSWER.FILE", "a.txt"), "leave one of the two"),
    ],
)
def test_no_list_two_lists_and_duplicates_are_refused(opts: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configured_answers(tiny_cfg("DATASETS.TRAIN", (), "DATASETS.TEST", (), *opts))


def test_an_unknown_kind_of_score_is_refused() -> None:
    with pytest.raises(ValueError, match="MODEL.ANSWER.SCORE is 'guesses'"):
        tiny_model(
            *("MODEL.ANSWER.WEIGHT", 1.0, "MODEL.ANSWER.ANSWERS", ["yes", "no"]),
            *("MODEL.ANSWER.SCORE", "guesses"),
        )
