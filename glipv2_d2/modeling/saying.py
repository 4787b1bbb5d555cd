"""What a GLIPv2 says of images: answers to questions, and descriptions.

N: images of the batch. T: tokens. D: width of the words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from detectron2.structures import ImageList
from torch import Tensor

from glipv2_d2.modeling.heads.caption import CaptionReader
from glipv2_d2.modeling.rounds import select_images, select_sizes
from glipv2_d2.modeling.tasks import Asked, TrainingTasks
from glipv2_d2.structures import Reading, ReadQuestions, Regions, TextFeatures, fields

if TYPE_CHECKING:
    from glipv2_d2.modeling.meta_arch import GLIPv2


def text_losses(
    model: GLIPv2,
    images: ImageList,
    features: dict[str, Tensor],
    reading: Reading,
    tasks: TrainingTasks,
) -> dict[str, Tensor]:
    """Losses of the heads for answers and captions, those that the model has.

    A head of which the batch asks nothing has a loss of 0 that reaches all of its parameters.

    Args:
        images: N, for their sizes without padding.
        features: of the N images, before fusion.
        reading: of the texts to find, grounded questions among them.
    """
    losses: dict[str, Tensor] = {}
    if model.answer is None and model.caption is None:
        return losses
    regions = find_regions(model, images, features, tasks.images_to_tell_of)
    if model.answer is not None:
        grounded = reading.rows(tasks.grounded_questions)
        questions = [read_regions(model, grounded, regions[0])]
        if tasks.questions:
            asked = read_image(model, features, tasks.questions)
            questions.append(read_regions(model, asked, regions[1]))
        losses |= model.answer(questions, tasks.answers)
    if model.caption is not None:
        captions = reading.rows([])
        if tasks.captions:
            captions = read_image(model, features, tasks.captions, causal=True)
        words = with_regions(model, captions.language, regions[2])
        losses |= model.caption(words, captions.tokens, regions[2])
    return losses


def say(
    model: GLIPv2,
    inputs: Sequence[dict[str, Any]],
    images: ImageList,
    features: dict[str, Tensor],
    row_of: Sequence[int],
) -> list[dict[str, Any]]:
    """Per input what is asked to be said of it: ``answer`` and its score, ``caption``.

    Where its phrases are to be found, also ``prompt`` and ``phrases``.

    Args:
        images: N, for their sizes without padding.
        features: of the N images, before fusion.
        row_of: which of the N is the image of each input.
    """
    said: list[dict[str, Any]] = [{} for _ in inputs]
    questions = model.tasks.questions(inputs)
    descriptions = {} if model.caption is None else model.tasks.descriptions(inputs)
    rows = [[row_of[i] for i in indices] for indices in descriptions.values()]
    if questions or descriptions:
        asked_rows = [row_of[asked.image] for asked in questions]
        regions, *described = find_regions(model, images, features, [asked_rows, *rows])
    if model.answer is not None and questions:
        shown = [replace(asked, image=row_of[asked.image]) for asked in questions]
        read = read_regions(model, read_image(model, features, shown), regions)
        guesses = model.answer.guess(read, [asked.choices for asked in questions])
        for asked, guess in zip(questions, guesses, strict=True):
            said[asked.image][fields.ANSWER] = guess.answer
            said[asked.image][fields.ANSWER_SCORE] = guess.score
    if model.caption is not None and descriptions:
        for indices, decoding, own_rows, own in zip(
            descriptions.values(), descriptions, rows, described, strict=True
        ):
            reader = caption_reader(model, features, own_rows, own)
            for i, caption in zip(indices, model.caption.describe(reader, decoding), strict=True):
                said[i][fields.CAPTION] = caption
    for x, texts in zip(inputs, said, strict=True):
        prompt = model.tasks.said_with_phrases(x, texts)
        if prompt is not None:
            texts |= {fields.PROMPT: prompt, fields.PHRASES: prompt.phrases}
    return said


def caption_reader(
    model: GLIPv2, features: dict[str, Tensor], indices: list[int], regions: Regions | None
) -> CaptionReader:
    """One that reads captions of some of the images.

    Args:
        regions: of those images; None: the model finds none.
    """
    return CaptionReader(
        model.language_backbone.read_on,
        model.fused_head,
        select_images(features, indices),
        region_reader=model.region_reader,
        regions=regions,
    )


def find_regions(
    model: GLIPv2,
    images: ImageList,
    features: dict[str, Tensor],
    image_lists: Sequence[list[int]],
) -> list[Regions | None]:
    """Per list of images, any of them several times, their regions; None: the model reads none.

    Each image is searched once; where there is none, one is, so that all processes of a distributed
    training take the same way.
    """
    if model.region_reader is None:
        return [None] * len(image_lists)
    searched = sorted({i for indices in image_lists for i in indices}) or [0]
    found = model.region_reader.finder(
        model, select_sizes(images, searched), select_images(features, searched)
    )
    if model.region_reader.names is not None:
        found = with_names(model, found, model.region_reader.names())
    row_of = {image: row for row, image in enumerate(searched)}
    return [found.images([row_of[i] for i in indices]) for indices in image_lists]


def with_names(model: GLIPv2, regions: Regions, names: Tensor) -> Regions:
    """Regions that know how well they match (A, D) names; nothing is learned of that."""
    vectors = names.expand(len(regions.places), -1, -1)
    words = TextFeatures(vectors, torch.ones_like(vectors[..., 0], dtype=torch.bool))
    with torch.no_grad():
        logits = model.proposal_generator.match(regions.fused_features, words)
    return replace(regions, name_logits=logits)


def with_regions(
    model: GLIPv2, words: TextFeatures, regions: Regions | None, matches: Tensor | None = None
) -> TextFeatures:
    """The words of texts after they have read the regions of their images, where models do that.

    Args:
        matches: (N, R, T), logits of regions and words, which captions do not read.
    """
    if model.region_reader is None or regions is None:
        return words
    return model.region_reader(words, regions, matches)


def read_regions(model: GLIPv2, questions: Reading, regions: Regions | None) -> ReadQuestions:
    """Questions after they have read the regions of their images, where models do that."""
    matches = None
    if regions is not None:
        matches = model.proposal_generator.match(regions.fused_features, questions.words)
    language = with_regions(model, questions.language, regions, matches)
    return ReadQuestions(language, regions, matches)


def read_image(
    model: GLIPv2, features: dict[str, Tensor], texts: Sequence[Asked], *, causal: bool = False
) -> Reading:
    """Let texts read their images; maps that have read them are not made.

    Args:
        features: of the N images, before fusion.
        causal: a word reads what is left of it, and the image reads no word.
    """
    tokens = model.tokenizer([asked.prompt for asked in texts]).to(model.device)
    tokens = replace(tokens, causal=causal)
    language = model.language_cache(model.language_backbone, tokens)
    images = sorted({asked.image for asked in texts})
    row_of = {image: row for row, image in enumerate(images)}
    fused = model.fused_head.words(
        select_images(features, images), language, [row_of[asked.image] for asked in texts]
    )
    return Reading({}, fused, fused if model.scores_fused_words else language, tokens)
