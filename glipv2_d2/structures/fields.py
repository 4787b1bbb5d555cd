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
| ``negatives`` | with ``classes``: names that are asked beside them and compete for the boxes, |
|  | but are not returned |
| ``caption`` | free text; with ``phrases``: per phrase a list of [start, end) character spans |
| ``phrase_types`` | in records for evaluation: per phrase the kinds of thing that it names |
| ``question`` | a question to be answered; ``question_id`` (int or text) tells it from others of |
|  | the same image |
| ``answers`` | training: {answer: score in 0..1}, spelled by ``text.answers.canonical_answer`` |
| ``choices`` | with ``question``, at inference: the answers to choose from; default: the model's |
| ``target_captions`` | the image is to be described. In training the texts to learn (our mapper |
|  | draws one); in records and in evaluation all that people wrote |
| ``more`` | training: dicts with further questions and their ``answers``, or |
|  | ``target_captions``, of the same image |
| ``describe`` | at inference: the image is to be described, True or a |
|  | :class:`~glipv2_d2.modeling.generation.beam_search.GenerationConfig`, which says how |
| ``ground`` | at inference: the phrases of the question and its answer, or of the description, |
|  | are to be found, too |

The first of ``prompt``, ``caption``, ``classes`` that is there is asked; with none of them the
class names of the data set's metadata are. ``gt_classes`` indexes the caller's list: ``classes``,
the metadata's names, or the phrases of a caption; with a ``prompt`` it is one of its ``classes``.

An input with ``question`` or ``target_captions`` asks for words. One whose record has no
``annotations`` asks for nothing else: our mapper gives it no ``prompt``, no ``classes`` and no
``instances``. Records of questions also have what only evaluators read: ``human_answers``, one
answer per person as it was written, ``answer_type`` and ``question_type`` where they are known.

Outputs are ``{"instances": Instances}`` with ``pred_boxes`` (XYXY, pixels of height x width),
``scores`` (0..1) and ``pred_classes`` (index in the caller's list), with ``MODEL.MASK_ON`` also
``pred_masks`` (n, height, width) bool; for a caption also ``"phrases"``, the text of each. To a
``question`` there is ``"answer"``, a text, with ``"answer_score"`` (0..1); an image that was to be
described has a ``"caption"``. With ``ground`` there are ``"phrases"``, the answer last (a yes, no
or number may be none of them), and ``"prompt"``, the :class:`~glipv2_d2.structures.Prompt` of the
text that they are of.

Where a ``question`` has ``instances`` and its ``caption`` or ``prompt`` is the question, or the
question and its answer behind a blank, the two are one text: the answer is hidden, and its boxes
are those of the hidden word.
"""

IMAGE = "image"
HEIGHT = "height"
WIDTH = "width"
FILE_NAME = "file_name"
IMAGE_ID = "image_id"
DATASET_NAME = "dataset_name"
INSTANCES = "instances"
PROMPT = "prompt"
CLASSES = "classes"
NEGATIVES = "negatives"
CAPTION = "caption"
PHRASES = "phrases"
PHRASE_TYPES = "phrase_types"
QUESTION = "question"
QUESTION_ID = "question_id"
QUESTION_TYPE = "question_type"
ANSWERS = "answers"
HUMAN_ANSWERS = "human_answers"
ANSWER_TYPE = "answer_type"
TARGET_CAPTIONS = "target_captions"
MORE = "more"
CHOICES = "choices"
DESCRIBE = "describe"
GROUND = "ground"
ANSWER = "answer"
ANSWER_SCORE = "answer_score"
