"""Names and meaning of every key of an input dict and every field of an Instances.

Input dicts are Detectron2's (one per image):

| key | meaning |
|---|---|
| ``image`` | uint8 or float tensor (C, H, W), channels as ``cfg.INPUT.FORMAT`` says |
| ``height``, ``width`` | size in pixels in which results are wanted; default: that of ``image`` |
| ``file_name``, ``image_id`` | as in Detectron2 |
| ``dataset_name`` | the data set of a record, set by our loaders |
| ``instances`` | training: ``gt_boxes`` (XYXY, x2 = x + w), ``gt_classes`` (see below); with |
|  | ``MODEL.MASK_ON`` also ``gt_masks`` and ``gt_has_mask`` (n,) bool |
| ``prompt`` | a :class:`~glipv2_d2.structures.Prompt`, made by our mapper |
| ``classes`` | list of names, one prompt (or several chunks) is made of it |
| ``caption`` | free text; with ``phrases``: per phrase a list of [start, end) character spans |

The first of ``prompt``, ``caption``, ``classes`` that is there is asked; with none of them the
class names of the data set's metadata are. ``gt_classes`` indexes the caller's list: ``classes``,
the metadata's names, or the phrases of a caption; with a ``prompt`` it is one of its ``classes``.

Outputs are ``{"instances": Instances}`` with ``pred_boxes`` (XYXY, pixels of height x width),
``scores`` (0..1) and ``pred_classes`` (index in the caller's list); for a caption also
``"phrases"``, the text of each.
"""

IMAGE = "image"
HEIGHT = "height"
WIDTH = "width"
FILE_NAME = "file_name"
DATASET_NAME = "dataset_name"
INSTANCES = "instances"
PROMPT = "prompt"
CLASSES = "classes"
CAPTION = "caption"
PHRASES = "phrases"
