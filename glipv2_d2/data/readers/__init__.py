"""Readers load the published files of datasets into records, one module per family.

A *record* is one image's dict in Detectron2's format: ``file_name``, ``image_id``, ``height``,
``width`` (pixels) and ``annotations``, a list of dicts with ``bbox``, ``bbox_mode``,
``category_id`` and, if the file has masks, ``segmentation``. Grounding records have a ``caption``;
``tokens_positive`` of an annotation, a list of [begin, end) character spans, is its phrase, and
``phrase``, if the file has it, the text of that phrase, used by checks. Grounding records for
evaluation list the ``phrases`` of the prompt, and ``category_id`` indexes them.

A reader is a function from paths to records. It drops unusable entries, counts them by kind and
logs the first locations in one warning. It leaves repairable entries as they are in the file:
:mod:`glipv2_d2.data.sanitize` repairs them for training, ``glipv2 check-data`` reports them.

The formats are written from memory of the published files, and not checked against them, except
for :mod:`~glipv2_d2.data.readers.tsv_files`, which follows the source of GLIP.
"""
