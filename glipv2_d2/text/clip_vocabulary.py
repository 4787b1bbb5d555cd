"""CLIP's byte-pair vocabulary: reading its published file, and a mask token in it.

Offsets and batches are those of transformers' CLIP tokenizer. It lower-cases, splits letters,
single digits and other characters into words, and marks the last piece of a word with ``</w>``.
Bytes are pieces, so no word is unknown.
"""

from __future__ import annotations

import gzip
import json
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from glipv2_d2.messages import quote

VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
MASK_TOKEN = "<|mask|>"
NUM_MERGES = 49_152 - 256 - 2
"""Lines of the file that CLIP uses, the most frequent; its vocabulary has 512 bytes, at the end of
a word and elsewhere, these, and the begin and the end of a text: 49,408 tokens."""

_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"
_END_OF_WORD = "</w>"
# Twice the size of the published file; a damaged one may expand to any size.
_MAX_BYTES = 8 * 1024**2

Merge = tuple[str, str]


def read_clip_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of CLIP's published vocabulary (OpenAI's, in the package open_clip, too).

    Raises:
        ValueError: the file is damaged, or has too few merges.
    """
    merges = _read_merges(path)
    of_bytes = sorted(ByteLevel.alphabet())
    tokens = [
        *of_bytes,
        *(byte + _END_OF_WORD for byte in of_bytes),
        *("".join(merge) for merge in merges),
        *(_BEGIN, _END),
    ]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ValueError(f"vocabulary '{path}' has a token twice. {_REMEDY}")
    return build_clip_tokenizer(vocabulary, merges, source=str(path))


def is_clip_tokenizer(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.bos_token == _BEGIN


def with_mask_token(tokenizer: PreTrainedTokenizerBase, *, source: str) -> PreTrainedTokenizerBase:
    """A CLIP tokenizer of transformers as :func:`build_clip_tokenizer` builds it."""
    model = json.loads(cast("Any", tokenizer).backend_tokenizer.to_str())["model"]
    # Written as "a b" by older versions.
    merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
    return build_clip_tokenizer(model["vocab"], cast("list[Merge]", merges), source=source)


def build_clip_tokenizer(
    vocabulary: Mapping[str, int], merges: Sequence[Merge], *, source: str
) -> PreTrainedTokenizerBase:
    """A tokenizer whose token before the last word, of id 49,404 in CLIP's vocabulary, is a mask.

    GLIP uses that token, an emoji, to mask words. Here the id is written ``<|mask|>``, and the
    emoji becomes its two pieces, so that no text contains the mask by chance.

    Args:
        vocabulary: token -> id.
        merges: pairs of pieces, the first to be merged first.
        source: where the vocabulary is from, for the error.

    Raises:
        ValueError: the vocabulary has no such token, or lacks pieces of others.
    """
    mask_id = vocabulary.get(_BEGIN, 0) - 2
    masked = next((token for token, index in vocabulary.items() if index == mask_id), "")
    kept = [merge for merge in merges if "".join(merge) != masked]
    with_mask = {MASK_TOKEN if token == masked else token: i for token, i in vocabulary.items()}
    missing = {piece for merge in kept for piece in (*merge, "".join(merge))} - with_mask.keys()
    if len(kept) == len(merges) or missing:
        lacking = f"no token {quote(min(missing))}" if missing else f"no word with the id {mask_id}"
        raise ValueError(f"vocabulary {quote(source)} is not CLIP's: it has {lacking}. {_REMEDY}")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps(with_mask), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(merge) for merge in kept)]
        (Path(folder) / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return AutoTokenizer.from_pretrained(
            folder,
            tokenizer_type="clip",
            cls_token=_BEGIN,
            sep_token=_END,
            mask_token=MASK_TOKEN,
            # "a cat ." -> "a cat.", as of BERT; the blanks there are none of the text's.
            clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output=True,
        )


def _read_merges(path: Path) -> list[Merge]:
    try:
        with gzip.open(path) as file:
            text = file.read(_MAX_BYTES).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"vocabulary '{path}' cannot be read: {error}. {_REMEDY}") from error
    # The first line is a title.
    lines = text.split("\n")[1 : NUM_MERGES + 1]
    merges = [tuple(line.split()) for line in lines]
    for number, merge in enumerate(merges, start=2):
        if len(merge) != 2:
            raise ValueError(
                f"vocabulary '{path}': line {number}, {quote(lines[number - 2])}, is not two "
                f"pieces. {_REMEDY}"
            )
    if len(merges) < NUM_MERGES:
        raise ValueError(
            f"vocabulary '{path}' has {len(merges):,} merges, CLIP's has {NUM_MERGES:,}. {_REMEDY}"
        )
    return cast("list[Merge]", merges)


_REMEDY = (
    f"Copy {VOCABULARY_FILE} from OpenAI's CLIP or the package open-clip-torch again, or pass "
    "'package:open_clip'"
)
