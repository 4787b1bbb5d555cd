from __future__ import annotations

import functools
import json
from pathlib import Path

import compare_grounding_dino
import pytest
from helpers.models import tiny_cfg
from transformers import BertConfig, GroundingDinoConfig, SwinConfig

from glipv2_d2.profiling import grounding_dino
from glipv2_d2.profiling.grounding_dino import MAX_TOKENS, make_prompts, prompt_token_ids
from glipv2_d2.text.tokenizer import Tokenizer


@pytest.fixture
def _small_grounding_dino(monkeypatch: pytest.MonkeyPatch) -> None:
    small = functools.partial(
        GroundingDinoConfig,
        backbone_config=SwinConfig(
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 2, 2, 2],
            window_size=4,
            out_indices=[2, 3, 4],
        ),
        text_config=BertConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        ),
        d_model=32,
        num_queries=5,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
    )
    monkeypatch.setattr(grounding_dino, "GroundingDinoConfig", small)
    monkeypatch.setattr(compare_grounding_dino, "keep_freed_memory", lambda: False)


def test_prompts_are_full_and_contain_every_name_once() -> None:
    names, tokenizer = [f"name {number}" for number in range(200)], Tokenizer()
    prompts = make_prompts(names, tokenizer)
    assert [name for prompt in prompts for name in prompt[:-1].split(". ")] == names
    lengths = [prompt_token_ids(prompt, tokenizer).shape[1] for prompt in prompts]
    assert max(lengths) <= MAX_TOKENS
    assert all(length + 4 > MAX_TOKENS for length in lengths[:-1]), "another name would fit"


@pytest.mark.usefixtures("_small_grounding_dino")
def test_both_models_are_timed_in_turns(tmp_path: Path) -> None:
    config, path = tmp_path / "tiny.yaml", tmp_path / "result.json"
    config.write_text(tiny_cfg().dump())
    arguments = ["--config-file", str(config), "--image-size", "64", "96", "--num-classes", "90"]
    arguments += ["--warmup", "0", "--repeats", "2", "--batch-size", "2", "--json", str(path)]
    assert compare_grounding_dino.main(arguments) == 0
    result = json.loads(path.read_text())
    assert [len(samples) for samples in result["seconds"].values()] == [2, 2]
    assert result["prompts_of_grounding_dino"] == 2


def test_zero_repeats_are_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare_grounding_dino.main(["--config-file", "any.yaml", "--repeats", "0"]) == 2
    assert "--repeats is 0; it must be at least 1" in capsys.readouterr().err
