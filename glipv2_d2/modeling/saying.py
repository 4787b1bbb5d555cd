"""What a GLIPv2 says of images: answers to questions, and descriptions.

N: images of the batch. T: tokens. D: width of the words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glipv2_d2.modeling.heads.caption import CaptionReader
from glipv2_d2.modeling.rounds import select_images
from glipv2_d2.modeling.tasks import Asked, TrainingTasks
from glipv2_d2.structures import LanguageFeatures, Reading, TokenBatch, fields

if TYPE_CHECKING:
    from glipv2_d2.modeling.meta_arch import GLIPv2


def text_losses(
    model: GLIPv2,
    features: dict[str, Tensor],
    reading: Reading,
    tasks: TrainingTasks,
) -> dict[str, Tensor]:
    """Losses of the heads for answers and captions, those that the model has.

    A head of which the batch asks nothing has a loss of 0 that reaches all of its parameters.

    Args:
        features: of the N images, before fusion.
        reading: of the texts to find, grounded questions among them.
    """
    losses: dict[str, Tensor] = {}
    if model.answer is not None:
        pooled = [model.answer.pool(with_matches(model, reading.rows(tasks.grounded_questions)))]
        if tasks.questions:
            pooled.append(model.answer.pool(read_questions(model, features, tasks.questions)))
        losses |= model.answer(torch.cat(pooled), tasks.answers)
    if model.caption is not None:
        words, captions = reading.language.rows([]), reading.tokens.rows([])
        if tasks.captions:
            captions, words = read_image(model, features, tasks.captions, causal=True)
        losses |= model.caption(words, captions)
    return losses


def say(
    model: GLIPv2, inputs: Sequence[dict[str, Any]], features: dict[str, Tensor]
) -> list[dict[str, Any]]:
    """Per image what is asked to be said of it: ``answer`` and its score, ``caption``.

    Where its phrases are to be found, also ``prompt`` and ``phrases``.

    Args:
        features: of the N images, before fusion.
    """
    said: list[dict[str, Any]] = [{} for _ in inputs]
    questions = model.tasks.questions(inputs)
    if model.answer is not None and questions:
        words = read_questions(model, features, questions)
        guesses = model.answer.guess(words, [asked.choices for asked in questions])
        for asked, guess in zip(questions, guesses, strict=True):
            said[asked.image][fields.ANSWER] = guess.answer
            said[asked.image][fields.ANSWER_SCORE] = guess.score
    if model.caption is not None:
        for decoding, images in model.tasks.descriptions(inputs).items():
            selected = select_images(features, images)
            reader = CaptionReader(model.language_backbone.read_on, model.fused_head, selected)
            for i, caption in zip(images, model.caption.describe(reader, decoding), strict=True):
                said[i][fields.CAPTION] = caption
    for x, texts in zip(inputs, said, strict=True):
        prompt = model.tasks.said_with_phrases(x, texts)
        if prompt is not None:
            texts |= {fields.PROMPT: prompt, fields.PHRASES: prompt.phrases}
    return said


def read_questions(
    model: GLIPv2, features: dict[str, Tensor], questions: Sequence[Asked]
) -> LanguageFeatures:
    """The words of questions, ready to be pooled.

    Args:
        features: of the N images, before fusion.
    """
    assert model.answer is not None
    if model.answer.matches is None:
        return read_image(model, features, questions)[1]
    selected = select_images(features, [asked.image for asked in questions])
    return with_matches(model, model.read(selected, [asked.prompt for asked in questions]))


def with_matches(model: GLIPv2, reading: Reading) -> LanguageFeatures:
    """The fused words of questions; where the model tells them, they know what matches them."""
    if model.answer is None or model.answer.matches is None:
        return reading.language
    logits = model.proposal_generator.match(reading.features, reading.words)
    return model.answer.matches(reading.language, logits)


def read_image(
    model: GLIPv2, features: dict[str, Tensor], texts: Sequence[Asked], *, causal: bool = False
) -> tuple[TokenBatch, LanguageFeatures]:
    """Let texts read their images; their maps after that are not made.

    Args:
        features: of the N images, before fusion.
        causal: a word reads what is left of it, and the image reads no word.
    """
    tokens = model.tokenizer([asked.prompt for asked in texts]).to(model.device)
    tokens = replace(tokens, causal=causal)
    language = model.language_cache(model.language_backbone, tokens)
    selected = select_images(features, [asked.image for asked in texts])
    return tokens, model.fused_head.words(selected, language)
