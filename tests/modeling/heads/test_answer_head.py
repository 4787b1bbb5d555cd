from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog
from helpers.models import tiny_cfg, tiny_model
from torch.nn import functional as F

from glipv2_d2.modeling.heads.answer import (
    AnswerHead,
    LinearAnswerScores,
    QuestionFeatures,
    TextAnswerScores,
    configured_answers,
)
from glipv2_d2.modeling.language.text_embedder import TextEmbedder
from glipv2_d2.structures import TextFeatures

ANSWERS = ["yes", "no", "2", "traffic light"]
WIDTH = 6


@pytest.fixture
def head() -> AnswerHead:
    torch.manual_seed(0)
    scores = LinearAnswerScores(language_dim=WIDTH, answers=ANSWERS)
    return AnswerHead(language_dim=WIDTH, answers=ANSWERS, scores=scores, weight=2.0)


@pytest.fixture
def text() -> TextFeatures:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 5, WIDTH, generator=generator)
    return TextFeatures(hidden, torch.tensor([[True] * 5, [True] * 3 + [False] * 2]))


def test_pooling_is_a_softmax_over_the_valid_tokens(head: AnswerHead, text: TextFeatures) -> None:
    for row, num_tokens in enumerate((5, 3)):
        hidden = text.hidden[row, :num_tokens]
        logits = hidden @ head.attention.weight[0] + head.attention.bias
        mean = (logits.exp() / logits.exp().sum()) @ hidden
        first, _, second, _ = head.mlp
        expected = F.gelu(second(F.gelu(first(mean))))
        torch.testing.assert_close(head.pool(text)[row], expected)


def test_a_question_without_an_answer_of_the_vocabulary_is_left_out(
    head: AnswerHead, text: TextFeatures
) -> None:
    answers = [{"yes": 1.0, "no": 0.3}, {"giraffe": 1.0}]
    loss = head.losses([QuestionFeatures(text)], answers)["loss_answer"]
    alone = head.losses([QuestionFeatures(text.rows([0]))], answers[:1])["loss_answer"]
    torch.testing.assert_close(loss, alone)
    none = head.losses([QuestionFeatures(text)], [{"giraffe": 1.0}, {}])["loss_answer"]
    none.backward()
    assert none == 0 and not any(p.grad.any() for p in head.parameters())


@pytest.mark.parametrize("padding", [100.0, float("inf"), float("nan")])
def test_padding_is_ignored(head: AnswerHead, text: TextFeatures, padding: float) -> None:
    before = head.pool(text)
    text.hidden[1, 3:] = padding
    assert torch.equal(head.pool(text), before)


def test_the_loss_is_the_weighted_mean_over_questions(head: AnswerHead, text: TextFeatures) -> None:
    loss = head.losses([QuestionFeatures(text)], [{"yes": 1.0, "maybe": 0.6}, {"Two": 0.3}])[
        "loss_answer"
    ]
    targets = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0.3, 0]])
    expected = (
        F.binary_cross_entropy_with_logits(head.scores.linear(head.pool(text)), targets) * 4 * 2
    )
    torch.testing.assert_close(loss, expected)


def test_questions_in_groups_have_the_loss_of_one_group(
    head: AnswerHead, text: TextFeatures
) -> None:
    groups = [QuestionFeatures(text.rows([row])) for row in (0, 1)]
    answers = [{"yes": 1.0}, {"2": 0.3}]
    apart, together = head.losses(groups, answers), head.losses([QuestionFeatures(text)], answers)
    torch.testing.assert_close(apart["loss_answer"], together["loss_answer"])


def test_without_questions_the_loss_is_0_and_connected_to_every_weight(
    head: AnswerHead, text: TextFeatures
) -> None:
    loss = head.losses([QuestionFeatures(text.rows([]))], [])["loss_answer"]
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_an_untrained_head_expects_about_one_correct_answer(
    head: AnswerHead, text: TextFeatures
) -> None:
    torch.nn.init.zeros_(head.scores.linear.weight)
    probabilities = head.scores(head.pool(text), ANSWERS).sigmoid()
    torch.testing.assert_close(probabilities, torch.full((2, 4), 1 / 5))


def test_the_prediction_is_the_likeliest_of_the_choices(
    head: AnswerHead, text: TextFeatures
) -> None:
    probabilities = head.scores(head.pool(text), ANSWERS).sigmoid()
    predicted = head.predict(QuestionFeatures(text), [None, ["Traffic light", "2"]])
    assert predicted[0] == (
        ANSWERS[probabilities[0].argmax()],
        pytest.approx(probabilities[0].max().item()),
    )
    expected = {"Traffic light": probabilities[1, 3], "2": probabilities[1, 2]}
    assert predicted[1].answer == max(expected, key=expected.__getitem__)
    assert predicted[1].score == pytest.approx(max(expected.values()).item())


def test_a_choice_outside_a_linear_classifiers_vocabulary_is_an_error(
    head: AnswerHead, text: TextFeatures
) -> None:
    with pytest.raises(ValueError, match="'purple' is not in the model's vocabulary of 4 answers"):
        head.predict(QuestionFeatures(text), [["yes", "purple"], None])


def text_scores(freeze: bool = True) -> TextAnswerScores:
    model = tiny_model("MODEL.LANGUAGE_BACKBONE.FREEZE", freeze)
    torch.manual_seed(0)
    embedder = TextEmbedder(model.language_backbone, model.query_builder.tokenizer)
    return TextAnswerScores(language_dim=16, num_answers=4, embedder=embedder)


def test_answers_are_scored_by_the_mean_of_their_tokens() -> None:
    scores = text_scores()
    backbone, tokenizer = scores.embedder.language_backbone, scores.embedder.tokenizer
    pooled = torch.randn(3, 16)
    logits = scores(pooled, ["yes", "traffic light"])
    ids = torch.tensor([[101, *tokenizer.encode(["traffic light"])[0], 102]])
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
def test_an_answer_that_cannot_be_encoded_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        text_scores().embedder(["yes", text])


def test_a_frozen_backbone_encodes_the_answers_once() -> None:
    scores = text_scores()
    calls = []
    scores.embedder.language_backbone.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        scores(torch.randn(1, 16), ANSWERS)
    assert len(calls) == 1


def test_embeddings_follow_the_weights_of_a_trained_backbone_and_its_mode_stays() -> None:
    scores = text_scores(freeze=False)
    backbone = scores.embedder.language_backbone.train()
    before = scores.embedder(ANSWERS)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1)
    after = scores.embedder(ANSWERS)
    assert not torch.allclose(before, after)
    assert backbone.training and not after.requires_grad
    torch.testing.assert_close(scores.embedder(ANSWERS), after)  # no dropout


def test_the_vocabulary_comes_from_a_file_the_config_or_the_datasets(tmp_path: Path) -> None:
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
        ((), "there is no answer vocabulary"),
        (
            ("MODEL.ANSWER.ANSWERS", ["yes", "no", "Yes"]),
            r"'yes' \(index 0\) and 'Yes' \(index 2",
        ),
        (("MODEL.ANSWER.ANSWERS", ["yes"], "MODEL.ANSWER.FILE", "a.txt"), "leave one empty"),
    ],
)
def test_a_missing_ambiguous_or_duplicated_vocabulary_is_an_error(
    opts: tuple, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        configured_answers(tiny_cfg("DATASETS.TRAIN", (), "DATASETS.TEST", (), *opts))


def test_an_unknown_classifier_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"classifier is 'unknown'.*\(config: MODEL\.ANSWER\.CLASSIFIER\)"
    ):
        tiny_model(
            *("MODEL.ANSWER.WEIGHT", 1.0, "MODEL.ANSWER.ANSWERS", ["yes", "no"]),
            *("MODEL.ANSWER.CLASSIFIER", "unknown"),
        )
