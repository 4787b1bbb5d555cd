"""Answers, normalized as by the VQA challenge."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glipv2_d2.text.answers import (
    canonical_answer,
    check_answers,
    load_answers,
    normalize_answer,
    strip_punctuation,
)

# Strings to which every rule applies.
PIECES = ("a", "The", "two", "none", "dont", "'twas", "dog", "3", "1,000", "2.5", "-", "/", "!")
TEXTS = st.lists(st.sampled_from((*PIECES, ".", ",", " ", "  ", "\n")), max_size=8).map("".join)


@pytest.mark.parametrize(
    ("answer", "normalized"),
    [
        ("Ten", "10"),
        ("none", "0"),
        ("eleven", "eleven"),
        ("the man on a horse", "man on horse"),
        ("the", ""),
        ("wouldnt've", "wouldn't've"),
        ("wouldn'tve", "wouldn't've"),
        ("yall'd've", "y'all'd've"),
        ("twas", "'twas"),
        # An oddity of the script: this one loses its apostrophe.
        ("somebody'd", "somebodyd"),
        # Not in the script's list of contractions.
        ("shes", "shes"),
        ("red/white", "red white"),
        ("red, white", "red white"),
        # A hyphen next to a blank removes all hyphens.
        ("t-shirt -", "tshirt"),
        # A comma in a number removes all marks.
        ("1,000/day", "1000day"),
        ("3.50", "3.50"),
        ("no.", "no"),
        ("5:30 o'clock", "5:30 o'clock"),
        ("  Left \n side\t", "left side"),
    ],
)
def test_worked_examples(answer: str, normalized: str) -> None:
    assert normalize_answer(answer) == normalized


@given(TEXTS)
def test_normalization_is_idempotent(text: str) -> None:
    once = normalize_answer(text)
    assert normalize_answer(once) == once


@given(TEXTS)
def test_articles_number_words_and_marks_are_removed(text: str) -> None:
    words = normalize_answer(text).split()
    assert not {"a", "an", "the", "two", "none", "dont"} & set(words)
    assert not set("".join(words)) & set(';/[]"{}()=+\\_-><@`,?!')


@given(st.text(alphabet="ab '.", max_size=9))
def test_letters_and_apostrophes_are_not_punctuation(text: str) -> None:
    assert strip_punctuation(text) == text.replace(".", "")


def test_an_article_alone_is_kept_as_an_answer() -> None:
    assert canonical_answer(" A ") == "a"


def test_a_list_of_answers_keeps_its_order_and_spelling() -> None:
    assert check_answers(["Yes", "no", "2"], "list") == ["Yes", "no", "2"]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (["yes", "no", "yes"], r"list.*'yes' \(index 0\) and 'yes' \(index 2\)"),
        (["two", "yes", "2"], r"'two' \(index 0\) and '2' \(index 2\)"),
        (["yes", " "], r"' ' \(index 1\) has no words"),
        (["yes", 2], r"2 \(index 1\) has no words"),
        ([], "at least one"),
        ("yes", "is not a list"),
    ],
)
def test_a_list_with_invalid_answers_is_rejected(answers: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_answers(answers, "list")


def test_a_file_has_one_answer_per_line(tmp_path: Path) -> None:
    path = tmp_path / "answers.txt"
    path.write_text("yes\nleft side\n", encoding="utf-8")
    assert load_answers(str(path)) == ["yes", "left side"]
    path.write_text("yes\n\nno\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"answers\.txt.*index 1"):
        load_answers(str(path))


def test_a_byte_order_mark_is_not_part_of_the_first_answer(tmp_path: Path) -> None:
    path = tmp_path / "answers.txt"
    path.write_text("yes\nno\n", encoding="utf-8-sig")
    assert load_answers(str(path)) == ["yes", "no"]


def test_the_error_of_a_missing_file_names_the_tool_that_writes_it() -> None:
    with pytest.raises(FileNotFoundError, match=r"'nope\.txt'.*answer_vocabulary"):
        load_answers("nope.txt")


def test_a_package_may_carry_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "answer_lists" / "assets").mkdir(parents=True)
    (tmp_path / "answer_lists" / "assets" / "answers.txt").write_text("yes\nno\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_answers("package:answer_lists/assets/answers.txt") == ["yes", "no"]
    with pytest.raises(FileNotFoundError, match="nothing"):
        load_answers("package:answer_lists/assets/nothing.txt")
