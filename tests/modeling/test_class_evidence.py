"""Three classes, the second of which has two names, and text embeddings in the plane."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from glipv2_d2.modeling.class_evidence import (
    MAX_EVIDENCE,
    MIN_EVIDENCE,
    ClassEvidence,
    build_class_evidence,
    evidence_logits,
)

CLASS_ANGLES = [0, 90, 110, 180]
CLASS_OF_NAME = [0, 1, 1, 2]
TEXT_ANGLES = [0, 20, 45, 100, 290]


def directions(degrees: Sequence[float], length: float = 1.0) -> Tensor:
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return length * torch.stack([radians.cos(), radians.sin()], dim=-1)


def make_evidence(**options: float) -> ClassEvidence:
    return ClassEvidence(
        class_embeddings=directions(CLASS_ANGLES, length=3.0),
        class_of_embedding=CLASS_OF_NAME,
        num_classes=3,
        **options,
    )


def expected_similarity(angle: float, k: int, low: float, high: float) -> float:
    cosines = [
        math.cos(math.radians(angle - other))
        for other, class_ in zip(CLASS_ANGLES, CLASS_OF_NAME, strict=True)
        if class_ == k
    ]
    return min(max((max(cosines) - low) / (high - low), 0.0), 1.0)


def random_probs(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("low", "high"), [(0.45, 0.85), (-0.5, 1.0)])
def test_similarity_is_the_clamped_cosine_of_a_class_s_nearest_name(
    low: float, high: float
) -> None:
    evidence = make_evidence(min_similarity=low, max_similarity=high)
    expected = [[expected_similarity(a, k, low, high) for k in range(3)] for a in TEXT_ANGLES]
    found = evidence.similarity(directions(TEXT_ANGLES, length=0.1))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_text_may_have_any_number_of_dimensions() -> None:
    evidence, text = make_evidence(), directions(TEXT_ANGLES)
    expected = evidence.similarity(text)
    batched = evidence.similarity(text.expand(2, 4, -1, -1))
    assert batched.shape == (2, 4, 5, 3)
    torch.testing.assert_close(batched, expected.expand(2, 4, -1, -1))
    torch.testing.assert_close(evidence.similarity(text[0]), expected[0])
    assert evidence.similarity(text[:0]).shape == (0, 3)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_evidence_equals_the_formula_written_out(batch: tuple[int, ...]) -> None:
    probs = random_probs(*batch, 4, 6)
    similarity = (1.5 * random_probs(*batch, 5, 6, seed=1) - 0.5).clamp(0, 1)
    similarity[..., 2, :] = 0
    products = probs[..., :, None, :] * similarity[..., None, :, :]  # (..., A, T, K)
    torch.testing.assert_close(ClassEvidence.best(probs, similarity), products.amax(-1))
    expected = products.sum(-1)
    assert (expected > 1).any()
    torch.testing.assert_close(ClassEvidence.expected(probs, similarity), expected.clamp(max=1))
    classes = products.argmax(-1)
    classes[..., 2] = probs.argmax(-1)
    assert torch.equal(ClassEvidence.best_classes(probs, similarity), classes)


def test_images_with_the_same_names_may_share_one_similarity() -> None:
    probs, similarity = random_probs(2, 4, 6), random_probs(5, 6)
    expected = torch.stack([ClassEvidence.best(of_image, similarity) for of_image in probs])
    torch.testing.assert_close(ClassEvidence.best(probs, similarity), expected)
    torch.testing.assert_close(
        ClassEvidence.expected(probs, similarity),
        torch.stack([ClassEvidence.expected(of_image, similarity) for of_image in probs]),
    )


def test_evidence_without_names_or_regions_is_empty() -> None:
    probs, similarity = random_probs(4, 6), random_probs(5, 6)
    for compute in (ClassEvidence.best, ClassEvidence.best_classes, ClassEvidence.expected):
        assert compute(probs, similarity[:0]).shape == (4, 0)
        assert compute(probs[:0], similarity).shape == (0, 5)


def test_gradients_reach_the_classes_that_contribute() -> None:
    probs = torch.tensor([[0.6, 0.3, 0.1]], requires_grad=True)
    similarity = torch.tensor([[0.5, 0.2, 0.0]])
    for compute, expected in (
        (ClassEvidence.best, [[0.5, 0.0, 0.0]]),
        (ClassEvidence.expected, [[0.5, 0.2, 0.0]]),
    ):
        (gradient,) = torch.autograd.grad(compute(probs, similarity).sum(), probs)
        torch.testing.assert_close(gradient, torch.tensor(expected))


def test_a_name_of_a_class_excludes_related_classes() -> None:
    """Of the classes at 0, 90 or 110, and 180 degrees."""
    evidence = make_evidence(min_similarity=-0.9, max_similarity=0.9)
    text = directions([0, 89, 100, 110, 181, 200])
    similarity = evidence.similarity(text)
    assert (similarity > 0).sum() > 10
    expected = similarity.clone()
    expected[0, 1:] = expected[1, [0, 2]] = expected[3, [0, 2]] = expected[4, :2] = 0
    assert torch.equal(evidence.exclusive_similarity(text), expected)


def test_logits_are_finite_and_those_of_probabilities() -> None:
    found = evidence_logits(torch.tensor([0.0, 0.2, 1.0], dtype=torch.float64))
    probs = torch.tensor([MIN_EVIDENCE, 0.2, MAX_EVIDENCE], dtype=torch.float64)
    torch.testing.assert_close(found, torch.log(probs / (1 - probs)))


def test_1203_names_take_less_memory_than_the_products() -> None:
    """All products of 2000 anchors, 300 classes and 1203 names would take 2.9 GB."""
    similarity = (random_probs(1203, 300) - 0.97).clamp(min=0)
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            output = func(*args, **(kwargs or {}))
            for tensor in output if isinstance(output, tuple) else (output,):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return output

    with Sizes():
        found = ClassEvidence.best(random_probs(2000, 300), similarity)
    assert found.shape == (2000, 1203)
    assert largest == found.numel()


def test_commas_and_bars_separate_the_names_of_a_class() -> None:
    embedded: list[list[str]] = []

    def embed(strings: Sequence[str]) -> Tensor:
        embedded.append(list(strings))
        return directions([30.0 * i for i in range(len(strings))])

    names = ["tench, Tinca tinca", "crane_(bird)", "crane_(machine)|hoist,"]
    evidence = build_class_evidence(names, embed)
    assert embedded == [["tench", "Tinca tinca", "crane", "hoist"]]
    assert evidence.class_of_embedding.tolist() == [0, 0, 1, 2, 2]
    torch.testing.assert_close(
        evidence.class_embeddings, directions([0, 30, 60, 60, 90]), check_dtype=False
    )


def test_checkpoints_omit_the_embeddings() -> None:
    assert not make_evidence().state_dict()
    assert make_evidence().to(torch.float32).class_embeddings.dtype == torch.float32


@pytest.mark.parametrize(
    ("class_of_embedding", "low", "message"),
    [
        ([0, 1, 1, 1], 0.45, "class_of_embedding has 4 entries for 4 embeddings"),
        ([0, 1, 2], 0.45, "class_of_embedding has 3 entries for 4 embeddings"),
        ([0, 1, 2, 3], 0.45, "each of the 3 classes"),
        (CLASS_OF_NAME, 0.85, "min_similarity is 0.85, but must be below max_similarity, 0.85"),
    ],
)
def test_invalid_arguments_are_named(
    class_of_embedding: list[int], low: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ClassEvidence(
            class_embeddings=directions(CLASS_ANGLES),
            class_of_embedding=class_of_embedding,
            num_classes=3,
            min_similarity=low,
        )


def test_a_class_without_words_is_an_error() -> None:
    embed = directions
    with pytest.raises(ValueError, match=r"class name ' , ' \(index 1\) has no words"):
        build_class_evidence(["cat", " , "], embed)
    with pytest.raises(ValueError, match="class_names is empty"):
        build_class_evidence([], embed)
