"""Which classes of several detection datasets are one class, though their names are written apart.

A *key* is the same for two classes that are one. A prompt has one class per key, and the
inter-image loss propagates labels by keys, so that "Wine glass" of OpenImages is no negative for a
"wineglass" of Visual Genome.

VinVL and GLIP align their datasets by label maps, files with the number of each name in one
vocabulary (``DATASETS.LABEL_MAPS``). Names without a number have one class by their spelling (our
choice): without blanks, hyphens and case, and in the singular, except where a dataset has both
forms as classes ("man" and "men").
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode

from glipv2_d2.data.label_map import read_label_map
from glipv2_d2.messages import quote
from glipv2_d2.text.names import normalized_name, singular_spelling, spelling


def load_label_maps(cfg: CfgNode) -> dict[str, dict[str, int]]:
    """``DATASETS.LABEL_MAPS`` as dataset -> class name -> number.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: an entry is not a pair, has a dataset that is not in ``DATASETS.TRAIN``, or a
            file that is not a label map.
    """
    maps = {}
    for pair in cfg.DATASETS.LABEL_MAPS:
        if not isinstance(pair, list | tuple) or [type(value) for value in pair] != [str, str]:
            raise ValueError(
                f"DATASETS.LABEL_MAPS: {pair!r} is not a pair of a dataset and a file; write "
                "[[openimages_train, oi_vgoiv6_class2ind.json]]"
            )
        name, path = pair
        if name not in cfg.DATASETS.TRAIN:
            raise ValueError(
                f"DATASETS.LABEL_MAPS has the dataset {name!r}, which is not in DATASETS.TRAIN "
                f"{tuple(cfg.DATASETS.TRAIN)}"
            )
        maps[name] = read_label_map(path)
    return maps


def class_keys(
    class_names: Mapping[str, Sequence[str]], label_maps: Mapping[str, Mapping[str, int]]
) -> dict[str, list[str]]:
    """The key of each class of each dataset.

    Args:
        class_names: class names per dataset; datasets of captions have none.
        label_maps: per dataset that has one, the number of each of its names, all in one numbering.

    Raises:
        ValueError: a label map has no name of its dataset.
    """
    numbered = {
        dataset: _numbers(dataset, names, label_maps[dataset])
        for dataset, names in class_names.items()
        if dataset in label_maps
    }
    # Of two numbers of one spelling, none: the mouse of a computer is not the animal.
    numbers_of = defaultdict(set)
    for numbers in label_maps.values():
        for name, number in numbers.items():
            numbers_of[spelling(name)].add(number)
    both_forms = _with_both_forms(list(class_names.values()) + list(map(list, label_maps.values())))
    return {
        dataset: [
            _key_of_number(number) if number is not None else _key(name, numbers_of, both_forms)
            for name, number in zip(names, numbered.get(dataset, [None] * len(names)), strict=True)
        ]
        for dataset, names in class_names.items()
    }


def _numbers(dataset: str, names: Sequence[str], label_map: Mapping[str, int]) -> list[int | None]:
    by_name = {normalized_name(name): number for name, number in label_map.items()}
    by_spelling = {spelling(name): number for name, number in label_map.items()}
    numbers = [by_name.get(normalized_name(n), by_spelling.get(spelling(n))) for n in names]
    if names and set(numbers) == {None}:
        raise ValueError(
            f"DATASETS.LABEL_MAPS: the file of dataset {dataset!r} has none of its class names "
            f"{quote(list(names))}: it has {quote(list(label_map))}"
        )
    return numbers


def _key(name: str, numbers_of: Mapping[str, set[int]], both_forms: set[str]) -> str:
    singular = singular_spelling(name)
    key = spelling(name) if singular in both_forms else singular
    for form in (spelling(name), key):
        if len(numbers := numbers_of.get(form, set())) == 1:
            return _key_of_number(min(numbers))
    return key


def _key_of_number(number: int) -> str:
    """A key that no spelling has, for its blank."""
    return f"number {number}"


def _with_both_forms(lists: Sequence[Sequence[str]]) -> set[str]:
    """The singulars of which a list has several forms."""
    found = set()
    for names in lists:
        forms = defaultdict(set)
        for name in names:
            forms[singular_spelling(name)].add(spelling(name))
        found |= {singular for singular, spelled in forms.items() if len(spelled) > 1}
    return found
