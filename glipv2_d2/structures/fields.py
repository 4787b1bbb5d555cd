"""Names and meaning of every key of an input dict and every field of an Instances.

Input dicts are Detectron2's (one per image):

| key | meaning |
|---|---|
| ``image`` | uint8 or float tensor (C, H, W), channels in the order of ``cfg.INPUT.FORMAT`` |
| ``height``, ``width`` | size of the results in pixels; default: that of ``image`` |
| ``file_name``, ``image_id`` | as in Detectron2 |
| ``dataset_name`` | the dataset of a record, set by our loaders |
| ``instances`` | training: ``gt_boxes`` (XYXY, x2 = x + w), ``gt_classes`` (see below); with |
|  | ``MODEL.MASK_ON`` also ``gt_masks`` and ``gt_has_mask`` (n,) bool |
| ``prompt`` | a :class:`~glipv2_d2.structures.Prompt`, built by our mapper |
| ``classes`` | list of class names, encoded in one prompt or in several chunks |
| ``negatives`` | with ``classes``: class names that compete for the boxes but are not returned |
| ``absent_classes`` | in training records: the classes that are known to be absent, from which |
|  | the negatives of the prompt are drawn; without it, from all others |
| ``caption`` | free text; with ``phrases``: per phrase a list of [start, end) character spans |
| ``phrase_types`` | in records for evaluation: per phrase its entity types |
| ``question`` | a question to answer; ``question_id`` (int or str) distinguishes the questions of |
|  | an image |
| ``answers`` | training: {answer: score in 0..1}, spelled by ``text.answers.canonical_answer`` |
| ``choices`` | with ``question``, at inference: the answers to choose from; default: the two of |
|  | "is it A or B?" if the answer classifier is "text", else the model's |
| ``target_captions`` | requests a caption. In training the targets (our mapper samples one); in |
|  | records and in evaluation all reference captions |
| ``more`` | training: dicts with further questions and their ``answers``, or |
|  | ``target_captions``, of the same image |
| ``describe`` | at inference: requests a caption, True or a |
|  | :class:`~glipv2_d2.structures.GenerationConfig` |
| ``ground`` | at inference: also localize the phrases of the question and its answer, or of the |
|  | generated caption |

Boxes are requested by the first of ``prompt``, ``caption``, ``classes``; without any, by the class
names in the dataset's metadata. ``gt_classes`` indexes the caller's list: ``classes``, the
metadata's class names, or the phrases of a caption; with a ``prompt`` it is one of its ``classes``.

An input with ``question`` or ``target_captions`` requests text. If its record has no
``annotations`` it requests nothing else: our mapper adds no ``prompt``, ``classes`` or
``instances``. Records of questions also have keys for evaluators: ``human_answers``, one answer per
person as written, and if known ``multiple_choice_answer``, the most common one, ``answer_type`` and
``question_type``.

Outputs are ``{"instances": Instances}`` with ``pred_boxes`` (XYXY, pixels of height x width),
``scores`` (0..1) and ``pred_classes`` (index in the caller's list), with ``MODEL.MASK_ON`` also
``pred_masks`` (n, height, width) bool; for a caption also ``"phrases"``, the text of each. A
``question`` yields ``"answer"``, a string, and ``"answer_score"`` (0..1); a requested caption
yields ``"caption"``. With ``ground`` there are ``"phrases"``, the answer last (a yes, no or number
may be left out), and ``"prompt"``, the :class:`~glipv2_d2.structures.Prompt` that contains them.

If a ``question`` has ``instances`` and its ``caption`` or ``prompt`` is the question, or the
question followed by a blank and the answer, the two are one text: the answer is masked, and its
boxes are those of the mask token.
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
ABSENT_CLASSES = "absent_classes"
CAPTION = "caption"
PHRASES = "phrases"
PHRASE_TYPES = "phrase_types"
QUESTION = "question"
QUESTION_ID = "question_id"
QUESTION_TYPE = "question_type"
ANSWERS = "answers"
HUMAN_ANSWERS = "human_answers"
MOST_COMMON_ANSWER = "multiple_choice_answer"
ANSWER_TYPE = "answer_type"
TARGET_CAPTIONS = "target_captions"
MORE = "more"
CHOICES = "choices"
DESCRIBE = "describe"
GROUND = "ground"
ANSWER = "answer"
ANSWER_SCORE = "answer_score"
