"""Noun phrases by the reference's grammar, with a stand-in or a real tagger."""

import importlib.util
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import glipv2_d2.text.noun_phrases as module
from glipv2_d2.text import caption_prompt
from glipv2_d2.text.noun_phrases import TaggedWord, chunk, noun_phrases


@pytest.fixture
def tags(monkeypatch):
    """A stand-in for spaCy: words are split at blanks and tagged by this dict (default: NN)."""
    tags: dict[str, str] = {}

    def tag(caption: str) -> list[TaggedWord]:
        words = re.finditer(r"\S+", caption)
        return [TaggedWord(word.span(), tags.get(word.group(), "NN")) for word in words]

    monkeypatch.setattr(module, "load_tagger", lambda: tag)
    return tags


# Grammar


def test_chunks_equal_the_references(golden):
    (expected,) = golden["noun_chunk"]
    words = [word for word, _ in expected["tagged"]]
    ranges = chunk([tag for _, tag in expected["tagged"]])
    assert [" ".join(words[first:last]) for first, last in ranges] == expected["phrases"]


@pytest.mark.parametrize(
    ("tags", "chunks"),
    [
        ("DT NN", [(0, 2)]),
        ("DT DT NN", [(1, 3)]),  # one determiner
        ("DT JJ JJR JJS NNP NNPS NN", [(0, 7)]),
        ("JJ VB NN", [(2, 3)]),  # adjectives without a noun are no phrase
        ("NN DT NN", [(0, 1), (1, 3)]),
        ("NN JJ NN", [(0, 1), (1, 3)]),
        ("PDT NN", [(1, 2)]),
        ("", []),
        ("VB", []),
    ],
)
def test_chunk(tags, chunks):
    assert chunk(tags.split()) == chunks


def test_phrases_without_articles(tags):
    tags.update({"a": "DT", "red": "JJ", "near": "IN", "How": "WRB", "Many": "JJ", "many": "JJ"})
    caption = "a red cat near dogs"
    assert noun_phrases(caption, articles=False) == [[(2, 9)], [(15, 19)]]
    assert noun_phrases("How Many dogs", articles=False) == [[(9, 13)]]
    assert noun_phrases("How Many dogs") == [[(4, 13)]]


@given(st.lists(st.sampled_from(["DT", "JJ", "JJS", "NN", "NNS", "VB", "."])))
def test_every_noun_is_in_one_chunk_and_every_chunk_ends_in_a_noun(tags):
    chunks = chunk(tags)
    covered = [i for first, last in chunks for i in range(first, last)]
    assert len(set(covered)) == len(covered)
    assert {i for i, tag in enumerate(tags) if tag.startswith("NN")} <= set(covered)
    assert all(tags[last - 1].startswith("NN") for _, last in chunks)


# Spans


def test_phrases_of_the_references_demo_caption(tags, golden_model):
    tags.update({"a": "DT", "the": "DT", "with": "IN", "on": "IN", "and": "CC", "of": "IN"})
    expected = golden_model["demo_free"]
    assert [[list(span)] for (span,) in noun_phrases(expected["caption"])] == expected["spans"]


def test_a_repeated_phrase_is_two_labels(tags):
    tags.update({"a": "DT", "near": "IN"})
    prompt = caption_prompt("a cat near a cat", noun_phrases("a cat near a cat"))
    assert prompt.spans == (((0, 5),), ((11, 16),))


def test_punctuation_at_the_ends_is_stripped(tags):
    tags["and"] = "CC"
    caption = "(Cat) and U.S.-flag, and ..."
    assert caption_prompt(caption, noun_phrases(caption)).phrases == ["Cat", "U.S.-flag"]


def test_a_caption_without_words_has_no_phrases(tags):
    assert noun_phrases("  ") == []


def test_the_error_of_a_missing_parser_names_the_remedy(monkeypatch):
    monkeypatch.setattr(module, "_SPACY_MODELS", ("no_such_english_model",))
    module.load_tagger.cache_clear()
    with pytest.raises(ValueError, match=r"pip install 'glipv2_d2\[phrases\]'.*spans"):
        noun_phrases("a cat")


if importlib.util.find_spec("spacy") and any(map(importlib.util.find_spec, module._SPACY_MODELS)):

    def test_spacy_finds_the_phrases_of_the_references_demo_caption(golden_model):
        expected = golden_model["demo_free"]
        spans = noun_phrases(expected["caption"])
        assert [[list(span)] for (span,) in spans] == expected["spans"]
