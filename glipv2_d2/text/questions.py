"""Questions as texts: the place of the answer is a hidden word behind the question.

So it can be told where the answer was seen: its boxes are those of the hidden word (released code
of GLIP, data/datasets/pseudo_data.py). A question is always written like this, whether or not
anything is to be found (our choice), so that its answer is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from glipv2_d2.structures import Prompt
from glipv2_d2.structures.text import Span
from glipv2_d2.text.answers import canonical_answer
from glipv2_d2.text.prompts import caption_prompt


def question_prompt(question: str, mask_token: str, nouns: Sequence[Span] = ()) -> Prompt:
    """A question with its hidden answer, where nothing is to be found.

    Args:
        nouns: character spans of the question without blanks around it.

    >>> question_prompt("what is red? ", "[MASK]").text
    'what is red? [MASK]'
    """
    text = f"{question.strip()} {mask_token}"
    return Prompt(text, (), (), is_question=True, nouns=tuple(nouns))


def answered_prompt(question: str, answer: str, phrases: Sequence[Sequence[Span]]) -> Prompt:
    """A question and its answer, where phrases of the question and the answer are to be found.

    Args:
        phrases: character spans of the question without blanks around it.

    >>> answered_prompt("what is on the mat?", "a cat", [[(11, 18)]]).phrases
    ['the mat', 'a cat']
    """
    question = question.strip()
    text = f"{question} {answer}"
    return caption_prompt(text, [*phrases, [(len(question) + 1, len(text))]])


def names_no_thing(answer: str) -> bool:
    """Whether an answer is one that no region can match: yes, no, or a number.

    >>> [names_no_thing(answer) for answer in ("Yes", "2", "two", "two dogs")]
    [True, True, True, False]
    """
    answer = canonical_answer(answer)
    return answer in ("yes", "no") or answer.isdecimal()


def hide_answer(prompt: Prompt, question: Prompt) -> Prompt | None:
    """The question of a caption that is a question with its answer, or the question alone.

    Labels in the answer become labels of the hidden word.

    Args:
        prompt: the caption.
        question: of :func:`question_prompt`.

    Returns:
        None where the caption does not begin with the question.

    >>> answered = answered_prompt("what is red?", "a car", [])
    >>> hidden = hide_answer(answered, question_prompt("what is red?", "[MASK]"))
    >>> hidden.text, hidden.phrases
    ('what is red? [MASK]', ['[MASK]'])
    """
    end = question.text.rindex(" ")
    if prompt.text[:end] != question.text[:end] or not (prompt.text[end:] + " ")[0].isspace():
        return None
    hidden = (end + 1, len(question.text))

    def places(spans: tuple[Span, ...]) -> tuple[Span, ...]:
        # A span of both, which no parser gives, is one of the question.
        kept = [hidden if start >= end else (start, min(stop, end)) for start, stop in spans]
        return tuple(dict.fromkeys(kept))

    return replace(
        question,
        spans=tuple(places(spans) for spans in prompt.spans),
        classes=prompt.classes,
    )
