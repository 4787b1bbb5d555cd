"""CLIP's vocabulary: tokens, their characters, the mask token, and damaged files."""

from __future__ import annotations

import gzip
import itertools
import unicodedata
from pathlib import Path

import pytest
from helpers.clip import (
    ALPHABET,
    EMOJI,
    MASKED,
    stand_in_merges,
    tokenizer_files,
    vocabulary_directory,
    write_vocabulary,
)

from glipv2_d2.text import Tokenizer, class_prompt
from glipv2_d2.text.clip_vocabulary import MASK_TOKEN, NUM_MERGES, VOCABULARY_FILE
from glipv2_d2.text.questions import question_prompt

TEXTS = [
    "a photo of a cat. red dog",
    "the dog's 2020 T-shirt!?",
    "Café, CAFE\u0301 on İstanbul",
    "日本語 한국 \u1112\u1161\u11ab",
    f"  tabs\tand {EMOJI} lines\n x{EMOJI}",
    "ẞ ﬁ ½ a\u0301\u0323",
    "",
]
# The order of bytes in the vocabulary: printable ones first.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = [*PRINTABLE, *(byte for byte in range(256) if byte not in PRINTABLE)]
PIECE_OF_BYTE = dict(zip(BYTES, ALPHABET, strict=True))


def split_words(text: str) -> list[str]:
    """Runs of letters, single digits, and runs of other characters."""
    words: list[str] = []
    last = " "
    for character in text:
        kind = "x" if character.isspace() else unicodedata.category(character)[0]
        kind = kind if kind in "LNx" else "other"
        if kind != "x":
            if kind == last != "N":
                words[-1] += character
            else:
                words.append(character)
        last = kind
    return words


def encode(text: str) -> list[str]:
    """The tokens of a text by the definition of byte-pair encoding."""
    rank = {m: i for i, m in enumerate(stand_in_merges()) if m != MASKED}
    tokens = []
    for word in split_words(unicodedata.normalize("NFC", text).lower()):
        pieces = [PIECE_OF_BYTE[byte] for byte in word.encode()]
        pieces[-1] += "</w>"
        while pairs := [p for p in itertools.pairwise(pieces) if p in rank]:
            best = min(pairs, key=rank.__getitem__)
            at = next(i for i in range(len(pieces)) if tuple(pieces[i : i + 2]) == best)
            pieces[at : at + 2] = ["".join(best)]
        tokens += pieces
    return tokens


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    return Tokenizer(vocabulary_directory())


@pytest.fixture(scope="module")
def from_transformers(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("clip")
    tokenizer_files(directory)
    (directory / "config.json").write_text('{"model_type": "clip"}')
    return Tokenizer(str(directory))


@pytest.mark.parametrize("text", [text for text in TEXTS if "'s" not in text])
def test_tokens_are_those_of_byte_pair_encoding(clip: Tokenizer, text: str) -> None:
    (ids,) = clip.encode([text])
    assert clip._tokenizer.convert_ids_to_tokens(ids) == encode(text)


def test_the_files_of_transformers_give_the_same_tokens(
    clip: Tokenizer, from_transformers: Tokenizer
) -> None:
    assert clip.encode(TEXTS) == from_transformers.encode(TEXTS)
    assert clip.fingerprint == from_transformers.fingerprint


def test_ids_are_in_the_order_of_clip(clip: Tokenizer) -> None:
    assert clip.encode(["!"]) == [[256]]
    assert (clip.begin_id, clip.end_id) == (49_406, 49_407)
    assert clip.encode(["ca"]) == [[ALPHABET.index("c"), 256 + ALPHABET.index("a")]]
    assert clip.encode(["cat"]) == [[512 + stand_in_merges().index(("ca", "t</w>"))]]


def offsets(tokenizer: Tokenizer, text: str) -> list[tuple[int, int]]:
    return tokenizer._tokenize([text], add_special_tokens=False)["offset_mapping"][0]


@pytest.mark.parametrize("text", [unicodedata.normalize("NFC", text) for text in TEXTS])
def test_a_token_has_the_characters_of_its_bytes(clip: Tokenizer, text: str) -> None:
    characters = iter(
        [i for i, c in enumerate(text) if not c.isspace() for _ in c.lower().encode()]
    )
    expected = []
    for token in clip._tokenizer.convert_ids_to_tokens(clip.encode([text])[0]):
        own = [next(characters) for _ in token.removesuffix("</w>")]
        expected.append((own[0], own[-1] + 1))
    assert offsets(clip, text) == expected
    assert next(characters, None) is None


def test_a_composed_letter_is_at_the_first_of_its_characters(clip: Tokenizer) -> None:
    assert offsets(clip, "CAFE\u0301 dog") == [(0, 4), (6, 9)]
    assert set(offsets(clip, "a \u1112\u1161\u11ab")) == {(0, 1), (2, 3)}


NAMES = [
    "Café",
    "CAFE\u0301 dog",
    "日本語",
    "red  car",
    "T-shirt",
    "한국",
    "İ",
    f"a {EMOJI}",
    "2020",
]


def test_the_tokens_of_a_label_spell_its_name(clip: Tokenizer) -> None:
    tokens = clip([class_prompt(NAMES, separator=". ")])
    (labels,) = tokens.positive_maps
    assert labels.sum(dim=0).max() == 1
    for name, mask in zip(NAMES, labels, strict=True):
        decoded = clip.decode(tokens.input_ids[0][mask].tolist())
        expected = unicodedata.normalize("NFC", name).lower()
        assert "".join(decoded.split()) == "".join(expected.split())


def test_texts_are_padded_and_the_padding_is_masked(clip: Tokenizer) -> None:
    tokens = clip(
        [class_prompt(["cat"], separator=". "), class_prompt(["cat"] * 2, separator=". ")]
    )
    assert tokens.mask.sum(dim=1).tolist() == [3, 5]
    assert tokens.input_ids[:, 0].tolist() == [clip.begin_id] * 2
    assert tokens.input_ids[1, -1] == clip.end_id


def test_the_mask_token_is_the_reused_token_of_glip(
    clip: Tokenizer, from_transformers: Tokenizer
) -> None:
    for tokenizer in (clip, from_transformers):
        assert (tokenizer.mask_token, tokenizer.mask_token_id) == (MASK_TOKEN, 49_404)
        prompt = question_prompt("what is red?", tokenizer.mask_token)
        assert tokenizer([prompt]).input_ids[0, -2] == 49_404


def test_no_text_has_the_mask_token_by_chance(clip: Tokenizer) -> None:
    (ids,) = clip.encode([f"{EMOJI} x{EMOJI}"])
    assert 49_404 not in ids
    assert clip.decode(ids) == f"{EMOJI} x {EMOJI}"


def test_a_caption_is_decoded_without_special_tokens_and_blanks_before_marks(
    clip: Tokenizer,
) -> None:
    ids = [clip.begin_id, *clip.encode(["A red dog's photo, on the cat."])[0], clip.end_id]
    assert clip.decode(ids) == "a red dog's photo, on the cat."


def test_every_word_is_known(clip: Tokenizer) -> None:
    assert clip.are_known(["cat", "杯", EMOJI, "  "]) == [True, True, True, False]


LINES = ["title", *(" ".join(merge) for merge in stand_in_merges())]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (LINES[:1000], f"has 999 merges, CLIP's has {NUM_MERGES:,}"),
        ([*LINES[:9], "a b c", *LINES[10:]], "line 10, 'a b c', is not two pieces"),
        ([*LINES[:9], LINES[8], *LINES[10:]], "has a token twice"),
        ([*LINES[:9], "un known", *LINES[10:]], "is not CLIP's: it has no token 'known'"),
        ([*LINES[:-1], "".join(MASKED) + " x"], f"it has no token '{''.join(MASKED)}'"),
    ],
)
def test_another_vocabulary_is_rejected(tmp_path: Path, lines: list[str], message: str) -> None:
    write_vocabulary(tmp_path, "\n".join(lines))
    with pytest.raises(ValueError, match=message):
        Tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    "content",
    # The time in a gzip file must not be part of a test's name: two processes would disagree.
    [b"", b"<html>", gzip.compress(b"a b\n", mtime=0)[:-9], b"\x1f\x8b\x08x"],
    ids=["empty", "a web page", "truncated", "another header"],
)
def test_a_damaged_file_is_rejected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / VOCABULARY_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=VOCABULARY_FILE):
        Tokenizer(str(tmp_path))
