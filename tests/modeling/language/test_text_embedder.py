from __future__ import annotations

import torch
from detectron2.modeling import build_model
from helpers.models import tiny_cfg

from glipv2_d2.modeling.language.text_embedder import TextEmbedder


def test_strings_of_all_lengths_are_embedded_in_the_order_of_the_list():
    torch.manual_seed(0)
    model = build_model(tiny_cfg()).eval()
    embed = TextEmbedder(model.language_backbone, model.query_builder.tokenizer)
    words = ["cat", "dog", "red", "cup", "tree", "house"]
    # More than a batch, and neighbours of different lengths.
    strings = [" ".join([words[i % 6]] * (1 + i * 7 % 5)) + f" {i}" for i in range(150)]
    one_by_one = TextEmbedder(model.language_backbone, model.query_builder.tokenizer)
    expected = torch.cat([one_by_one([string]) for string in strings])
    torch.testing.assert_close(embed(strings), expected, rtol=1e-4, atol=1e-5)
