"""Class names: their form in prompts, and when two of them are one name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from glipv2_d2.messages import quote
from glipv2_d2.text.limits import check_text

# Invisible characters outside the categories Cc and Cf: the combining grapheme joiner, variation
# selectors, and the fillers of Hangul and Mongolian.
_OTHER_INVISIBLE = {
    *"\u034f\u115f\u1160\u180b\u180c\u180d\u180f\u3164\uffa0",
    *map(chr, range(0xFE00, 0xFE10)),
    *map(chr, range(0xE0100, 0xE01F0)),
}

# What joins the words of a name: blanks, hyphens and apostrophes.
_JOINTS = re.compile("[\\s'\u2018\u2019\u2010-\u2015-]")
# Class names whose form without "s" is another thing, or none.
_NO_PLURALS = {"glasses", "clothes", "shades", "arms", "goods", "gas", "lens"}
# The ending of a plural -> that of its singular; the first that fits.
_SINGULAR_ENDINGS = (
    *(("men", "man"), ("children", "child"), ("people", "person"), ("mice", "mouse")),
    *(("feet", "foot"), ("teeth", "tooth"), ("knives", "knife"), ("leaves", "leaf")),
    *(("shelves", "shelf"), ("loaves", "loaf"), ("wolves", "wolf"), ("scarves", "scarf")),
    *(("skis", "ski"), ("taxis", "taxi"), ("kiwis", "kiwi"), ("bikinis", "bikini")),
    *((ending, ending) for ending in ("ss", "us", "is")),
    *(("sses", "ss"), ("shes", "sh"), ("ches", "ch"), ("xes", "x"), ("toes", "to")),
    *(("uses", "us"), ("ies", "y"), ("s", "")),
)


def normalize_unicode(text: str) -> str:
    r"""The composed form (NFC) of a string, without characters that cannot be seen.

    These are zero-width characters, byte order marks, soft hyphens, directional marks, variation
    selectors and control characters other than white space.

    >>> normalize_unicode("\ufeffcafe\u0301") == "café"
    True
    """
    visible = "".join(character for character in text if not _is_invisible(character))
    return unicodedata.normalize("NFC", visible)


def _is_invisible(character: str) -> bool:
    if unicodedata.category(character) in ("Cc", "Cf"):
        return not character.isspace()
    return character in _OTHER_INVISIBLE


def clean_name(name: str) -> str:
    """Clean a class name as GLIP does (glip_reference.md 2.1), after :func:`normalize_unicode`.

    Everything from the first "(" to the last ")" is removed, "_" becomes a blank, and two blanks
    become one (in one pass: three become two). A blank left at the end is kept, as in GLIP.

    >>> clean_name("bat_(animal)")
    'bat '

    If nothing would be left, the words in parentheses are kept (unlike GLIP).

    >>> clean_name("(animal)")
    'animal'
    """
    name = normalize_unicode(name)
    cleaned = _normalize_blanks(re.sub(r"\(.*\)", "", name, flags=re.DOTALL))
    return cleaned if cleaned.strip() else _normalize_blanks(re.sub(r"[()]", " ", name)).strip()


def _normalize_blanks(name: str) -> str:
    return name.replace("_", " ").replace("  ", " ")


def normalized_name(name: str) -> str:
    r"""The key by which two class names are compared, everywhere.

    It equates spellings that differ in case, underscores, blanks, Unicode form and invisible
    characters. Names that differ in letters stay apart, also where upper case equates them.

    >>> normalized_name("Traffic_Light ")
    'traffic light'
    >>> normalized_name("Ma\xdfe") == normalized_name("Masse")
    False
    """
    words = normalize_unicode(name).replace("_", " ").split()
    return unicodedata.normalize("NFC", " ".join(words).lower())


def spelling(name: str) -> str:
    """A cleaned class name in lower case, without blanks, hyphens and apostrophes.

    >>> spelling("Wine glass") == spelling("wineglass") == spelling("wine-glass_(drink)")
    True
    """
    normalized = normalized_name(clean_name(name))
    return _JOINTS.sub("", normalized) or normalized


def singular_spelling(name: str) -> str:
    """The :func:`spelling` of an English class name in the singular, to compare names by.

    >>> [singular_spelling(n) for n in ("Skis", "wine glasses", "bus", "Knives", "snowmen")]
    ['ski', 'wineglass', 'bus', 'knife', 'snowman']

    Plurals whose singular is another thing stay.

    >>> singular_spelling("Glasses")
    'glasses'
    """
    spelled = spelling(name)
    if spelled in _NO_PLURALS or not spelled.isascii():
        return spelled
    for ending, singular in _SINGULAR_ENDINGS:
        if spelled.endswith(ending):
            return (spelled.removesuffix(ending) + singular) or spelled
    return spelled


def check_names(names: Sequence[str], separator: str = ". ") -> list[str]:
    """Check a list of class names, and return it as a list.

    Raises:
        ValueError: ``names`` is a string or empty, or a name is not a string, has no words, or is
            too long to be one.
    """
    if isinstance(names, str):
        raise ValueError(f"class names must be a list of names, not one string: {quote(names)}")
    if len(names) == 0:
        raise ValueError("the list of class names is empty: pass at least one name")
    for i, name in enumerate(names):
        if not isinstance(name, str):
            raise ValueError(
                f"class name {quote(name)} (index {i}) is not a string: put it in quotes"
            )
        check_text(name, "class name")
        if not clean_name(name).replace(separator.strip(), "").strip():
            raise ValueError(
                f"class name {quote(name)} (index {i} of {len(names)}) has no words: remove or "
                "rename it"
            )
    return list(names)
