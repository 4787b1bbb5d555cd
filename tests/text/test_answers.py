"""Answers, spelled as the VQA challenge spells them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glipv2_d2.text.answers import (
    canonical_answer,
    check_answers,
    normalize_answer,
    read_answers,
    strip_punctuation,
)

# Texts in which every rule has something to do.
PIECES = ("a", "The", "two", "none", "dont", "'twas", "dog", "3", "1,000", "2.5", "-", "/", "!")
TEXTS = st.lists(st.sampled_from((*PIECES, ".", ",", " ", "  ", "\n")), max_size=8).map("".join)


@pytest.mark.parametrize(
    ("written", "spelled"),
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
        # The script's own: this one loses its apostrophe.
        ("somebody'd", "somebodyd"),
        # A contraction of two words that the script does not know.
        ("shes", "shes"),
        ("red/white", "red white"),
        ("red, white", "red white"),
        # One hyphen beside a blank, and all of them vanish.
        ("t-shirt -", "tshirt"),
        # A comma in a number makes all marks vanish.
        ("1,000/day", "1000day"),
        ("3.50", "3.50"),
        ("no.", "no"),
        ("5:30 o'clock", "5:30 o'clock"),
        ("  Left \n side\t", "left side"),
    ],
)
def test_worked_examples(written: str, spelled: str) -> None:
    assert normalize_answer(written) == spelled


@given(TEXTS)
def test_a_normalized_answer_stays_as_it_is(text: str) -> None:
    once = normalize_answer(text)
    assert normalize_answer(once) == once


@given(TEXTS)
def test_neither_articles_nor_number_words_nor_marks_are_left(text: str) -> None:
    words = normalize_answer(text).split()
    assert not {"a", "an", "the", "two", "none", "dont"} & set(words)
    assert not set("".join(words)) & set(';/[]"{}()=+\\_-><@`,?!')


@given(st.text(alphabet="ab '.", max_size=9))
def test_letters_and_apostrophes_are_not_punctuation(text: str) -> None:
    assert strip_punctuation(text) == text.replace(".", "")


def test_an_answer_that_is_an_article_is_still_an_answer() -> None:
    assert canonical_answer(" A ") == "a"


def test_a_list_of_answers_keeps_its_order_and_spelling() -> None:
    assert check_answers(["Yes", "no", "2"], "list") == ["Yes", "no", "2"]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (["yes", "no", "yes"], r"list.*'yes' \(number 0\) and 'yes' \(number 2\)"),
        (["two", "yes", "2"], r"'two' \(number 0\) and '2' \(number 2\)"),
        (["yes", " "], r"' ' \(number 1\) has no words"),
        (["yes", 2], r"2 \(number 1\) has no words"),
        ([], "at least one"),
        ("yes", "no list"),
    ],
)
def test_a_list_that_says_one_answer_twice_or_none_is_refused(
    answers: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_answers(answers, "list")


def test_a_file_has_one_answer_per_line(tmp_path: Path) -> None:
    path = tmp_path / "answers.txt"
    path.write_text("yes\nleft side\n", encoding="utf-8")
    assert read_answers(str(path)) == ["yes", "left side"]
    path.write_text("yes\n\nno\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"answers\.txt.*number 1"):
        read_answers(str(path))


def test_a_mark_of_the_encoding_is_no_part_of_the_first_answer(tmp_path: Path) -> None:
    path = tmp_path / "answers.txt"
    path.write_text("yes\nno\n", encoding="utf-8-sig")
    assert read_answers(str(path)) == ["yes", "no"]


def test_a_missing_file_is_told_with_what_writes_one() -> None:
    with pytest.raises(FileNotFoundError, match=r"'nope\.txt'.*answer_vocabulary"):
        read_answers("nope.txt")


def test_a_package_may_carry_the_file() -> None:
    answers = read_answers("package:glipv2_d2/assets/mini_answers.txt")
    assert {"yes", "no", "2", "circle", "giraffe"} <= set(answers)
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_answers("package:glipv2_d2/assets/nothing.txt")
