"""Beam search; with one beam, greedy search.

N: sequences to generate. B: beams per sequence. V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from glipv2_d2.messages import quote
from glipv2_d2.structures import GenerationConfig

NEVER = float("-inf")


class _Hypotheses:
    """The beams of one sequence, and its best B finished continuations."""

    def __init__(self, begin: Sequence[int], generation: GenerationConfig, end_id: int) -> None:
        self.generation = generation
        self.end_id = end_id
        self.num_given = len(begin)
        self.beams = [list(begin)] * generation.beam_size
        self.finished: list[tuple[float, list[int]]] = []
        self.is_done = False

    def best(self) -> list[int]:
        """The best finished sequence, the first among equals."""
        return self.finished[0][1]

    def advance(self, candidates: Iterable[tuple[float, int, int]]) -> list[tuple[float, int, int]]:
        """Finish sequences and select the next beams.

        Args:
            candidates: (log-probability of the sequence, beam, next token), likeliest first.

        Returns:
            the B candidates that are the next beams, padded with beams that never finish; only
            padding once the search is done.
        """
        num_beams = self.generation.beam_size
        selected: list[tuple[float, int, int]] = []
        padding = [(NEVER, 0, self.end_id)] * num_beams
        if self.is_done:
            return padding
        num_new = len(self.beams[0]) - self.num_given + 1
        scale = num_new**self.generation.length_penalty
        for rank, (score, beam, token) in enumerate(candidates):
            if score == NEVER:
                break
            if token != self.end_id:
                selected.append((score, beam, token))
            elif rank < num_beams:
                self.finished.append((score / scale, self.beams[beam]))
        self.finished = sorted(self.finished, key=lambda x: x[0], reverse=True)[:num_beams]
        best_score = selected[0][0] if selected else NEVER
        if len(self.finished) == num_beams and self.finished[-1][0] >= best_score / scale:
            self.is_done = True
        selected = (selected + padding)[:num_beams]
        self.beams = [[*self.beams[beam], token] for _, beam, token in selected]
        return selected


def beam_search(
    next_log_probs: Callable[[Tensor], Tensor],
    reorder: Callable[[Tensor], None],
    *,
    begin: Sequence[int],
    batch_size: int,
    end_id: int,
    forbidden_ids: Sequence[int],
    generation: GenerationConfig,
    device: torch.device,
) -> list[list[int]]:
    """The likeliest continuations of ``begin``, one per sequence of the batch.

    Each step takes the 2 B likeliest next tokens over all beams of a sequence. The first B of them
    that are the end token finish a sequence (the best B finished ones are kept); the first B others
    are the next beams. The search is done when B sequences are finished and the best beam, finished
    now at no cost, would not beat the last of them (early_stopping=False in transformers); at
    ``max_length`` every beam finishes.

    Args:
        next_log_probs: appends (R, T) tokens to R partial sequences and returns the (R, V)
            log-probabilities of the next token. R is N at first, later N B, beams of a sequence in
            a row.
        reorder: (R',) keeps these partial sequences, in this order, possibly repeated.
        begin: tokens of the beginning, [CLS] first.
        batch_size: N.
        end_id: id of [SEP].
        forbidden_ids: tokens that are never generated.
        generation: beams, lengths and length penalty.

    Returns:
        the tokens after [CLS], without [SEP].

    Raises:
        ValueError: there are more beams than tokens, or the prefix fills the maximal length.
    """
    num_beams, num_given = generation.beam_size, len(begin) - 1
    if num_given >= generation.max_length:
        raise ValueError(
            f"the prefix {quote(generation.prefix)} has {num_given} tokens, but max_length is "
            f"{generation.max_length}: shorten the prefix or raise max_length"
        )
    log_probs = next_log_probs(torch.tensor([begin] * batch_size, device=device))
    vocab_size = log_probs.shape[1]
    check_beam_size(num_beams, vocab_size)
    hypotheses = [_Hypotheses(begin[1:], generation, end_id) for _ in range(batch_size)]
    # All beams start equal: only one of them counts.
    scores = torch.full((batch_size, num_beams), NEVER, device=device)
    scores[:, 0] = 0
    rows = torch.arange(batch_size, device=device).repeat_interleave(num_beams)
    reorder(rows)
    log_probs = log_probs[rows]
    for length in range(num_given, generation.max_length + 1):
        allowed = _allowed(vocab_size, length, generation, end_id, forbidden_ids).to(device)
        totals = scores.view(-1, 1) + log_probs.masked_fill(~allowed, NEVER)
        best = totals.view(batch_size, -1).topk(min(2 * num_beams, num_beams * vocab_size))
        selected = []
        for sequence, values, indices in zip(
            hypotheses, best.values.tolist(), best.indices.tolist(), strict=True
        ):
            beams_and_tokens = [divmod(index, vocab_size) for index in indices]
            selected.append(
                sequence.advance((v, *x) for v, x in zip(values, beams_and_tokens, strict=True))
            )
        if length == generation.max_length or all(sequence.is_done for sequence in hypotheses):
            break
        scores = torch.tensor([[score for score, _, _ in x] for x in selected], device=device)
        beams = torch.tensor([[beam for _, beam, _ in x] for x in selected], device=device)
        tokens = torch.tensor([[token for _, _, token in x] for x in selected], device=device)
        first_rows = torch.arange(batch_size, device=device)[:, None] * num_beams
        reorder((first_rows + beams).flatten())
        log_probs = next_log_probs(tokens.view(-1, 1))
    return [sequence.best() for sequence in hypotheses]


def _allowed(
    vocab_size: int,
    length: int,
    generation: GenerationConfig,
    end_id: int,
    forbidden_ids: Sequence[int],
) -> Tensor:
    """(V,) bool, the tokens that may follow a sequence of ``length`` tokens."""
    is_end = torch.zeros(vocab_size, dtype=torch.bool)
    is_end[end_id] = True
    if length >= generation.max_length:
        return is_end
    allowed = torch.ones(vocab_size, dtype=torch.bool)
    allowed[list(forbidden_ids)] = False
    allowed[end_id] = length >= generation.min_length
    return allowed


def check_beam_size(beam_size: int, vocab_size: int) -> None:
    """Raise a ValueError if there are more beams than tokens to start them with."""
    if beam_size > vocab_size:
        raise ValueError(
            f"beam_size is {beam_size}, but the vocabulary has only {vocab_size} tokens: lower it"
        )
