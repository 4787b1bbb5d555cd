"""Class names, files of them and captions, as people have them and as they may harm."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from glipv2_d2.command_line import parse_class_names, read_class_names
from glipv2_d2.evaluation.class_mapping import ClassMappingEvaluator
from glipv2_d2.evaluation.thresholds import ScoreThresholds
from glipv2_d2.messages import MAX_QUOTED
from glipv2_d2.predictor import Predictor
from glipv2_d2.predictor_inputs import grounding_fields, prompt_fields, question_fields
from glipv2_d2.text import Tokenizer, class_prompts
from glipv2_d2.text.limits import MAX_CHARACTERS
from glipv2_d2.text.names import check_names, clean_name, normalized_name
from tests.helpers.models import tiny_cfg

UNKNOWN = ["杯", "猫", "ไทย", "🦊", "猫!", "[MASK]"]
INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060\u00ad\ufe0f\u200e\x00"
LONG = "a cat near a dog " * 60_000


@pytest.fixture(
    scope="module", params=["bert-base-uncased", "sentence-transformers/all-MiniLM-L6-v2"]
)
def tokenizer(request) -> Tokenizer:
    return Tokenizer(request.param)


@pytest.fixture(scope="module", params=["BertLanguageBackbone", "PhraseLanguageBackbone"])
def predictor(request) -> Predictor:
    return Predictor(
        tiny_cfg(
            *("MODEL.LANGUAGE_BACKBONE.NAME", request.param),
            *("MODEL.GROUNDING.SCORE_THRESH", 0.0),
        )
    )


IMAGE = np.zeros((64, 64, 3), dtype=np.uint8)

# Unknown names


def test_nothing_is_detected_for_an_unknown_name(predictor, caplog):
    found = predictor.predict(IMAGE, classes=["杯", "cat", "猫"], channel_order="RGB")
    assert found.names == ["杯", "cat", "猫"]
    assert set(found.labels) == {"cat"}
    assert "never detected: ['杯', '猫']" in caplog.text


def test_the_score_of_an_unknown_name_is_zero(predictor):
    scores = predictor.class_scores([IMAGE], classes=["杯", "cat"], channel_order="RGB")
    assert scores[0, 0] == 0 < scores[0, 1]


def test_nothing_is_detected_for_an_unknown_phrase(predictor, caplog):
    found = predictor.predict(IMAGE, caption="猫 . a cat . 杯 .", channel_order="RGB")
    assert found.names == ["猫", "a cat", "杯"]
    assert set(found.labels) == {"a cat"}
    assert "never detected: ['猫', '杯']" in caplog.text


@pytest.mark.parametrize("prompt", [{"classes": ["猫"]}, {"caption": "猫 . 杯 ."}])
def test_unknown_names_alone_are_refused(predictor, prompt):
    with pytest.raises(ValueError, match="none of the .*'猫'.*vocabulary"):
        predictor.predict(IMAGE, **prompt, channel_order="RGB")


@seed(0)
@settings(max_examples=60, deadline=None, database=None)
@given(names=st.lists(st.sampled_from([*UNKNOWN, "cat", "猫 dog", "C++"]), min_size=1, max_size=6))
def test_every_list_is_refused_or_has_labels_of_known_words_only(names, tokenizer):
    if set(names) <= set(UNKNOWN):
        with pytest.raises(ValueError, match="none of the class names"):
            class_prompts(names, tokenizer)
        return
    used = [names[i] for prompt in class_prompts(names, tokenizer) for i in prompt.classes]
    assert used == [name for name in dict.fromkeys(names) if name not in UNKNOWN]


# Names that are one name, and names that are two

words = st.text("abcßéäñ한 İ", min_size=1, max_size=8).filter(str.strip)


@seed(0)
@settings(max_examples=200, deadline=None, database=None)
@given(name=words, data=st.data())
def test_unicode_form_and_invisible_characters_do_not_change_a_name(name, data):
    form = data.draw(st.sampled_from(["NFC", "NFD"]))
    position = data.draw(st.integers(0, len(name)))
    invisible = data.draw(st.sampled_from(INVISIBLE))
    other = unicodedata.normalize(form, name[:position] + invisible + name[position:])
    assert normalized_name(other) == normalized_name(name)
    assert clean_name(other) == clean_name(name)


@pytest.mark.parametrize(
    ("one", "two"),
    [("Ma\xdfe", "Masse"), ("STRA\xdfE", "STRASSE"), ("\ufb01sh", "fish"), ("cat", "cats")],
)
def test_names_with_different_letters_are_two(one, two, tokenizer, caplog):
    (prompt,) = class_prompts([one, two], tokenizer)
    assert prompt.classes == (0, 1)
    assert not caplog.records
    assert ScoreThresholds({one: 0.5}).for_classes([two]).tolist() == [0]


def test_thresholds_and_datasets_know_a_name_in_every_form():
    composed, decomposed = "café", "\ufeffcafe\u0301"
    assert ScoreThresholds({composed: 0.5}).for_classes([decomposed]).tolist() == [0.5]
    evaluator = ClassMappingEvaluator(None, ["cat", composed, "Cat"])
    assert [evaluator._class_index(name) for name in (decomposed, "Cat", "cat", "cup")] == [
        *(1, 2, 0),
        None,
    ]


# Class files


@pytest.mark.parametrize(
    "content",
    [
        b"cat\ncoffee cup\n",
        b"cat\r\ncoffee cup\r\n\r\n",
        b"cat\rcoffee cup",
        "\ufeffcat\r\n coffee cup".encode(),
    ],
)
def test_a_class_file_of_any_editor_is_read(content, tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    assert read_class_names(path) == ["cat", "coffee cup"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cat\ndog".encode("utf-16"), "UTF-16.*save it as UTF-8"),
        ("cat\ndog".encode("utf-16-be"), "UTF-16.*save it as UTF-8"),
        ("Ma\xdfe".encode("latin-1"), "not UTF-8.*save it as UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0", "save it as UTF-8"),
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"cat\n\ndog", "name 2 .* is empty"),
    ],
)
def test_a_class_file_that_cannot_be_read_is_named_with_the_remedy(content, message, tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"names.txt.*{message}|{message}"):
        read_class_names(path)


def test_a_folder_as_class_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        read_class_names(tmp_path)


# Captions

part = st.text("ab C+é-", min_size=1, max_size=6).map(str.strip).filter(re.compile(r"\w").search)


@seed(0)
@settings(max_examples=150, deadline=None, database=None)
@given(parts=st.lists(part, min_size=2, max_size=6), end=st.sampled_from(["", " .", " . "]))
def test_every_part_of_a_separated_caption_is_a_phrase(parts, end):
    caption = " . ".join(parts) + end
    ((fields),) = prompt_fields(1, None, None, caption, None)
    spans = [span for (span,) in fields["phrases"]]
    assert [caption[start:end] for start, end in spans] == parts
    assert sorted(set(spans)) == spans


@pytest.mark.parametrize(
    ("caption", "phrases", "spans"),
    [
        ("a cat near a cat", ["cat", "cat"], [(2, 5), (13, 16)]),
        ("a cat near a cat", ["Cat", "a cat"], [(13, 16), (0, 5)]),
        ("a red cat and a cat", ["red cat", "cat"], [(2, 9), (16, 19)]),
        ("a red cat", ["cat", "red cat"], [(6, 9), (2, 9)]),
        ("a b a b a", ["a b a", "a b a"], [(0, 5), (4, 9)]),
        ("a café", ["cafe\u0301"], [(2, 6)]),
        ("a cafe\u0301", ["café"], [(2, 7)]),
    ],
)
def test_repeated_and_overlapping_phrases_have_their_own_spans(caption, phrases, spans):
    ((fields),) = prompt_fields(1, None, None, caption, phrases)
    assert fields["phrases"] == [[span] for span in spans]


def test_a_phrase_that_is_passed_too_often_is_refused():
    with pytest.raises(ValueError, match="'cat' is passed more often than its 1 times"):
        prompt_fields(1, None, None, "a cat", ["cat", "cat"])


# Long text


def no_parser():
    raise AssertionError("the text is parsed before it is measured")


@pytest.mark.parametrize(
    "request_of",
    [
        lambda text: prompt_fields(1, None, None, text, None),
        lambda text: prompt_fields(1, None, None, text, ["cat"]),
        lambda text: grounding_fields(1, text),
        lambda text: question_fields(1, text, None, ground=True),
        lambda text: check_names(["cat", text]),
    ],
)
def test_a_text_is_measured_before_it_is_parsed(request_of, monkeypatch):
    monkeypatch.setattr("glipv2_d2.text.noun_phrases.load_tagger", no_parser)
    with pytest.raises(ValueError, match=f"has {len(LONG)} characters, the limit is") as error:
        request_of(LONG)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("length", [MAX_CHARACTERS + 1, 1_000_000])
@pytest.mark.parametrize("kind", ["caption", "classes", "negatives", "phrases"])
def test_a_predictor_refuses_a_long_text_before_it_runs(kind, length, predictor, monkeypatch):
    monkeypatch.setattr("glipv2_d2.text.noun_phrases.load_tagger", no_parser)
    monkeypatch.setattr(predictor.model, "encode_images", no_parser)
    text = (LONG * 2)[:length]
    prompts = {
        "caption": {"caption": text},
        "classes": {"classes": ["cat", text]},
        "negatives": {"classes": ["cat"], "negatives": [text]},
        "phrases": {"caption": "a cat", "phrases": [text]},
    }
    with pytest.raises(ValueError, match=f"has {length} characters, the limit is") as error:
        predictor.predict(IMAGE, **prompts[kind], channel_order="RGB")
    assert len(str(error.value)) < 2 * MAX_QUOTED + 120


quoted_inputs = [
    lambda text: prompt_fields(1, text, None, None, None),
    lambda text: prompt_fields(1, [text], None, text, None),
    lambda text: prompt_fields(1, [text], None, None, [text]),
    lambda text: prompt_fields(1, None, [text], text, None),
    lambda text: prompt_fields(1, None, None, text, text),
    lambda text: prompt_fields(1, None, None, "a cat", [text]),
    lambda text: prompt_fields(1, None, None, "a cat", [(text, 1)]),
    lambda text: prompt_fields(2, [[text], text], None, None, None),
    lambda text: question_fields(1, "a cat?", [text, text.upper()], ground=True),
    lambda text: question_fields(1, "a cat?", text, ground=True),
    lambda text: parse_class_names(f"{text},,"),
    lambda text: check_names([text], separator=text),
    lambda text: class_prompts([text], Tokenizer()),
    lambda text: class_prompts([text], Tokenizer(max_tokens=8)),
    lambda text: class_prompts(["cat"], Tokenizer(), negatives=[text, ""]),
    lambda text: class_prompts(["cat"], Tokenizer(), separator=f"{text}a"),
    lambda text: ScoreThresholds({text: 7}),
]


@pytest.mark.parametrize("character", ["a", "猫", "\0", "\ud800", "'"])
@pytest.mark.parametrize("make", quoted_inputs)
def test_messages_quote_at_most_80_characters(make, character):
    text = (character * 9 + " ") * (MAX_CHARACTERS // 20)
    with pytest.raises(ValueError, match=".") as error:
        make(text)
    # Up to two values of a message are quoted.
    assert len(str(error.value)) < 2 * MAX_QUOTED + 240


def test_quoted_messages_of_class_files_stay_short(tmp_path: Path):
    path = tmp_path / "names.txt"
    path.write_text("cat " * 100_000, encoding="utf-8")
    with pytest.raises(ValueError, match="characters, the limit is") as error:
        check_names(read_class_names(path))
    assert len(str(error.value)) < 200
