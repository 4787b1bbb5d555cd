"""From the published files of data sets to records, one module per family.

A *record* is one image's dict in Detectron2's format: ``file_name``, ``image_id``, ``height``,
``width`` (pixels) and ``annotations``, a list of dicts with ``bbox``, ``bbox_mode``,
``category_id`` and, where the file has masks, ``segmentation``. Grounding data have a ``caption``,
and each annotation says by ``tokens_positive``, a list of [begin, end) characters of it, what it
shows (``phrase``, where a file has it, is their text, for checks); data for evaluation list the
``phrases`` that are asked, and ``category_id`` indexes them.

A reader is a function from paths to records. It leaves out what cannot be used, counts it by kind
and names the first places in one warning. What can be put right later stays as it is in the file:
:mod:`glipv2_d2.data.sanitize` does that for training, ``tools/check_dataset.py`` reports it.

Formats are those of the published files as we remember them; none was at hand when this was
written.
"""
