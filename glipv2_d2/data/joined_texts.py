"""Questions about one image, learned together: the image is read once for all of them."""

from __future__ import annotations

from collections.abc import Sequence

from glipv2_d2.data.registration import Record
from glipv2_d2.data.text_tasks import asks_words_only
from glipv2_d2.structures import fields

# What a text keeps of its record beside the image.
_OF_A_TEXT = (
    fields.FILE_NAME,
    fields.DATASET_NAME,
    fields.QUESTION,
    fields.QUESTION_ID,
    fields.ANSWERS,
    fields.TARGET_CAPTIONS,
)


def join_texts(records: Sequence[Record], limit: int) -> list[Record]:
    """Records that ask only for words, those of one image joined; the others as they are.

    The first text of an image keeps its record, and up to ``limit`` - 1 others follow in its
    ``more``; what is left begins another record. So an image with many questions is still drawn
    more often than one with few.

    Args:
        records: of one data set, for training.
        limit: texts of a joined record; 1 leaves all as they are.
    """
    joined: list[Record] = []
    open_of: dict[str, Record] = {}
    for record in records:
        if limit <= 1 or not asks_words_only(record):
            joined.append(record)
            continue
        first = open_of.get(record[fields.FILE_NAME])
        if first is None or len(first[fields.MORE]) >= limit - 1:
            open_of[record[fields.FILE_NAME]] = {**record, fields.MORE: []}
            joined.append(open_of[record[fields.FILE_NAME]])
        else:
            text = {key: record[key] for key in _OF_A_TEXT if key in record}
            first[fields.MORE].append(text)
    return joined
