"""From input dicts to queries: the one place that decides what an input requests.

An image may have several queries, or none of a kind. A question whose phrases are localized is one
query for both.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.structures import Boxes, Instances

from glipv2_d2.config import with_config_keys
from glipv2_d2.messages import quote
from glipv2_d2.modeling.prompt_builder import PromptBuilder
from glipv2_d2.structures import GenerationConfig, Prompt, Query, QueryKind, fields
from glipv2_d2.structures.text import Span, span_texts
from glipv2_d2.text.answers import check_answers
from glipv2_d2.text.limits import check_text
from glipv2_d2.text.noun_phrases import noun_phrases
from glipv2_d2.text.prompts import caption_prompt
from glipv2_d2.text.questions import (
    answered_prompt,
    is_groundable,
    mask_answer,
    question_prompt,
)

LOCALIZING = (fields.PROMPT, fields.CAPTION, fields.CLASSES)
"""Keys of an input that request boxes."""

TRAINING_TARGETS = (fields.INSTANCES, fields.QUESTION, fields.TARGET_CAPTIONS)
"""Keys of a training input that have a loss."""

ANSWER_GROUNDINGS = ("mask", "text")
"""How the answer is written in the prompt that grounds it."""

# Questions whose nouns are cached: datasets repeat them.
_MAX_CACHED_QUESTIONS = 65536


class QueryBuilder:
    """Builds the queries of a batch of input dicts (see structures.fields)."""

    def __init__(
        self,
        *,
        prompts: PromptBuilder,
        can_answer: bool,
        can_caption: bool,
        answer_grounding: str = "mask",
        encodes_nouns: bool = False,
        config_keys: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            prompts: builds the prompts of class names and captions.
            can_answer, can_caption: whether the model has the heads.
            answer_grounding: how an answer is written where it is localized: "mask", a mask token,
                as in training on grounded questions; or "text", the answer itself.
            encodes_nouns: the language backbone encodes the nouns of questions separately.
            config_keys: argument -> the config key that set it, for errors about inputs.

        Raises:
            ValueError: ``answer_grounding`` is neither.
        """
        if answer_grounding not in ANSWER_GROUNDINGS:
            raise ValueError(
                f"answer_grounding is {answer_grounding!r}; choose one of {ANSWER_GROUNDINGS}"
            )
        self.prompts = prompts
        self.tokenizer = prompts.tokenizer
        self.can_answer = can_answer
        self.can_caption = can_caption
        self.answer_grounding = answer_grounding
        self.encodes_nouns = encodes_nouns
        self.config_keys = config_keys or {}

    def for_training(self, inputs: Sequence[dict[str, Any]]) -> list[Query]:
        """The queries of a training batch, at least one of which is localized.

        If no input has boxes, a placeholder is localized: distributed training needs all processes
        to use every parameter in every loss.

        Raises:
            ValueError: an input has no training target, or one that no head of the model supports.
        """
        queries: list[Query] = []
        for i, x in enumerate(inputs):
            queries += self._training_queries(i, x)
        if all(query.gt_instances is None for query in queries):
            queries.append(
                Query(
                    0,
                    QueryKind.DETECT,
                    Prompt("", (), ()),
                    gt_instances=_no_instances(inputs[0]),
                    is_placeholder=True,
                )
            )
        return queries

    def text_queries(self, inputs: Sequence[dict[str, Any]]) -> list[Query]:
        """The questions to answer and the images to caption at inference.

        Raises:
            ValueError: a question is empty or too long, its choices are not a list of different
                answers, or the model lacks the head.
        """
        queries = []
        for i, x in enumerate(inputs):
            self._check(x)
            question = self._question(i, x)
            if question is not None:
                self._check_words(x)
                queries.append(replace(question, choices=_choices(x)))
            if _requests_caption(x):
                settings = x.get(fields.DESCRIBE)
                generation = settings if isinstance(settings, GenerationConfig) else None
                queries.append(
                    Query(i, QueryKind.CAPTION, Prompt("", (), ()), generation=generation)
                )
        return queries

    def text_prompt(self, x: dict[str, Any], outputs: Mapping[str, Any]) -> Prompt | None:
        """The generated text of an input with the phrases to ground; None: nothing to ground.

        For a question: the question with its answer, the last label. For a caption: the caption.
        With ``answer_grounding`` "text", a yes, no or number is not a label unless the question has
        no other.

        Args:
            outputs: the ``answer`` or ``caption`` of the input.

        Raises:
            ValueError: more than one text is to be grounded, or none.
        """
        if not x.get(fields.GROUND):
            return None
        others = [key for key in LOCALIZING if key in x]
        if others or (fields.ANSWER in outputs) == (fields.CAPTION in outputs):
            raise ValueError(
                f"{describe_input(x)}: 'ground' localizes the phrases of one question or of one "
                f"generated caption, not of {others or 'both or none'}"
            )
        if fields.CAPTION in outputs:
            caption = outputs[fields.CAPTION]
            return caption_prompt(caption, self._known_phrases(caption, noun_phrases(caption)))
        question, answer = x[fields.QUESTION].strip(), outputs[fields.ANSWER]
        phrases = self._known_phrases(question, noun_phrases(question))
        if phrases and self.answer_grounding == "text" and not is_groundable(answer):
            return caption_prompt(f"{question} {answer}", phrases)
        return answered_prompt(question, answer, phrases)

    def localized_queries(
        self, inputs: Sequence[dict[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> list[Query]:
        """The queries for boxes at inference: every chunk of class names, captions, grounded text.

        Args:
            outputs: per input what was generated for it; its ``prompt`` is grounded.
        """
        queries = []
        for i, (x, generated) in enumerate(zip(inputs, outputs, strict=True)):
            prompts = self._localized_prompts(x, generated.get(fields.PROMPT))
            queries += [Query(i, _kind(p), p) for p in prompts]
        return queries

    def other_orders(self, query: Query) -> list[Query]:
        """The query with its class names in the further orders to average over."""
        return [replace(query, prompt=prompt) for prompt in self.prompts.orders(query.prompt)[1:]]

    def _training_queries(self, i: int, x: dict[str, Any]) -> Iterator[Query]:
        """Grounded queries first, then questions, then captions."""
        question = self._training_question(i, x)
        if not any(key in x for key in TRAINING_TARGETS):
            raise ValueError(
                f"{describe_input(x)} has no training target: give it one of {TRAINING_TARGETS}"
            )
        if fields.INSTANCES in x:
            prompt, instances = self.prompts.for_training(x)
            query = Query(i, _kind(prompt), prompt, gt_instances=instances)
            grounded = mask_answer(prompt, question.prompt) if question is not None else None
            if question is not None and grounded is not None:
                query = replace(question, prompt=grounded, gt_instances=instances)
                question = None
            yield query
        if question is not None:
            yield question
        more = x.get(fields.MORE, ())
        for text in more:
            further = self._training_question(i, text)
            if further is not None:
                yield further
        for text in (x, *more):
            for prompt in self._target_captions(text):
                yield Query(i, QueryKind.CAPTION, prompt)

    def _localized_prompts(self, x: dict[str, Any], generated: Prompt | None) -> list[Prompt]:
        if generated is not None:
            if fields.QUESTION not in x:
                return [self.tokenizer.fit(generated)]
            hidden = None
            # A long answer may exceed the token limit; its mask token fits, as checked before.
            too_long = self._num_tokens(generated) > self.tokenizer.max_tokens
            if self.answer_grounding == "mask" or too_long:
                hidden = mask_answer(generated, self._question_prompt(x[fields.QUESTION]))
            return [hidden or generated]
        requests_text = fields.QUESTION in x or _requests_caption(x)
        if requests_text and not any(key in x for key in LOCALIZING):
            return []
        return self.prompts.for_inference(x)

    def _check(self, x: dict[str, Any]) -> None:
        if fields.QUESTION in x and not self.can_answer:
            raise self._error(
                f"{describe_input(x)} has a question, but the model has no answer head "
                "(can_answer is False): add one, or remove the dataset of questions"
            )
        if fields.QUESTION not in x and (fields.ANSWERS in x or fields.CHOICES in x):
            raise ValueError(f"{describe_input(x)} has answers, but no 'question': add one")
        if _requests_caption(x) and not self.can_caption:
            raise self._error(
                f"{describe_input(x)} requests a caption, but the model has no caption head "
                "(can_caption is False): add one, or remove the dataset of captions"
            )

    def _error(self, message: str) -> ValueError:
        return with_config_keys(ValueError(message), self.config_keys)

    def _training_question(self, i: int, x: dict[str, Any]) -> Query | None:
        self._check(x)
        question = self._question(i, x)
        return None if question is None else replace(question, answers=_answers(x))

    def _question(self, i: int, x: dict[str, Any]) -> Query | None:
        if fields.QUESTION not in x:
            return None
        question = x[fields.QUESTION]
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"{describe_input(x)}: the question {quote(question)} is empty")
        check_text(question, f"{describe_input(x)}: the question")
        prompt = self._question_prompt(question)
        num_tokens = self._num_tokens(prompt)
        if num_tokens > self.tokenizer.max_tokens:
            raise self._error(
                f"{describe_input(x)}: the question {quote(question)} has {num_tokens} tokens with "
                f"the mask token of its answer, the limit is {self.tokenizer.max_tokens}: shorten "
                "it or raise max_tokens"
            )
        return Query(i, QueryKind.ANSWER, prompt)

    def _check_words(self, x: dict[str, Any]) -> None:
        question = x[fields.QUESTION]
        (ids,) = self.tokenizer.encode([question])
        if not self.tokenizer.has_words(ids):
            raise ValueError(
                f"{describe_input(x)}: the question {quote(question)} has no word in the "
                "tokenizer's vocabulary: use the language that the model was trained on"
            )

    def _known_phrases(self, text: str, phrases: Sequence[Sequence[Span]]) -> list[Sequence[Span]]:
        """The phrases with a word in the tokenizer's vocabulary."""
        ids_per_phrase = self.tokenizer.encode(span_texts(text, phrases))
        return [
            spans
            for spans, ids in zip(phrases, ids_per_phrase, strict=True)
            if self.tokenizer.has_words(ids)
        ]

    def _num_tokens(self, prompt: Prompt) -> int:
        return self.tokenizer.count(prompt.text) + self.tokenizer.num_special_tokens

    def _question_prompt(self, question: str) -> Prompt:
        question = question.strip()
        nouns = question_nouns(question) if self.encodes_nouns else ()
        return question_prompt(question, self.tokenizer.mask_token, nouns)

    def _target_captions(self, x: dict[str, Any]) -> list[Prompt]:
        captions = x.get(fields.TARGET_CAPTIONS)
        if captions is None:
            return []
        if isinstance(captions, str) or not captions:
            raise ValueError(
                f"{describe_input(x)}: target_captions {quote(captions)} is not a list of captions"
            )
        for caption in captions:
            if not isinstance(caption, str) or not caption.strip():
                raise ValueError(f"{describe_input(x)}: the caption {quote(caption)} is empty")
        return [self.tokenizer.fit(Prompt(caption.strip(), (), ())) for caption in captions]


def iterate_chunks(queries: Sequence[Query]) -> Iterator[list[Query]]:
    """The first query of every image, then the second of those that have one, and so on.

    >>> images_and_texts = [(0, "a"), (1, "b"), (1, "c")]
    >>> queries = [Query(i, QueryKind.DETECT, Prompt(x, (), ())) for i, x in images_and_texts]
    >>> [[query.prompt.text for query in chunk] for chunk in iterate_chunks(queries)]
    [['a', 'b'], ['c']]
    """
    per_image: dict[int, list[Query]] = {}
    for query in queries:
        per_image.setdefault(query.image, []).append(query)
    for k in range(max(map(len, per_image.values()), default=0)):
        yield [of_image[k] for of_image in per_image.values() if k < len(of_image)]


@functools.lru_cache(maxsize=_MAX_CACHED_QUESTIONS)
def question_nouns(question: str) -> tuple[Span, ...]:
    """The spans of a question's nouns, without articles; errors as in :func:`noun_phrases`."""
    return tuple(span for (span,) in noun_phrases(question, articles=False))


def describe_input(x: dict[str, Any]) -> str:
    """The image or question of an input, for messages."""
    image = f"image {x[fields.FILE_NAME]!r}" if fields.FILE_NAME in x else "an image"
    if fields.QUESTION_ID in x:
        return f"question {x[fields.QUESTION_ID]!r} of {image}"
    return image


def _kind(prompt: Prompt) -> QueryKind:
    return QueryKind.DETECT if prompt.is_class_list else QueryKind.GROUND


def _requests_caption(x: dict[str, Any]) -> bool:
    return fields.TARGET_CAPTIONS in x or bool(x.get(fields.DESCRIBE))


def _answers(x: dict[str, Any]) -> Mapping[str, float]:
    if fields.ANSWERS not in x:
        raise ValueError(
            f"{describe_input(x)} has no 'answers', as in a test set: it cannot be trained on"
        )
    return x[fields.ANSWERS]


def _choices(x: dict[str, Any]) -> list[str] | None:
    choices = x.get(fields.CHOICES)
    return None if choices is None else check_answers(choices, f"{describe_input(x)}: the choices")


def _no_instances(x: dict[str, Any]) -> Instances:
    instances = Instances(tuple(x[fields.IMAGE].shape[-2:]))
    instances.gt_boxes = Boxes(torch.zeros(0, 4))
    instances.gt_classes = torch.zeros(0, dtype=torch.int64)
    return instances
