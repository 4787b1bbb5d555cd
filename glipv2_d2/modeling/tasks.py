"""What the images of a batch are asked: to find things, to answer questions, to be described.

An image may be asked several things, or nothing of one kind. Texts that are read in the same way
are read together; a question whose phrases are to be found is read once for both.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.structures import Boxes, Instances

from glipv2_d2.modeling.generation.beam_search import GenerationConfig
from glipv2_d2.modeling.prompting import InputPrompts
from glipv2_d2.structures import Prompt, fields
from glipv2_d2.structures.text import Span
from glipv2_d2.text.answers import check_answers
from glipv2_d2.text.noun_phrases import noun_phrases
from glipv2_d2.text.prompts import caption_prompt
from glipv2_d2.text.questions import (
    answered_prompt,
    hide_answer,
    names_no_thing,
    question_prompt,
)
from glipv2_d2.text.tokenizer import Tokenizer

THINGS_TO_FIND = (fields.PROMPT, fields.CAPTION, fields.CLASSES)

SOMETHING_TO_LEARN = (fields.INSTANCES, fields.QUESTION, fields.TARGET_CAPTIONS)

# How the answer is written where it is to be found.
GROUND_BY = ("mask", "words")

# Questions whose nouns are remembered: data sets ask the same again and again.
_KNOWN_QUESTIONS = 65536


@dataclass(frozen=True)
class Asked:
    """One text that one image is asked.

    Attributes:
        image: its number in the batch.
        answers: of a question in training, what its answers are worth; None: it is no question.
        choices: of a question at inference, the answers to choose from; None: the model's.
    """

    image: int
    prompt: Prompt
    answers: Mapping[str, float] | None = None
    choices: Sequence[str] | None = None


@dataclass(frozen=True)
class TrainingTasks:
    """What the images of a training batch are asked.

    Attributes:
        to_find: texts with something to find, grounded questions among them; never none.
        gt_instances: for each of them where it is.
        finds_nothing: no image says where anything is: ``to_find`` is a stand-in of which nothing
            is to be learned. Distributed training needs it, as all processes have to take part in
            every loss and with every parameter.
        questions: those of which nothing is to be found.
        captions: to be learned word by word.
    """

    to_find: list[Asked]
    gt_instances: list[Instances]
    finds_nothing: bool
    questions: list[Asked]
    captions: list[Asked]

    @property
    def images_to_search(self) -> list[int]:
        return [asked.image for asked in self.to_find]

    @property
    def grounded_questions(self) -> list[int]:
        """Which of the texts to find are questions."""
        return [i for i, asked in enumerate(self.to_find) if asked.answers is not None]

    @property
    def images_to_tell_of(self) -> list[list[int]]:
        """The images of grounded questions, of the other questions and of captions."""
        grounded = [self.to_find[i].image for i in self.grounded_questions]
        others = ([asked.image for asked in texts] for texts in (self.questions, self.captions))
        return [grounded, *others]

    @property
    def answers(self) -> list[Mapping[str, float]]:
        """What answers are worth, first of grounded questions, then of the others."""
        grounded = [self.to_find[i] for i in self.grounded_questions]
        return [asked.answers or {} for asked in (*grounded, *self.questions)]


class InputTasks:
    """Reads from input dicts (see structures.fields) what they ask."""

    def __init__(
        self,
        *,
        input_prompts: InputPrompts,
        tokenizer: Tokenizer,
        can_answer: bool,
        can_describe: bool,
        ground_by: str,
        finds_nouns: bool,
    ) -> None:
        """
        Args:
            input_prompts: says what is to be found.
            can_answer, can_describe: which heads there are.
            finds_nouns: questions say what their nouns are.
            ground_by: how the answer is written where it is to be found: "mask", a hidden word, as
                grounded questions are learned; or "words", its own.

        Raises:
            ValueError: ``ground_by`` is neither.
        """
        if ground_by not in GROUND_BY:
            raise ValueError(f"MODEL.ANSWER.GROUND_BY is {ground_by!r}; choose one of {GROUND_BY}")
        self.input_prompts = input_prompts
        self.tokenizer = tokenizer
        self.can_answer = can_answer
        self.can_describe = can_describe
        self.ground_by = ground_by
        self.finds_nouns = finds_nouns

    def for_training(self, inputs: Sequence[dict[str, Any]]) -> TrainingTasks:
        """What to learn from each input.

        Raises:
            ValueError: an input has nothing to learn, or something that no head of the model
                learns.
        """
        to_find, gt_instances, questions, captions = [], [], [], []
        for i, x in enumerate(inputs):
            question = self._question_to_learn(i, x)
            if fields.INSTANCES in x:
                prompt, instances = self.input_prompts.for_training(x)
                grounded = None
                if question is not None:
                    grounded = hide_answer(prompt, question.prompt)
                if question is not None and grounded is not None:
                    to_find.append(replace(question, prompt=grounded))
                    question = None
                else:
                    to_find.append(Asked(i, prompt))
                gt_instances.append(instances)
            if question is not None:
                questions.append(question)
            if not any(key in x for key in SOMETHING_TO_LEARN):
                raise ValueError(
                    f"{place_of(x)} has nothing to learn: give it one of {SOMETHING_TO_LEARN}"
                )
            more = x.get(fields.MORE, ())
            questions += filter(None, (self._question_to_learn(i, text) for text in more))
            for text in (x, *more):
                captions += [Asked(i, prompt) for prompt in self._target_captions(text)]
        finds_nothing = not to_find
        if finds_nothing:
            to_find, gt_instances = [Asked(0, Prompt("", (), ()))], [_no_instances(inputs[0])]
        return TrainingTasks(to_find, gt_instances, finds_nothing, questions, captions)

    def questions(self, inputs: Sequence[dict[str, Any]]) -> list[Asked]:
        """The questions to be answered.

        Raises:
            ValueError: one is empty or too long, its choices are no list of different answers, or
                the model answers none.
        """
        asked = []
        for i, x in enumerate(inputs):
            self._check(x)
            question = self._question(i, x)
            if question is not None:
                asked.append(replace(question, choices=_choices_of(x)))
        return asked

    def descriptions(
        self, inputs: Sequence[dict[str, Any]]
    ) -> dict[GenerationConfig | None, list[int]]:
        """The images to be described, by how; None: as the config says."""
        images: dict[GenerationConfig | None, list[int]] = {}
        for i, x in enumerate(inputs):
            if _is_described(x):
                how = x.get(fields.DESCRIBE)
                images.setdefault(how if isinstance(how, GenerationConfig) else None, []).append(i)
        return images

    def said_with_phrases(self, x: dict[str, Any], said: Mapping[str, Any]) -> Prompt | None:
        """What was said of an image, with all that is to be found of it; None: nothing is.

        That is a question with its answer, where the last label is the answer; or a caption. By its
        words, a yes, no or number is not found, and so no label, where the question has others.

        Raises:
            ValueError: more than one text is to be found, or none.
        """
        if not x.get(fields.GROUND):
            return None
        others = [key for key in THINGS_TO_FIND if key in x]
        if others or (fields.ANSWER in said) == (fields.CAPTION in said):
            raise ValueError(
                f"{place_of(x)}: 'ground' finds the phrases of one question or of one description, "
                f"and not those of {others or 'both or none'}"
            )
        if fields.CAPTION in said:
            caption = said[fields.CAPTION]
            return caption_prompt(caption, noun_phrases(caption))
        question, answer = x[fields.QUESTION].strip(), said[fields.ANSWER]
        phrases = noun_phrases(question)
        if phrases and self.ground_by == "words" and names_no_thing(answer):
            return caption_prompt(f"{question} {answer}", phrases)
        return answered_prompt(question, answer, phrases)

    def prompts_to_find(self, x: dict[str, Any], said: Prompt | None) -> list[Prompt]:
        """The texts that say what is to be found in an image, after something was said of it.

        Args:
            said: of :meth:`said_with_phrases`.
        """
        if said is not None:
            if fields.QUESTION not in x:
                return [self.tokenizer.fit(said)]
            hidden = None
            # A long answer may be what a prompt has no room for; its hidden place fitted before.
            if self.ground_by == "mask" or self._num_tokens(said) > self.tokenizer.max_tokens:
                hidden = hide_answer(said, self._question_prompt(x[fields.QUESTION]))
            return [hidden or said]
        has_words_to_say = fields.QUESTION in x or _is_described(x)
        if has_words_to_say and not any(key in x for key in THINGS_TO_FIND):
            return []
        return self.input_prompts.for_inference(x)

    def _check(self, x: dict[str, Any]) -> None:
        if fields.QUESTION in x and not self.can_answer:
            raise ValueError(
                f"{place_of(x)} has a question, but the model has no head for answers: set "
                "MODEL.ANSWER.WEIGHT, or take the data set of questions out"
            )
        if fields.QUESTION not in x and (fields.ANSWERS in x or fields.CHOICES in x):
            raise ValueError(f"{place_of(x)} has answers, but no 'question': give one")
        if _is_described(x) and not self.can_describe:
            raise ValueError(
                f"{place_of(x)} is to be described, but the model has no head for captions: set "
                "MODEL.CAPTION.WEIGHT, or take the data set of captions out"
            )

    def _question_to_learn(self, i: int, x: dict[str, Any]) -> Asked | None:
        self._check(x)
        question = self._question(i, x)
        return None if question is None else replace(question, answers=_answers_of(x))

    def _question(self, i: int, x: dict[str, Any]) -> Asked | None:
        question = x.get(fields.QUESTION)
        if question is None and fields.QUESTION not in x:
            return None
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"{place_of(x)}: the question {question!r} has no words: write one")
        prompt = self._question_prompt(question)
        num_tokens = self._num_tokens(prompt)
        if num_tokens > self.tokenizer.max_tokens:
            raise ValueError(
                f"{place_of(x)}: the question {question[:60]!r} has {num_tokens} tokens with the "
                f"place of its answer, the limit is {self.tokenizer.max_tokens}: shorten it or "
                "raise MODEL.PROMPT.MAX_TOKENS"
            )
        return Asked(i, prompt)

    def _num_tokens(self, prompt: Prompt) -> int:
        return self.tokenizer.count(prompt.text) + self.tokenizer.num_special_tokens

    def _question_prompt(self, question: str) -> Prompt:
        question = question.strip()
        nouns = nouns_of(question) if self.finds_nouns else ()
        return question_prompt(question, self.tokenizer.mask_token, nouns)

    def _target_captions(self, x: dict[str, Any]) -> list[Prompt]:
        captions = x.get(fields.TARGET_CAPTIONS)
        if captions is None:
            return []
        if isinstance(captions, str) or not captions:
            raise ValueError(f"{place_of(x)}: target_captions {captions!r} is no list of captions")
        for caption in captions:
            if not isinstance(caption, str) or not caption.strip():
                raise ValueError(
                    f"{place_of(x)}: the caption {caption!r} has no words: take it out"
                )
        return [self.tokenizer.fit(Prompt(caption.strip(), (), ())) for caption in captions]


@functools.lru_cache(maxsize=_KNOWN_QUESTIONS)
def nouns_of(question: str) -> tuple[Span, ...]:
    """What a question names, without articles; errors as of :func:`noun_phrases`."""
    return tuple(span for (span,) in noun_phrases(question, articles=False))


def place_of(x: dict[str, Any]) -> str:
    """An input in a message."""
    place = f"image {x[fields.FILE_NAME]!r}" if fields.FILE_NAME in x else "an image"
    if fields.QUESTION_ID in x:
        return f"question {x[fields.QUESTION_ID]!r} of {place}"
    return place


def _is_described(x: dict[str, Any]) -> bool:
    return fields.TARGET_CAPTIONS in x or bool(x.get(fields.DESCRIBE))


def _answers_of(x: dict[str, Any]) -> Mapping[str, float]:
    if fields.ANSWERS not in x:
        raise ValueError(
            f"{place_of(x)} has no 'answers', as in a test set; there is nothing to learn from it"
        )
    return x[fields.ANSWERS]


def _choices_of(x: dict[str, Any]) -> list[str] | None:
    choices = x.get(fields.CHOICES)
    return None if choices is None else check_answers(choices, f"{place_of(x)}: the choices")


def _no_instances(x: dict[str, Any]) -> Instances:
    instances = Instances(tuple(x[fields.IMAGE].shape[-2:]))
    instances.gt_boxes = Boxes(torch.zeros(0, 4))
    instances.gt_classes = torch.zeros(0, dtype=torch.int64)
    return instances
