"""Texts of one image, learned or asked together: the image is read once for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from glipv2_d2.data.registration import Record
from glipv2_d2.data.text_tasks import asks_words_only
from glipv2_d2.structures import fields

# What a text keeps of its record beside the image.
_OF_A_TEXT = (
    fields.FILE_NAME,
    # A file may be listed as several images.
    fields.IMAGE_ID,
    fields.DATASET_NAME,
    fields.QUESTION,
    fields.QUESTION_ID,
    fields.ANSWERS,
    fields.TARGET_CAPTIONS,
)


def join_texts(
    records_of: Mapping[str, Sequence[Record]], limit: int, factor_of: Mapping[str, float]
) -> dict[str, list[Record]]:
    """Records that ask only for words, those of one image joined; the others as they are.

    The first text of an image keeps its record, and up to ``limit`` - 1 others follow in its
    ``more``; what is left begins another record. So an image with many questions is still drawn
    more often than one with few. Texts of several data sets are joined where these are drawn
    equally often.

    Args:
        records_of: of each data set.
        limit: texts of a joined record; 1 leaves all as they are.
        factor_of: how often a data set is drawn, where that is not once.

    Returns:
        Per data set those records whose first text is of it; there may be none.
    """
    if limit <= 1:
        return {name: list(records) for name, records in records_of.items()}
    joined_of: dict[str, list[Record]] = {name: [] for name in records_of}
    open_of: dict[tuple[float, str], Record] = {}
    for name, records in records_of.items():
        factor = factor_of.get(name, 1.0)
        for record in records:
            if not asks_words_only(record):
                joined_of[name].append(record)
                continue
            place = (factor, record[fields.FILE_NAME])
            first = open_of.get(place)
            if first is None or len(first[fields.MORE]) >= limit - 1:
                open_of[place] = {**record, fields.MORE: []}
                joined_of[name].append(open_of[place])
            else:
                text = {key: record[key] for key in _OF_A_TEXT if key in record}
                first[fields.MORE].append(text)
    return joined_of


def texts_apart(batch: Sequence[Record]) -> list[Record]:
    """The inputs of joined records, one for each text, which have the same image tensor."""
    inputs = []
    for record in batch:
        texts = [{key: record[key] for key in _OF_A_TEXT if key in record}]
        texts += record.get(fields.MORE, [])
        image = {k: v for k, v in record.items() if k not in (*_OF_A_TEXT, fields.MORE)}
        inputs += [image | text for text in texts]
    return inputs
