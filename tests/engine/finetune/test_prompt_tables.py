"""Trained embeddings of class names, wherever the names stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from helpers import tuning
from helpers.models import random_image
from helpers.tuning import build_tuned_model, detection_inputs, train_steps
from torch import Tensor, nn

from glipv2_d2.engine.finetune.tuning import apply_tuning, save_delta
from glipv2_d2.text.prompts import caption_prompt, class_prompt

NAMES = ["cat", "traffic light", "tea cup"]


def tuned_cfg(base: str, *opts: Any) -> CfgNode:
    names = ("MODEL.TUNING.PROMPT.CLASS_NAMES", NAMES)
    return tuning.tuned_cfg(base, "class_prompt", *names, *opts)


@pytest.fixture(scope="module")
def model(base: str) -> nn.Module:
    """With a random table."""
    built = build_tuned_model(tuned_cfg(base)).eval()
    nn.init.normal_(built.language_backbone.table)
    return built


def added_by_name(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """What the table adds to the tokens of each name of one prompt."""
    tokens = model.query_builder.tokenizer([class_prompt(names)])
    backbone = model.language_backbone
    with torch.no_grad():
        added = backbone(tokens).hidden - backbone.inner(tokens).hidden
    labels = zip(names, tokens.positive_maps[0], strict=True)
    found = {name: added[0][positions] for name, positions in labels}
    of_labels = tokens.positive_maps[0].any(dim=0)
    assert not added[0][~of_labels].any()
    return found


@pytest.mark.parametrize(
    "names", [NAMES, NAMES[::-1], ["tea cup"], ["dog", "Traffic_Light", "cat", "zebra"]]
)
def test_a_name_has_its_vectors_in_any_order_and_number(model: nn.Module, names: list[str]) -> None:
    row_of = {"cat": 0, "traffic light": 1, "Traffic_Light": 1, "tea cup": 2}
    for name, added in added_by_name(model, names).items():
        if name in row_of:
            expected = model.language_backbone.table[row_of[name], : len(added)]
            torch.testing.assert_close(added, expected, atol=1e-5, rtol=1e-5)
        else:
            assert not added.any()


def test_a_caption_with_a_class_name_is_encoded_as_without_the_table(model: nn.Module) -> None:
    tokens = model.query_builder.tokenizer([caption_prompt("a cat sits", [[[2, 5]]])])
    backbone = model.language_backbone
    assert torch.equal(backbone(tokens).hidden, backbone.inner(tokens).hidden)


def test_tokens_beyond_the_number_per_name_get_no_vectors(base: str) -> None:
    cfg = tuned_cfg(base, "MODEL.TUNING.PROMPT.TOKENS_PER_NAME", 1)
    short = build_tuned_model(cfg).eval()
    nn.init.ones_(short.language_backbone.table)
    added = added_by_name(short, ["traffic light"])["traffic light"]
    assert added[0].all() and not added[1:].any() and len(added) > 1


def test_training_a_name_without_vectors_is_an_error(base: str) -> None:
    cfg = tuning.tuned_cfg(base, "class_prompt", "MODEL.TUNING.PROMPT.CLASS_NAMES", ["cat"])
    with pytest.raises(ValueError, match=r"'traffic light' has no vectors.*CLASS_NAMES"):
        train_steps(cfg, build_tuned_model(cfg), detection_inputs())


def test_a_policy_without_names_is_an_error(base: str) -> None:
    with pytest.raises(ValueError, match=r"class_prompt has no class names.*DATASETS\.TRAIN"):
        build_tuned_model(tuning.tuned_cfg(base, "class_prompt", "DATASETS.TRAIN", ()))


def test_a_delta_detects_its_names_in_another_order_and_beside_others(
    base: str, tmp_path: Path
) -> None:
    """The names of the training set are stored in the delta."""
    MetadataCatalog.get("class_prompt_train").set(thing_classes=["cat", "traffic light"])
    cfg = tuning.tuned_cfg(base, "class_prompt", "DATASETS.TRAIN", ("class_prompt_train",))
    trained = build_tuned_model_and_delta(cfg, tmp_path / "delta.pth")
    loaded_cfg = tuning.tuned_cfg(base, "", "MODEL.TUNING.DELTA", str(tmp_path / "delta.pth"))
    loaded = build_tuned_model(loaded_cfg).eval()
    assert list(loaded.language_backbone.row_of) == ["cat", "traffic light"]
    expected = added_by_name(trained, ["cat", "traffic light"])
    assert expected["cat"].any()
    for name, added in added_by_name(loaded, ["zebra", "traffic light", "cat"]).items():
        if name != "zebra":
            torch.testing.assert_close(added, expected[name], atol=1e-5, rtol=1e-5)
    MetadataCatalog.pop("class_prompt_train")


def build_tuned_model_and_delta(cfg: CfgNode, path: Path) -> nn.Module:
    from detectron2.modeling import build_model

    trained = build_model(cfg)
    state = apply_tuning(cfg, trained)
    train_steps(cfg, trained, detection_inputs())
    assert state is not None
    save_delta(trained, state, path)
    return trained.eval()


def test_chunks_of_a_class_list_have_the_vectors_of_their_names(base: str) -> None:
    """The scores of names in prompts of one name each are those of each name alone."""
    opts = ("MODEL.PROMPT.MAX_CLASSES", 1, "MODEL.GROUNDING.SCORE_THRESH", 0.0)
    model = build_tuned_model(tuned_cfg(base, *opts)).eval()
    nn.init.normal_(model.language_backbone.table)
    x = {"image": random_image()}
    with torch.no_grad():
        together = model([x | {"classes": NAMES}])[0]["instances"]
        alone = [model([x | {"classes": [name]}])[0]["instances"] for name in NAMES]
    for label, instances in enumerate(alone):
        found = together[together.pred_classes == label]
        assert len(found) > 0
        torch.testing.assert_close(found.scores, instances.scores)
