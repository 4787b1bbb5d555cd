"""Class names and captions become the reference's prompts, and every class is asked once."""

import logging
import re
import unicodedata

import pytest
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from hypothesis import given, settings
from hypothesis import strategies as st

from glipv2_d2.structures import Prompt
from glipv2_d2.structures.text import NEGATIVE
from glipv2_d2.text import (
    Decoration,
    Tokenizer,
    caption_prompt,
    class_prompt,
    class_prompts,
    clean_name,
    demo_prompt,
)

LVIS_NAMES = [
    category["synonyms"][0] for category in sorted(LVIS_CATEGORIES, key=lambda c: c["id"])
]


def label_to_tokens(prompt: Prompt, tokenizer: Tokenizer) -> list[list[int]]:
    (positive_map,) = tokenizer([prompt]).positive_maps
    return [row.nonzero()[:, 0].tolist() for row in positive_map]


# The reference's numbers


@pytest.mark.parametrize("key", ["query_coco80", "query_lvis", "query_hard", "query_space_sep"])
def test_class_prompt_is_the_references(key, golden, tokenizer):
    expected = golden[key]
    separator = expected["over"].get("DATASETS__SEPARATION_TOKENS", ". ")
    prompt = class_prompt(expected["names"], separator=separator)
    assert prompt.text == expected["caption"]
    assert [prompt.text[start:end] for ((start, end),) in prompt.spans] == expected["clean_names"]
    assert tokenizer([prompt]).input_ids[0].tolist() == expected["input_ids"]
    assert label_to_tokens(prompt, tokenizer) == list(expected["label_to_tokens"].values())


def test_decorated_prompt_is_the_references(golden, tokenizer):
    expected = golden["query_caption_prompt"]
    decorations = [Decoration(**entry) for entry in expected["over"]["DATASETS__CAPTION_PROMPT"]]
    prompt = class_prompt(expected["names"], decorations=decorations)
    assert prompt.text == expected["caption"]
    assert tokenizer([prompt]).input_ids[0].tolist() == expected["input_ids"]
    assert label_to_tokens(prompt, tokenizer) == list(expected["label_to_tokens"].values())


def test_suppressed_names_are_asked_without_a_label(golden, tokenizer):
    expected = golden["query_suppress"]
    prompt = class_prompt(expected["names"], suppressed=expected["over"]["DATASETS__SUPRESS_QUERY"])
    assert prompt.text == expected["caption"]
    assert prompt.num_labels == 1
    assert tokenizer([prompt]).input_ids[0].tolist() == expected["input_ids"]
    # The reference's span of a last name with suppressed ones behind it is that name's.
    assert label_to_tokens(prompt, tokenizer) == list(expected["label_to_tokens"].values())


def test_class_prompt_of_the_golden_model(golden_model, tokenizer):
    prompt = class_prompt(golden_model["categories"])
    assert prompt.text == golden_model["caption"]
    assert label_to_tokens(prompt, tokenizer) == list(golden_model["label_to_tokens"].values())


def test_demo_prompt_is_the_references(golden_model, tokenizer):
    expected = golden_model["demo_list"]
    prompt = demo_prompt(golden_model["categories"])
    assert prompt.text == expected["caption"]
    assert prompt.spans == tuple(((start, end),) for ((start, end),) in expected["spans"])
    assert label_to_tokens(prompt, tokenizer) == list(expected["label_to_tokens"].values())


def test_caption_prompt_is_the_references(golden_model, tokenizer):
    expected = golden_model["demo_free"]
    prompt = caption_prompt(expected["caption"], expected["spans"])
    assert label_to_tokens(prompt, tokenizer) == list(expected["label_to_tokens"].values())


def test_spans_of_shuffled_names_are_the_references(golden):
    """Training draws names in random order: only the spans of what it drew matter here."""
    expected = golden["od_optimized_seed3"]
    coco = golden["query_coco80"]["names"]
    labels = list(expected["label_to_positions"])
    prompt = class_prompt([coco[int(label) - 1] for label in labels])
    assert prompt.text == expected["caption"]
    assert [list(span) for (span,) in prompt.spans] == list(expected["label_to_positions"].values())


# Names


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("bat_(animal)", "bat "),
        ("hot dog (food) (x)", "hot dog "),  # from the first "(" to the last ")"
        ("snow   man", "snow  man"),  # one pass: three blanks become two
        ("a__b", "a b"),
        ("open (only", "open (only"),
        ("(animal)", "animal"),  # a name that would vanish
        ("_(two_words)_", "two words"),
    ],
)
def test_clean_name(name, cleaned):
    assert clean_name(name) == cleaned


def test_class_prompt_keeps_the_callers_classes():
    assert class_prompt(["cat", "dog"], classes=[7, 3]).classes == (7, 3)


@pytest.mark.parametrize(
    ("names", "named"),
    [
        ([], "empty"),
        ("cat", "'cat'"),
        (["cat", ""], "index 1"),
        (["cat", "  "], "index 1"),
        (["cat", "()"], "'()'"),
        ([" . . ", "cat"], "index 0"),
        (["cat", 7], "7"),  # what YAML makes of a bare number
        (["cat", "\u200b\u0301"], "index 1"),  # nothing that the tokenizer reads
        (["cat", "\ud800"], "surrogate"),
    ],
)
def test_names_that_cannot_be_asked_are_refused(names, named, tokenizer):
    with pytest.raises(ValueError, match=re.escape(named)):
        class_prompts(names, tokenizer)


@pytest.mark.parametrize("make", [class_prompt, demo_prompt])
@pytest.mark.parametrize("names", [[], "cat", ["cat", "."]])
def test_every_prompt_of_names_refuses_names_without_words(make, names):
    with pytest.raises(ValueError, match="name"):
        make(names)


def test_a_decoration_without_a_name_is_refused():
    with pytest.raises(ValueError, match="no words"):
        class_prompt(["cat"], decorations=[Decoration("a ", "", " here")])


def test_there_is_one_decoration_per_name():
    with pytest.raises(ValueError, match="1 decorations for 2"):
        class_prompt(["cat", "dog"], decorations=[Decoration("a ", "cat", "")])


# Captions


@pytest.mark.parametrize("caption", ["", " \n"])
def test_an_empty_caption_is_refused(caption):
    with pytest.raises(ValueError, match="empty"):
        caption_prompt(caption, [])


@pytest.mark.parametrize("span", [(0, 6), (-1, 2), (3, 3), (4, 2)])
def test_a_span_outside_the_caption_is_refused(span):
    with pytest.raises(ValueError, match="a cat"):
        caption_prompt("a cat", [[span]])


def test_a_phrase_without_spans_is_refused():
    with pytest.raises(ValueError, match="no span"):
        caption_prompt("a cat", [[(0, 5)], []])


def test_a_phrase_in_two_pieces_is_one_label():
    prompt = caption_prompt("a red and a blue cat", [[(2, 5), (17, 20)], [(12, 20)]])
    assert prompt.phrases == ["red cat", "blue cat"]
    assert prompt.classes == (0, 1)


# Many names


def test_coco_is_one_prompt(golden, tokenizer):
    (prompt,) = class_prompts(golden["query_coco80"]["names"], tokenizer)
    assert prompt.text == golden["query_coco80"]["caption"]


def test_lvis_by_40_names_is_31_prompts(tokenizer):
    prompts = class_prompts(LVIS_NAMES, tokenizer, max_classes=40)
    assert [prompt.num_labels for prompt in prompts] == [40] * 30 + [3]
    assert prompts[1].text == class_prompt(LVIS_NAMES[40:80]).text


def test_every_lvis_class_has_its_own_tokens(tokenizer):
    """Its 1203 names include "fish" and "fish_(food)": two classes, each asked."""
    prompts = class_prompts(LVIS_NAMES, tokenizer)
    assert [c for prompt in prompts for c in prompt.classes] == list(range(1203))
    tokens = tokenizer(prompts)
    assert max(tokens.mask.sum(dim=1)) <= 256
    for positive_map in tokens.positive_maps:
        assert positive_map.any(dim=1).all()
        assert positive_map.sum(dim=0).max() == 1


@pytest.mark.parametrize("max_tokens", [5, 8, 11, 14, 50])
def test_a_prompt_is_as_full_as_the_limit_allows(max_tokens, tokenizer):
    names = ["cat", "traffic light", "teddy bear", "dog", "fire hydrant"]
    prompts = class_prompts(names, tokenizer, max_tokens=max_tokens)
    lengths = tokenizer(prompts).mask.sum(dim=1).tolist()
    assert max(lengths) <= max_tokens
    for length, following in zip(lengths, prompts[1:], strict=False):
        first_of_next = tokenizer.count(names[following.classes[0]])
        assert length + 1 + first_of_next > max_tokens


def test_a_name_longer_than_a_prompt_is_refused(tokenizer):
    with pytest.raises(ValueError, match="'cat cat cat cat'.*4 tokens.*room for 3"):
        class_prompts(["dog", "cat cat cat cat"], tokenizer, max_tokens=5)


@pytest.mark.parametrize("separator", ["", "x", "\u200b", "and ", " b"])
def test_a_separator_that_would_join_two_names_is_refused(separator, tokenizer):
    with pytest.raises(ValueError, match=r"MODEL\.PROMPT\.SEPARATOR"):
        class_prompts(["cat", "dog"], tokenizer, separator=separator)


@pytest.mark.parametrize("separator", [" ", ". ", " . ", ",", " and ", "、"])
def test_a_separator_that_parts_names_is_used(separator, tokenizer):
    (prompt,) = class_prompts(["cat", "traffic light"], tokenizer, separator=separator)
    assert prompt.text == f"cat{separator}traffic light"


def test_a_duplicate_is_asked_once_under_its_first_index_and_named(tokenizer, caplog):
    with caplog.at_level(logging.WARNING, logger="glipv2_d2.text.prompts"):
        (prompt,) = class_prompts(["cat", "traffic_light", "Cat", "traffic  light"], tokenizer)
    assert prompt.phrases == ["cat", "traffic light"]
    assert prompt.classes == (0, 1)
    assert [record.args[:4] for record in caplog.records] == [
        ("Cat", 2, "cat", 0),
        ("traffic  light", 3, "traffic_light", 1),
    ]


def test_names_that_differ_in_parentheses_are_two_classes(tokenizer, caplog):
    (prompt,) = class_prompts(["bow_(weapon)", "bow_(decorative_ribbons)"], tokenizer)
    assert prompt.classes == (0, 1)
    assert not caplog.records


# Any names

arbitrary_names = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
        st.text("aB 1-_()'éß日한\u0301\u200b\u00ad.🦊", max_size=12),
        st.sampled_from(LVIS_NAMES),
    ),
    min_size=1,
    max_size=12,
)


def is_askable(name: str, tokenizer: Tokenizer) -> bool:
    cleaned = clean_name(name)
    return bool(cleaned.replace(".", "").strip()) and tokenizer.count(cleaned) > 0


def words_of(name: str) -> str:
    """What two names share when they are one class."""
    return " ".join(name.replace("_", " ").split()).casefold()


def pieces_per_class(names: list[str], tokenizer: Tokenizer) -> dict[int, list[int]]:
    """For each class that is asked, the ids of the tokens of its label, over all chunks."""
    prompts = class_prompts(names, tokenizer, max_tokens=40)
    tokens = tokenizer(prompts)
    classes = [i for prompt in prompts for i in prompt.classes]
    pieces = [
        ids[row].tolist()
        for ids, positive_map in zip(tokens.input_ids, tokens.positive_maps, strict=True)
        for row in positive_map
    ]
    assert len(set(classes)) == len(classes)
    return dict(zip(classes, pieces, strict=True))


@settings(max_examples=200, deadline=None)
@given(names=arbitrary_names)
def test_every_class_is_one_label_that_spells_its_name(names, tokenizer):
    names = [name for name in names if is_askable(name, tokenizer)] or ["cat"]
    pieces = pieces_per_class(names, tokenizer)
    assert [words_of(names[i]) for i in pieces] == list(dict.fromkeys(map(words_of, names)))
    for i, ids in pieces.items():
        (expected,) = tokenizer.pieces([clean_name(names[i])])
        assert len(ids) > 0
        # Of a character that is several tokens (Hangul) a name's last is its first, as in GLIP.
        assert ids == expected[: len(ids)]
        if unicodedata.is_normalized("NFD", names[i]):
            assert ids == expected


@settings(max_examples=50, deadline=None)
@given(names=arbitrary_names, data=st.data())
def test_the_order_of_the_classes_does_not_change_what_spells_them(names, data, tokenizer):
    # Of duplicates, the first one's spelling would count.
    unique = {words_of(name): name for name in names if is_askable(name, tokenizer)} or {"a": "a"}
    names = list(unique.values())
    shuffled = data.draw(st.permutations(names))
    pieces = {names[i]: ids for i, ids in pieces_per_class(names, tokenizer).items()}
    assert pieces == {shuffled[i]: ids for i, ids in pieces_per_class(shuffled, tokenizer).items()}


@settings(max_examples=50, deadline=None)
@given(names=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=4))
def test_any_list_is_asked_or_refused_by_name(names, tokenizer):
    if names and all(is_askable(name, tokenizer) for name in names):
        assert class_prompts(names, tokenizer)
    else:
        with pytest.raises(ValueError, match="class name"):
            class_prompts(names, tokenizer)


# Names in an order of their own, and names that only compete


def test_names_sorted_by_a_key_keep_the_callers_classes(tokenizer):
    prompts = class_prompts(
        ["dog", "Cat", "ape", "cat"], tokenizer, max_classes=2, key=str.casefold
    )
    assert [(p.phrases, p.classes) for p in prompts] == [(["ape", "Cat"], (2, 1)), (["dog"], (0,))]


def test_every_chunk_asks_all_negatives(tokenizer):
    prompts = class_prompts(
        ["cat", "dog", "cow"], tokenizer, max_classes=4, negatives=["wolf", "red fox"]
    )
    assert [p.text for p in prompts] == ["cat. dog. wolf. red fox", "cow. wolf. red fox"]
    assert [p.classes for p in prompts] == [(0, 1, NEGATIVE, NEGATIVE), (2, NEGATIVE, NEGATIVE)]
    assert [p.negative_labels for p in prompts] == [[2, 3], [1, 2]]


@pytest.mark.parametrize("max_tokens", [7, 9, 12, 30])
def test_prompts_with_negatives_keep_to_the_limit_of_tokens(max_tokens, tokenizer):
    names = ["cat", "dog", "cow", "hen", "pig"]
    prompts = class_prompts(names, tokenizer, max_tokens=max_tokens, negatives=["red fox"])
    assert tokenizer(prompts).mask.sum(dim=1).max() <= max_tokens
    assert [c for p in prompts for c in p.classes if c != NEGATIVE] == [0, 1, 2, 3, 4]


def test_a_negative_is_asked_once_however_often_it_is_given(tokenizer):
    (prompt,) = class_prompts(["cat"], tokenizer, negatives=["Red_fox", "red fox"])
    assert prompt.phrases == ["cat", "Red fox"]


@pytest.mark.parametrize(
    ("negatives", "options", "message"),
    [
        (["HOT_DOG"], {}, r"'HOT_DOG' is a negative and a class \('hot dog'\)"),
        (["wolf", ""], {}, "''.*index 1.*no words"),
        ("wolf", {}, "'wolf'"),
        (["\u200b\u0301"], {}, "leave it out"),
        (["wolf", "fox"], {"max_classes": 2}, "2 negatives leave no room.*MAX_CLASSES"),
        (["wolf", "fox"], {"max_tokens": 6}, "2 negatives leave no room.*MAX_TOKENS"),
        (["wolf"], {"max_tokens": 5}, r"'hot dog' \(index 0\) has 2 tokens.*room for 1 beside"),
    ],
)
def test_negatives_that_cannot_be_asked_are_named(negatives, options, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        class_prompts(["hot dog", "cat"], tokenizer, negatives=negatives, **options)
