"""Prompts, their tokens, and the maps between characters, tokens and labels.

Noun phrases need the extra ``phrases``; they are in :mod:`glipv2_d2.text.noun_phrases`.
"""

from glipv2_d2.text.model_files import resolve_model, resolve_weights
from glipv2_d2.text.names import clean_name
from glipv2_d2.text.prompts import (
    Decoration,
    caption_prompt,
    class_prompt,
    class_prompts,
    demo_prompt,
)
from glipv2_d2.text.token_maps import label_scores, positive_map
from glipv2_d2.text.tokenizer import Tokenizer

__all__ = [
    "Decoration",
    "Tokenizer",
    "caption_prompt",
    "class_prompt",
    "class_prompts",
    "clean_name",
    "demo_prompt",
    "label_scores",
    "positive_map",
    "resolve_model",
    "resolve_weights",
]
