"""Synonyms and kinds of the closed classes: what a sentence encoder does not know of their names.

MiniLM's embeddings of "woman" and "person", or "animal" and "dog", are hardly similar.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_ANIMALS = ["bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"]
_VEHICLES = ["bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"]
_FOOD = ["banana", "apple", "sandwich", "orange", "broccoli", "carrot", "pizza", "donut", "cake"]

COCO_SYNONYMS: dict[str, tuple[str, ...]] = {
    "person": (
        "man",
        "woman",
        "boy",
        "girl",
        "child",
        "human",
        "lady",
        "guy",
        "player",
        "pedestrian",
    ),
    "bicycle": ("bike",),
    "car": ("automobile", "taxi"),
    "motorcycle": ("motorbike",),
    "airplane": ("plane", "aircraft"),
    "truck": ("van", "lorry"),
    "boat": ("ship",),
    "cat": ("kitten",),
    "dog": ("puppy",),
    "cow": ("bull", "calf"),
    "sheep": ("lamb",),
    "backpack": ("bag",),
    "handbag": ("bag", "purse"),
    "suitcase": ("bag", "luggage"),
    "sports ball": ("ball", "football", "soccer ball"),
    "cup": ("mug", "drink"),
    "wine glass": ("glass",),
    "fork": ("utensil", "cutlery"),
    "knife": ("utensil", "cutlery"),
    "spoon": ("utensil", "cutlery"),
    "couch": ("sofa",),
    "chair": ("seat", "armchair"),
    "potted plant": ("plant",),
    "dining table": ("table", "desk"),
    "tv": ("television", "monitor", "screen"),
    "laptop": ("computer",),
    "mouse": ("computer mouse",),
    "cell phone": ("mobile phone", "phone"),
    "refrigerator": ("fridge",),
    "clock": ("watch",),
    "hair drier": ("hair dryer",),
}
"""COCO's class -> other names for its objects."""

COCO_KINDS: dict[str, Sequence[str]] = {
    "animal": _ANIMALS,
    "vehicle": _VEHICLES,
    "food": _FOOD,
    "fruit": ("banana", "apple", "orange"),
    "vegetable": ("broccoli", "carrot"),
    "furniture": ("chair", "couch", "bed", "dining table"),
}
"""A kind -> COCO's classes of it."""

IMAGENET_KINDS: dict[str, tuple[range, ...]] = {
    "animal": (range(398),),
    "fish": (range(2), range(389, 398)),
    "shark": (range(2, 5),),
    "bird": (range(7, 25), range(80, 101), range(127, 147)),
    "frog": (range(30, 33),),
    "turtle": (range(33, 38),),
    "lizard": (range(38, 49),),
    "snake": (range(52, 69),),
    "spider": (range(72, 78),),
    "crab": (range(118, 122),),
    "whale": (range(147, 149),),
    "dog": (range(151, 269),),
    "wolf": (range(269, 273),),
    "fox": (range(277, 281),),
    "cat": (range(281, 286),),
    "bear": (range(294, 298),),
    "insect": (range(300, 327),),
    "beetle": (range(300, 308),),
    "butterfly": (range(321, 327),),
    "rabbit": (range(330, 333),),
    "monkey": (range(365, 383),),
    "elephant": (range(385, 387),),
}
"""A kind -> indices of ImageNet-1k's classes (in the usual order, ILSVRC 2012)."""


def coco_names_with_kinds(class_names: Sequence[str]) -> list[str]:
    """COCO's class names, each with its synonyms and kinds after a ``|``.

    >>> coco_names_with_kinds(["apple", "tie"])
    ['apple|food|fruit', 'tie']
    """
    return [
        _joined(name, (*COCO_SYNONYMS.get(name, ()), *_kinds_of(name, COCO_KINDS)))
        for name in class_names
    ]


def imagenet_names_with_kinds(class_names: Sequence[str]) -> list[str]:
    """The 1000 class names of ImageNet-1k, each with its kinds after a ``|``.

    >>> imagenet_names_with_kinds(["tench, Tinca tinca"])
    ['tench, Tinca tinca|animal|fish']
    """
    return [
        _joined(name, [k for k, ranges in IMAGENET_KINDS.items() if any(i in r for r in ranges)])
        for i, name in enumerate(class_names)
    ]


def _kinds_of(name: str, kinds: Mapping[str, Sequence[str]]) -> list[str]:
    return [kind for kind, members in kinds.items() if name in members]


def _joined(name: str, others: Sequence[str]) -> str:
    return "|".join((name, *others))
