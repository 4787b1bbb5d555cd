"""The indefinite article: "a" or "an"."""

from __future__ import annotations

import re

# Words that start with a vowel but a consonant sound, and with a silent h.
_LIKE_CONSONANTS = ("eu", "ewe", "once", "one", "ukulele", "uni", "use", "usu", "uti")
_LIKE_VOWELS = ("heir", "honest", "honor", "honour", "hour")
_ARTICLE = re.compile(r"\b(a)n?(?=\s+([a-z]\w*))", re.IGNORECASE)


def article_of(word: str) -> str:
    """The article before a word, from its first letters. Some rare words are exceptions.

    >>> [article_of(word) for word in ("owl", "dog", "Unicorn", "umbrella", "hourglass")]
    ['an', 'a', 'a', 'an', 'an']
    """
    word = word.lower()
    if word.startswith(_LIKE_VOWELS):
        return "an"
    return "an" if word[:1] in tuple("aeiou") and not word.startswith(_LIKE_CONSONANTS) else "a"


def agree_articles(text: str) -> str:
    """The string with every article corrected for the word after it.

    >>> agree_articles("A owl beside an dog and an apple of a kind")
    'An owl beside a dog and an apple of a kind'
    """
    return _ARTICLE.sub(lambda match: match[1] + article_of(match[2])[1:], text)
