"""Texts written word by word: beam search, of which a beam of one is the greedy choice.

N: texts that are written. B: beams, the beginnings of a text that are kept. V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NEVER = float("-inf")


@dataclass(frozen=True)
class GenerationConfig:
    """How a text is written. Lengths are in tokens, with those of the prefix, without [SEP].

    Attributes:
        beam_size: B; 1 takes the likeliest word each time.
        min_length, max_length: of the text.
        length_penalty: ended texts are compared by their log-probability over the number of their
            new tokens to this power; 0 favours short ones.
        prefix: what the text begins with.
    """

    beam_size: int = 5
    min_length: int = 1
    max_length: int = 30
    length_penalty: float = 1.0
    prefix: str = ""

    def __post_init__(self) -> None:
        for name in ("beam_size", "min_length", "max_length"):
            if not isinstance(getattr(self, name), int):
                raise TypeError(f"{name} is {getattr(self, name)!r}; it should be a whole number")
        if not isinstance(self.length_penalty, int | float):
            raise TypeError(f"length_penalty is {self.length_penalty!r}; it should be a number")
        if not isinstance(self.prefix, str):
            raise TypeError(f"prefix is {self.prefix!r}; it should be a text")
        if self.beam_size < 1:
            raise ValueError(f"the beam size is {self.beam_size}; 1 is the greedy choice")
        if self.min_length < 1 or self.max_length < 1:
            raise ValueError(
                f"captions of {self.min_length} to {self.max_length} tokens: a caption has at "
                "least one"
            )
        if self.min_length > self.max_length:
            raise ValueError(
                f"captions of at least {self.min_length} and at most {self.max_length} tokens do "
                "not exist: lower MODEL.CAPTION.MIN_LENGTH or raise MAX_LENGTH"
            )


class _Search:
    """The beams of one text, and the best B of its continuations that have ended."""

    def __init__(self, begin: Sequence[int], decoding: GenerationConfig, end_id: int) -> None:
        self.decoding = decoding
        self.end_id = end_id
        self.num_given = len(begin)
        self.beams = [list(begin)] * decoding.beam_size
        self.ended: list[tuple[float, list[int]]] = []
        self.is_done = False

    def best(self) -> list[int]:
        """The best text that has ended, the first of equals."""
        return self.ended[0][1]

    def go_on(self, candidates: Iterable[tuple[float, int, int]]) -> list[tuple[float, int, int]]:
        """End texts and choose the next beams.

        Args:
            candidates: (log-probability of the text, beam, next token), likeliest first.

        Returns:
            the B candidates that are the next beams; where there are fewer, and after the end of
            the search, beams that never end.
        """
        num_beams = self.decoding.beam_size
        chosen: list[tuple[float, int, int]] = []
        fillers = [(NEVER, 0, self.end_id)] * num_beams
        if self.is_done:
            return fillers
        num_new = len(self.beams[0]) - self.num_given + 1
        scale = num_new**self.decoding.length_penalty
        for rank, (score, beam, word) in enumerate(candidates):
            if score == NEVER:
                break
            if word != self.end_id:
                chosen.append((score, beam, word))
            elif rank < num_beams:
                self.ended.append((score / scale, self.beams[beam]))
        self.ended = sorted(self.ended, key=lambda text: text[0], reverse=True)[:num_beams]
        best_score = chosen[0][0] if chosen else NEVER
        if len(self.ended) == num_beams and self.ended[-1][0] >= best_score / scale:
            self.is_done = True
        chosen = (chosen + fillers)[:num_beams]
        self.beams = [[*self.beams[beam], word] for _, beam, word in chosen]
        return chosen


def beam_search(
    read: Callable[[Tensor], Tensor],
    reorder: Callable[[Tensor], None],
    *,
    begin: Sequence[int],
    num_texts: int,
    end_id: int,
    forbidden_ids: Sequence[int],
    decoding: GenerationConfig,
    device: torch.device,
) -> list[list[int]]:
    """The likeliest continuations of ``begin``, one per text.

    Of the 2 B likeliest next tokens of all beams of a text, those among the first B that end it
    give texts, of which the best B are kept, and the first B that do not end it are its next beams.
    The search is over when B texts are kept and the best beam, if it ended now at no cost, would
    not be better than the last of them (as transformers does with early_stopping=False); at
    ``max_length`` all end.

    Args:
        read: reads (R, T) further tokens of the R texts that it keeps and gives the (R, V)
            log-probabilities of the next. R is N at first, later N B, those of a text in a row.
        reorder: (R',) which of the texts that are kept go on, any of them several times.
        begin: tokens of the beginning, [CLS] first.
        end_id: of [SEP].
        forbidden_ids: never written.

    Returns:
        the tokens behind [CLS], without [SEP].

    Raises:
        ValueError: there are more beams than words, or the beginning is as long as a text may be.
    """
    num_beams, num_given = decoding.beam_size, len(begin) - 1
    if num_given >= decoding.max_length:
        raise ValueError(
            f"the prefix {decoding.prefix!r} has {num_given} tokens, and a caption at most "
            f"{decoding.max_length}: shorten it, or raise the maximal length"
        )
    log_probs = read(torch.tensor([begin] * num_texts, device=device))
    vocab_size = log_probs.shape[1]
    check_beam_size(num_beams, vocab_size)
    searches = [_Search(begin[1:], decoding, end_id) for _ in range(num_texts)]
    # All beams are the beginning at first: only one of them counts.
    scores = torch.full((num_texts, num_beams), NEVER, device=device)
    scores[:, 0] = 0
    rows = torch.arange(num_texts, device=device).repeat_interleave(num_beams)
    reorder(rows)
    log_probs = log_probs[rows]
    for length in range(num_given, decoding.max_length + 1):
        allowed = _allowed(vocab_size, length, decoding, end_id, forbidden_ids).to(device)
        totals = scores.view(-1, 1) + log_probs.masked_fill(~allowed, NEVER)
        best = totals.view(num_texts, -1).topk(min(2 * num_beams, num_beams * vocab_size))
        chosen = []
        for search, values, places in zip(
            searches, best.values.tolist(), best.indices.tolist(), strict=True
        ):
            beams_and_words = [divmod(place, vocab_size) for place in places]
            chosen.append(
                search.go_on((v, *pair) for v, pair in zip(values, beams_and_words, strict=True))
            )
        if length == decoding.max_length or all(search.is_done for search in searches):
            break
        scores = torch.tensor([[score for score, _, _ in beams] for beams in chosen], device=device)
        beams = torch.tensor([[beam for _, beam, _ in beams] for beams in chosen], device=device)
        words = torch.tensor([[word for _, _, word in beams] for beams in chosen], device=device)
        first_rows = torch.arange(num_texts, device=device)[:, None] * num_beams
        reorder((first_rows + beams).flatten())
        log_probs = read(words.view(-1, 1))
    return [search.best() for search in searches]


def _allowed(
    vocab_size: int,
    length: int,
    decoding: GenerationConfig,
    end_id: int,
    forbidden_ids: Sequence[int],
) -> Tensor:
    """(V,) bool, what may follow a text of so many tokens."""
    is_end = torch.zeros(vocab_size, dtype=torch.bool)
    is_end[end_id] = True
    if length >= decoding.max_length:
        return is_end
    allowed = torch.ones(vocab_size, dtype=torch.bool)
    allowed[list(forbidden_ids)] = False
    allowed[end_id] = length >= decoding.min_length
    return allowed


def check_beam_size(beam_size: int, vocab_size: int) -> None:
    """Raise a ValueError where there are more beams than words to begin them with."""
    if beam_size > vocab_size:
        raise ValueError(
            f"the beam size (MODEL.CAPTION.BEAM_SIZE) is {beam_size}, but the vocabulary has only "
            f"{vocab_size} words: lower it"
        )
