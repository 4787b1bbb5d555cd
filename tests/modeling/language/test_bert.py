from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertModel, RobertaConfig

from glipv2_d2 import add_glipv2_config
from glipv2_d2.modeling.language import BertLanguageBackbone, build_language_backbone
from glipv2_d2.modeling.language import bert as bert_module
from glipv2_d2.modeling.language.bert import build_bert, canonical_bert_names
from glipv2_d2.structures import TokenBatch

Tokenize = Callable[..., TokenBatch]


def tiny_config(model: Path | str, weights: Path | str = "", freeze: bool = False) -> CfgNode:
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.MODEL.PROMPT.MAX_TOKENS = 40
    cfg.MODEL.LANGUAGE_BACKBONE.MODEL = str(model)
    cfg.MODEL.LANGUAGE_BACKBONE.WEIGHTS = str(weights)
    cfg.MODEL.LANGUAGE_BACKBONE.FREEZE = freeze
    return cfg


def test_features_have_the_width_of_the_attribute(bert: BertModel, tokenize: Tokenize) -> None:
    backbone = BertLanguageBackbone(bert=bert, freeze=False)
    features = backbone(tokenize("a cat", "red car . dog"))
    assert features.hidden.shape == (2, 6, backbone.width)
    assert features.mask.tolist() == [[True] * 4 + [False] * 2, [True] * 6]


def test_padding_does_not_change_a_prompt(bert: BertModel, tokenize: Tokenize) -> None:
    backbone = BertLanguageBackbone(bert=bert, freeze=False).eval()
    alone = backbone(tokenize("a cat")).hidden[0]
    padded = backbone(tokenize("a cat", "the red car . sea lion . dog")).hidden[0, :4]
    torch.testing.assert_close(padded, alone, atol=1e-6, rtol=0)


def test_features_are_the_last_layer_of_the_bert_without_a_pooler(
    bert: BertModel, tokenize: Tokenize
) -> None:
    tokens = tokenize("a cat")
    expected = bert.eval()(input_ids=tokens.input_ids, output_hidden_states=True).hidden_states[-1]
    hidden = BertLanguageBackbone(bert=bert, freeze=False).eval()(tokens).hidden
    torch.testing.assert_close(hidden, expected, atol=1e-6, rtol=0)


def test_state_dict_has_the_published_names_and_nothing_else(bert: BertModel) -> None:
    backbone = BertLanguageBackbone(bert=bert, freeze=False)
    assert sorted(backbone.state_dict()) == sorted(f"bert.{n}" for n in canonical_bert_names(2))
    assert "embeddings.LayerNorm.weight" in canonical_bert_names(2)
    assert "encoder.layer.1.attention.output.dense.bias" in canonical_bert_names(2)


class FutureBert(nn.Module):
    """A BERT with parameter names of a hypothetical later transformers."""

    def __init__(self, bert: BertModel) -> None:
        super().__init__()
        self.config = bert.config
        self.embeddings = bert.embeddings
        self.encoder = nn.Module()
        self.encoder.blocks = bert.encoder.layer


def test_state_dict_names_are_independent_of_transformers(
    bert: BertModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = BertLanguageBackbone(bert=bert, freeze=False).state_dict()
    monkeypatch.setattr(bert_module, "INSTALLED_TO_CANONICAL", {"blocks": "layer"})
    other = BertModel(bert.config, add_pooling_layer=False)
    parent = nn.ModuleDict({"language": BertLanguageBackbone(bert=FutureBert(other), freeze=False)})
    parent.load_state_dict({f"language.{name}": value for name, value in stored.items()})
    written = parent.state_dict(prefix="model.")
    assert written.keys() == {f"model.language.{name}" for name in stored}
    for name, value in stored.items():
        assert torch.equal(written[f"model.language.{name}"], value), name


def test_unknown_parameter_names_are_listed_in_the_error(bert: BertModel) -> None:
    with pytest.raises(RuntimeError, match=r"encoder\.layer\.0.*unexpected.*encoder\.blocks\.0"):
        BertLanguageBackbone(bert=FutureBert(bert), freeze=False)


def test_a_missing_weight_is_reported_by_its_published_name(bert: BertModel) -> None:
    backbone = BertLanguageBackbone(bert=bert, freeze=False)
    stored = backbone.state_dict()
    del stored["bert.embeddings.LayerNorm.bias"]
    missing, unexpected = backbone.load_state_dict(stored, strict=False)
    assert (missing, unexpected) == (["bert.embeddings.LayerNorm.bias"], [])


def test_a_frozen_backbone_stays_in_eval_mode_without_gradients(
    bert: BertModel, tokenize: Tokenize
) -> None:
    backbone = BertLanguageBackbone(bert=bert, freeze=True)
    parent = nn.ModuleList([backbone]).train()
    assert parent.training
    assert not any(module.training for module in backbone.modules())
    assert not backbone(tokenize("a cat")).hidden.requires_grad
    assert not any(p.requires_grad for p in backbone.parameters())


def test_every_parameter_of_a_trainable_backbone_gets_a_gradient(
    bert: BertModel, tokenize: Tokenize
) -> None:
    backbone = BertLanguageBackbone(bert=bert, freeze=False).train()
    backbone(tokenize("a cat . dog")).hidden.square().sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_without_weights_parameters_are_random(bert_directory: Path) -> None:
    backbone = build_language_backbone(tiny_config(bert_directory))
    stored = BertModel.from_pretrained(bert_directory, add_pooling_layer=False)
    assert backbone.width == 16
    assert not torch.equal(
        backbone.bert.embeddings.word_embeddings.weight, stored.embeddings.word_embeddings.weight
    )


def test_the_bundled_bert_has_the_published_sizes() -> None:
    config = bert_module._load_bert_config("bert-base-uncased")
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (30522, 768, 12)


def test_weights_are_loaded_from_a_directory(bert_directory: Path, bert: BertModel) -> None:
    backbone = build_language_backbone(tiny_config(bert_directory, weights=bert_directory))
    for name, value in bert.state_dict().items():
        assert torch.equal(backbone.bert.state_dict()[name], value), name


def test_weights_with_a_head_and_a_prefix_are_loaded(tmp_path: Path, bert: BertModel) -> None:
    BertForMaskedLM(bert.config).save_pretrained(tmp_path)
    loaded = build_bert(model=str(tmp_path), weights=str(tmp_path))
    stored = BertForMaskedLM.from_pretrained(tmp_path).bert
    assert torch.equal(
        loaded.embeddings.word_embeddings.weight, stored.embeddings.word_embeddings.weight
    )


@pytest.mark.parametrize(
    ("freeze", "has_weights", "excluded"),
    [
        (True, True, ("bert.",)),
        (True, False, ()),  # frozen random weights have no other source
        (False, True, ()),
    ],
)
def test_checkpoints_exclude_only_frozen_weights_with_a_source(
    freeze: bool, has_weights: bool, excluded: tuple[str, ...], bert_directory: Path
) -> None:
    cfg = tiny_config(bert_directory, bert_directory if has_weights else "", freeze)
    assert build_language_backbone(cfg).checkpoint_excluded == excluded


def test_more_tokens_than_positions_are_rejected(bert_directory: Path) -> None:
    cfg = tiny_config(bert_directory)
    cfg.MODEL.PROMPT.MAX_TOKENS = 41
    with pytest.raises(
        ValueError, match=r"max_tokens is 41.*at most 40.*MODEL\.PROMPT\.MAX_TOKENS"
    ):
        build_language_backbone(cfg)


def test_a_missing_model_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path}/none.*Pass a local directory"):
        build_bert(model=str(tmp_path / "none"), weights="")


def test_a_model_that_is_not_a_bert_is_rejected(tmp_path: Path) -> None:
    RobertaConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a roberta, not a BERT"):
        build_bert(model=str(tmp_path), weights="")


def test_missing_weights_are_named_in_the_error(tmp_path: Path, bert: BertModel) -> None:
    bert.config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"weights '{tmp_path}'.*leave it empty"):
        build_bert(model=str(tmp_path), weights=str(tmp_path))


def test_weights_of_other_sizes_are_rejected(tmp_path: Path, bert_directory: Path) -> None:
    BertConfig(vocab_size=13, hidden_size=8, num_attention_heads=2).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="are not BERT weights with the sizes of"):
        build_bert(model=str(tmp_path), weights=str(bert_directory))


def test_weights_with_missing_layers_are_rejected(
    tmp_path: Path, bert: BertModel, bert_directory: Path
) -> None:
    config = BertConfig.from_dict({**bert.config.to_dict(), "num_hidden_layers": 3})
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lack \['encoder\.layer\.2"):
        build_bert(model=str(tmp_path), weights=str(bert_directory))
