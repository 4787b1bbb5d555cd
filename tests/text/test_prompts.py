"""Class names and captions become the reference's prompts, with every class once."""

import logging
import re

import pytest
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from hypothesis import given, settings
from hypothesis import strategies as st

from glipv2_d2.messages import quote
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
from glipv2_d2.text.names import normalized_name
from glipv2_d2.text.prompts import known_labels

LVIS_NAMES = [
    category["synonyms"][0] for category in sorted(LVIS_CATEGORIES, key=lambda c: c["id"])
]


def label_to_tokens(prompt: Prompt, tokenizer: Tokenizer) -> list[list[int]]:
    (positive_map,) = tokenizer([prompt]).positive_maps
    return [row.nonzero()[:, 0].tolist() for row in positive_map]


# The reference's numbers


@pytest.mark.parametrize("key", ["query_coco80", "query_lvis", "query_hard", "query_space_sep"])
def test_class_prompt_equals_the_references(key, golden, tokenizer):
    expected = golden[key]
    separator = expected["over"].get("DATASETS__SEPARATION_TOKENS", ". ")
    prompt = class_prompt(expected["names"], separator=separator)
    assert prompt.text == expected["caption"]
    assert [prompt.text[start:end] for ((start, end),) in prompt.spans] == expected["clean_names"]
    assert tokenizer([prompt]).input_ids[0].tolist() == expected["input_ids"]
    assert label_to_tokens(prompt, tokenizer) == list(expected["label_to_tokens"].values())


def test_decorated_prompt_equals_the_references(golden, tokenizer):
    expected = golden["query_caption_prompt"]
    decorations = [Decoration(**entry) for entry in expected["over"]["DATASETS__CAPTION_PROMPT"]]
    prompt = class_prompt(expected["names"], decorations=decorations)
    assert prompt.text == expected["caption"]
    assert tokenizer([prompt]).input_ids[0].tolist() == expected["input_ids"]
    assert label_to_tokens(prompt, tokenizer) == list(expected["label_to_tokens"].values())


def test_suppressed_names_have_no_label(golden, tokenizer):
    expected = golden["query_suppress"]
    prompt = class_prompt(expected["names"], suppressed=expected["over"]["DATASETS__SUPRESS_QUERY"])
    assert prompt.text == expected["caption"]
    assert prompt.num_labels == 1
    assert tokenizer([prompt]).input_ids[0].tolist() == expected["input_ids"]
    # In the reference, too, the span of the last name ends before the suppressed ones.
    assert label_to_tokens(prompt, tokenizer) == list(expected["label_to_tokens"].values())


def test_class_prompt_of_the_golden_model(golden_model, tokenizer):
    prompt = class_prompt(golden_model["categories"])
    assert prompt.text == golden_model["caption"]
    assert label_to_tokens(prompt, tokenizer) == list(golden_model["label_to_tokens"].values())


def test_demo_prompt_equals_the_references(golden_model, tokenizer):
    expected = golden_model["demo_list"]
    prompt = demo_prompt(golden_model["categories"])
    assert prompt.text == expected["caption"]
    assert prompt.spans == tuple(((start, end),) for ((start, end),) in expected["spans"])
    assert label_to_tokens(prompt, tokenizer) == list(expected["label_to_tokens"].values())


def test_caption_prompt_equals_the_references(golden_model, tokenizer):
    expected = golden_model["demo_free"]
    prompt = caption_prompt(expected["caption"], expected["spans"])
    assert label_to_tokens(prompt, tokenizer) == list(expected["label_to_tokens"].values())


def test_spans_of_shuffled_names_equal_the_references(golden):
    """The reference samples names in random order; here only their spans matter."""
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
        ("(animal)", "animal"),  # nothing else would be left
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
        (["cat", "\u200b\u0301"], "index 1"),  # no token
        (["cat", "\ud800"], "surrogate"),
    ],
)
def test_invalid_names_are_rejected(names, named, tokenizer):
    with pytest.raises(ValueError, match=re.escape(named)):
        class_prompts(names, tokenizer)


@pytest.mark.parametrize("make", [class_prompt, demo_prompt])
@pytest.mark.parametrize("names", [[], "cat", ["cat", "."]])
def test_prompts_reject_names_without_words(make, names):
    with pytest.raises(ValueError, match="name"):
        make(names)


def test_a_decoration_without_a_name_is_rejected():
    with pytest.raises(ValueError, match="no words"):
        class_prompt(["cat"], decorations=[Decoration("a ", "", " here")])


def test_the_number_of_decorations_must_match():
    with pytest.raises(ValueError, match="1 decorations for 2"):
        class_prompt(["cat", "dog"], decorations=[Decoration("a ", "cat", "")])


# Captions


@pytest.mark.parametrize("caption", ["", " \n"])
def test_an_empty_caption_is_rejected(caption):
    with pytest.raises(ValueError, match="empty"):
        caption_prompt(caption, [])


@pytest.mark.parametrize("span", [(0, 6), (-1, 2), (3, 3), (4, 2)])
def test_a_span_outside_the_caption_is_rejected(span):
    with pytest.raises(ValueError, match="a cat"):
        caption_prompt("a cat", [[span]])


def test_a_phrase_without_spans_is_rejected():
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
    """Its 1203 names include "fish" and "fish_(food)", which are two classes."""
    prompts = class_prompts(LVIS_NAMES, tokenizer)
    assert [c for prompt in prompts for c in prompt.classes] == list(range(1203))
    tokens = tokenizer(prompts)
    assert max(tokens.mask.sum(dim=1)) <= 256
    for positive_map in tokens.positive_maps:
        assert positive_map.any(dim=1).all()
        assert positive_map.sum(dim=0).max() == 1


@pytest.mark.parametrize("max_tokens", [5, 8, 11, 14, 50])
def test_prompts_are_as_long_as_the_limit_allows(max_tokens, tokenizer):
    names = ["cat", "traffic light", "teddy bear", "dog", "fire hydrant"]
    prompts = class_prompts(names, tokenizer, max_tokens=max_tokens)
    lengths = tokenizer(prompts).mask.sum(dim=1).tolist()
    assert max(lengths) <= max_tokens
    for length, following in zip(lengths, prompts[1:], strict=False):
        first_of_next = tokenizer.count(names[following.classes[0]])
        assert length + 1 + first_of_next > max_tokens


def test_a_name_longer_than_a_prompt_is_rejected(tokenizer):
    with pytest.raises(ValueError, match="'cat cat cat cat'.*4 tokens.*room for 3"):
        class_prompts(["dog", "cat cat cat cat"], tokenizer, max_tokens=5)


@pytest.mark.parametrize("separator", ["", "x", "\u200b", "and ", " b"])
def test_a_separator_that_merges_two_names_is_rejected(separator, tokenizer):
    with pytest.raises(ValueError, match="separator .* apart"):
        class_prompts(["cat", "dog"], tokenizer, separator=separator)


@pytest.mark.parametrize("separator", [" ", ". ", " . ", ",", " and ", "、"])
def test_a_separator_that_keeps_names_apart_is_used(separator, tokenizer):
    (prompt,) = class_prompts(["cat", "traffic light"], tokenizer, separator=separator)
    assert prompt.text == f"cat{separator}traffic light"


def test_a_duplicate_has_the_first_index_and_is_logged(tokenizer, caplog):
    with caplog.at_level(logging.WARNING, logger="glipv2_d2.text.prompts"):
        (prompt,) = class_prompts(["cat", "traffic_light", "Cat", "traffic  light"], tokenizer)
    assert prompt.phrases == ["cat", "traffic light"]
    assert prompt.classes == (0, 1)
    assert [record.args[:4] for record in caplog.records] == [
        ("'Cat'", 2, "'cat'", 0),
        ("'traffic  light'", 3, "'traffic_light'", 1),
    ]


@pytest.mark.parametrize(
    "names", [["bow_(weapon)", "bow_(decorative_ribbons)"], ["café", "cafe"], ["x 杯", "x 猫"]]
)
def test_different_names_with_equal_tokens_are_two_classes_with_a_warning(names, tokenizer, caplog):
    (prompt,) = class_prompts(names, tokenizer)
    assert prompt.classes == (0, 1)
    assert f"equal scores and boxes; the first group is {names}" in caplog.text


def test_names_that_differ_in_letters_are_told_apart_without_a_warning(tokenizer, caplog):
    (prompt,) = class_prompts(["Ma\xdfe", "Masse", "가", "거"], tokenizer)
    assert prompt.classes == (0, 1, 2, 3)
    assert not caplog.records


# Names that the tokenizer does not know

UNKNOWN = ["杯", "猫", "🦊", "[MASK]", "猫!", "x" * 101]


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_name_is_left_out_with_a_warning(name, tokenizer, caplog):
    (prompt,) = class_prompts(["cat", name, "dog"], tokenizer)
    assert (prompt.phrases, prompt.classes) == (["cat", "dog"], (0, 2))
    assert f"never detected: {quote([name])}" in caplog.text


@pytest.mark.parametrize("names", [["杯"], UNKNOWN])
def test_a_list_of_unknown_names_is_rejected(names, tokenizer):
    with pytest.raises(ValueError, match="none of the class names .* has a word"):
        class_prompts(names, tokenizer)


def test_a_name_with_one_known_word_is_used_with_a_warning(tokenizer, caplog):
    (prompt,) = class_prompts(["cat", "杯 sign"], tokenizer)
    assert prompt.classes == (0, 1)
    assert "1 class names have words outside" in caplog.text and "杯 sign" in caplog.text


def test_unknown_phrases_of_a_caption_are_left_out_with_a_warning(tokenizer, caplog):
    prompt = caption_prompt("a cat, a 猫", [[(7, 10)], [(2, 5)], [(9, 10)]])
    known = known_labels(prompt, tokenizer)
    assert (known.text, known.phrases, known.classes) == (prompt.text, ["a 猫", "cat"], (0, 1))
    assert "never detected: ['猫']" in caplog.text


def test_a_caption_of_unknown_phrases_is_rejected(tokenizer):
    with pytest.raises(ValueError, match=r"none of the phrases \['猫'\] of caption 'my 猫'"):
        known_labels(caption_prompt("my 猫", [[(3, 4)]]), tokenizer)


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


def is_valid(name: str, tokenizer: Tokenizer) -> bool:
    cleaned = clean_name(name)
    return bool(cleaned.replace(".", "").strip()) and tokenizer.has_words(
        tokenizer.encode([cleaned])[0]
    )


def pieces_per_class(names: list[str], tokenizer: Tokenizer) -> dict[int, list[int]]:
    """For each class, the token ids of its label, over all prompts."""
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
def test_every_class_is_one_label_with_the_tokens_of_its_name(names, tokenizer):
    names = [name for name in names if is_valid(name, tokenizer)] or ["cat"]
    pieces = pieces_per_class(names, tokenizer)
    assert [normalized_name(names[i]) for i in pieces] == list(
        dict.fromkeys(map(normalized_name, names))
    )
    for i, ids in pieces.items():
        (expected,) = tokenizer.encode([clean_name(names[i])])
        assert len(ids) > 0
        assert ids == expected


@settings(max_examples=50, deadline=None)
@given(names=arbitrary_names, data=st.data())
def test_the_tokens_of_a_class_do_not_depend_on_the_order(names, data, tokenizer):
    # Of duplicates, the first is used.
    unique = {normalized_name(name): name for name in names if is_valid(name, tokenizer)} or {
        "a": "a"
    }
    names = list(unique.values())
    shuffled = data.draw(st.permutations(names))
    pieces = {names[i]: ids for i, ids in pieces_per_class(names, tokenizer).items()}
    assert pieces == {shuffled[i]: ids for i, ids in pieces_per_class(shuffled, tokenizer).items()}


@settings(max_examples=50, deadline=None)
@given(names=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=4))
def test_any_list_is_valid_or_rejected(names, tokenizer):
    has_tokens = [tokenizer.count(clean_name(name)) > 0 for name in names]
    has_words = [is_valid(name, tokenizer) for name in names]
    is_empty = [not clean_name(name).replace(".", "").strip() for name in names]
    if any(has_words) and all(has_tokens) and not any(is_empty):
        used = {
            normalized_name(name) for name, known in zip(names, has_words, strict=True) if known
        }
        prompts = class_prompts(names, tokenizer)
        assert sum(prompt.num_labels for prompt in prompts) == len(used)
    else:
        with pytest.raises(ValueError, match="class name"):
            class_prompts(names, tokenizer)


# Sorted names, and negatives


def test_sorted_names_keep_the_callers_classes(tokenizer):
    prompts = class_prompts(
        ["dog", "Cat", "ape", "cat"], tokenizer, max_classes=2, key=str.casefold
    )
    assert [(p.phrases, p.classes) for p in prompts] == [(["ape", "Cat"], (2, 1)), (["dog"], (0,))]


def test_every_prompt_has_all_negatives(tokenizer):
    prompts = class_prompts(
        ["cat", "dog", "cow"], tokenizer, max_classes=4, negatives=["wolf", "red fox"]
    )
    assert [p.text for p in prompts] == ["cat. dog. wolf. red fox", "cow. wolf. red fox"]
    assert [p.classes for p in prompts] == [(0, 1, NEGATIVE, NEGATIVE), (2, NEGATIVE, NEGATIVE)]
    assert [p.negative_labels for p in prompts] == [[2, 3], [1, 2]]


@pytest.mark.parametrize("max_tokens", [7, 9, 12, 30])
def test_prompts_with_negatives_respect_the_token_limit(max_tokens, tokenizer):
    names = ["cat", "dog", "cow", "hen", "pig"]
    prompts = class_prompts(names, tokenizer, max_tokens=max_tokens, negatives=["red fox"])
    assert tokenizer(prompts).mask.sum(dim=1).max() <= max_tokens
    assert [c for p in prompts for c in p.classes if c != NEGATIVE] == [0, 1, 2, 3, 4]


def test_duplicate_negatives_are_used_once(tokenizer):
    (prompt,) = class_prompts(["cat"], tokenizer, negatives=["Red_fox", "red fox"])
    assert prompt.phrases == ["cat", "Red fox"]


@pytest.mark.parametrize(
    ("negatives", "options", "message"),
    [
        (["HOT_DOG"], {}, r"'HOT_DOG' is a negative and a class \('hot dog'\)"),
        (["wolf", ""], {}, "''.*index 1.*no words"),
        ("wolf", {}, "'wolf'"),
        (["\u200b\u0301"], {}, "remove it"),
        (["猫"], {}, "negative '猫' has no word.*remove it"),
        (["cát"], {}, r"is a negative and a class \('cat'\)"),
        (["wolf", "fox"], {"max_classes": 2}, "2 negatives leave no room.*max_classes"),
        (["wolf", "fox"], {"max_tokens": 6}, "2 negatives leave no room.*max_tokens"),
        (["wolf"], {"max_tokens": 5}, r"'hot dog' \(index 0\) has 2 tokens.*room for 1 beside"),
    ],
)
def test_invalid_negatives_are_rejected(negatives, options, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        class_prompts(["hot dog", "cat"], tokenizer, negatives=negatives, **options)
