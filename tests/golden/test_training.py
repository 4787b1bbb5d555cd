"""Targets, losses and the gradient of every parameter equal the reference's."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from helpers import tolerances
from helpers.golden import Golden, golden_directories, load_golden
from helpers.reference_losses import ReferenceInterImage

from glipv2_d2.checkpoint import to_glip
from glipv2_d2.layers.box_coder import to_exclusive
from glipv2_d2.modeling import GLIPv2
from glipv2_d2.modeling.heads.masked_language import NO_TARGET, MaskedLanguageHead
from glipv2_d2.structures import DenseTargets, TokenBatch
from glipv2_d2.text.prompts import caption_prompt
from glipv2_d2.text.word_masking import WordMasker

GOLDENS = [load_golden(directory) for directory in golden_directories()]
LOSS_NAMES = {
    "loss_reg": "loss_box",
    "loss_centerness": "loss_centerness",
    "loss_dot_product_token": "loss_token",
    "mlm_loss": "loss_mlm",
    "loss_shallow_contrastive": "loss_inter_image",
}
# Names of the reference's masked language and inter-image heads after "module.rpn.".
MASKED_LANGUAGE_NAMES = {
    "head.mlm_head.transform.dense.weight": "dense.weight",
    "head.mlm_head.transform.dense.bias": "dense.bias",
    "head.mlm_head.transform.LayerNorm.weight": "norm.weight",
    "head.mlm_head.transform.LayerNorm.bias": "norm.bias",
    "head.mlm_head.decoder.weight": "decoder.weight",
    "head.mlm_head.bias": "decoder.bias",
}
INTER_IMAGE_PREFIX = "loss_evaluator."


def has_files(golden: Golden, name: str) -> bool:
    """Whether the weights of the masked language and inter-image heads exist, if needed."""
    return not is_extra(golden, name) or (golden.directory / "model_extra.pth").is_file()


def is_extra(golden: Golden, name: str) -> bool:
    return bool(golden.meta["train"][name]["extra"])


TRAINING_CASES = [
    pytest.param(golden, name, id=f"{golden}-{name}")
    for golden in GOLDENS
    for name in golden.meta["train"]
    if has_files(golden, name)
]
ASSIGNED_IMAGES = [
    pytest.param(golden, name, i, id=f"{golden}-{name}-{i}")
    for golden in GOLDENS
    for name, case in golden.meta["train"].items()
    for i in range(len(case["images"]))
]


def training_inputs(golden: Golden, case: dict[str, Any]) -> list[dict[str, Any]]:
    """The images of a case, with prompts whose labels are the ground truths in order."""
    images = golden.inputs("two")
    inputs = []
    for i, (image, caption) in enumerate(zip(case["images"], case["captions"], strict=True)):
        boxes = to_exclusive(torch.tensor(case["gt"][i]["boxes"]))
        instances = Instances(tuple(images[image]["image"].shape[1:]))
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.arange(len(boxes))
        spans = case["tokens_positive"][i]
        inputs.append(
            {
                "image": images[image]["image"],
                "prompt": caption_prompt(caption, spans),
                "instances": instances,
            }
        )
    return inputs


class StoredMasking:
    """Masks the tokens that the reference masked, with the targets that its loss uses."""

    def __init__(self, golden: Golden, name: str) -> None:
        arrays, self.case = golden.train_arrays, golden.meta["train"][name]
        self.input_ids = torch.from_numpy(arrays[f"{name}/lang/in_ids"])
        self.greenlight = torch.from_numpy(arrays[f"{name}/greenlight_map"])

    def __call__(self, tokens: TokenBatch, _gt_instances: Any) -> tuple[torch.Tensor, torch.Tensor]:
        length = tokens.input_ids.shape[1]
        masked_ids = self.input_ids[:, :length]
        # Only two of the chosen tokens are unchanged, both outside the loss.
        is_target = masked_ids != tokens.input_ids
        if self.case["greenlight_passed"]:
            is_target &= self.greenlight[:, :length] == 1
        targets = tokens.input_ids.masked_fill(~is_target, NO_TARGET)
        return masked_ids, targets


def build_model(golden: Golden, name: str) -> GLIPv2:
    """In training mode without dropout, with the loss heads of the case."""
    model = golden.build_model().train()
    model.language_backbone.eval()  # the reference had no dropout in BERT either
    if not is_extra(golden, name):
        return model
    case = golden.meta["train"][name]
    extra = torch.load(golden.directory / "model_extra.pth", weights_only=True)
    extra = {key.removeprefix("module.rpn."): value for key, value in extra["model"].items()}
    model.loss_heads["inter_image"] = ReferenceInterImage(
        {
            key.removeprefix(INTER_IMAGE_PREFIX): value
            for key, value in extra.items()
            if key.startswith(INTER_IMAGE_PREFIX)
        },
        classes=[gt["labels"] for gt in case["gt"]],
        padding_anchors=case["random_sample_calls"] or None,
    )
    vocab_size, language_dim = extra["head.mlm_head.decoder.weight"].shape
    masked_language = MaskedLanguageHead(
        language_dim=language_dim,
        masker=WordMasker(mask_token_id=103, vocab_size=vocab_size, prob=0.15),
        decoder=torch.nn.Linear(language_dim, vocab_size),
        weight=1.0,
    )
    masked_language.load_state_dict(
        {ours: extra[theirs] for theirs, ours in MASKED_LANGUAGE_NAMES.items()}
    )
    masked_language.mask = StoredMasking(golden, name)
    model.loss_heads["masked_language"] = masked_language
    return model


@functools.cache
def train_step(golden: Golden, name: str) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Losses, and gradients by the reference's names."""
    model = build_model(golden, name)
    losses = model(training_inputs(golden, golden.meta["train"][name]))
    sum(losses.values()).backward()
    gradients = {
        key: torch.zeros_like(p) if p.grad is None else p.grad
        for key, p in model.named_parameters()
    }
    buffers = {key: value for key, value in model.state_dict().items() if key not in gradients}
    of_loss_heads = {
        f"module.rpn.{theirs}": gradients.pop(ours) for ours, theirs in extra_names(model).items()
    }
    by_glip_name = to_glip({**buffers, **gradients}) | of_loss_heads
    return {k: v.item() for k, v in losses.items()}, by_glip_name


def extra_names(model: GLIPv2) -> dict[str, str]:
    """Names of the parameters that GLIP's released layout lacks -> the reference's."""
    if not model.loss_heads:
        return {}
    names = {f"loss_heads.masked_language.{x}": k for k, x in MASKED_LANGUAGE_NAMES.items()}
    for name, _ in model.loss_heads["inter_image"].named_parameters():
        names[f"loss_heads.inter_image.{name}"] = INTER_IMAGE_PREFIX + name
    return names


@functools.cache
def label_anchors(golden: Golden, name: str) -> DenseTargets:
    model, case = golden.model, golden.meta["train"][name]
    inputs = training_inputs(golden, case)
    tokens = golden.tokens([x["prompt"] for x in inputs])
    anchors = golden.stages("one")["predictions"].anchors_per_level
    return model.proposal_generator.match_anchors(anchors, tokens, [x["instances"] for x in inputs])


@pytest.mark.parametrize(("golden", "name"), TRAINING_CASES)
def test_losses(golden: Golden, name: str) -> None:
    ours, _ = train_step(golden, name)
    reference = {
        LOSS_NAMES[loss]: value
        for loss, value in golden.meta["train"][name]["losses"].items()
        if loss in LOSS_NAMES
    }
    assert ours == pytest.approx(reference, rel=tolerances.LOSSES_RELATIVE)


@pytest.mark.parametrize(("golden", "name"), TRAINING_CASES)
def test_gradient_norm_of_every_parameter(golden: Golden, name: str) -> None:
    _, gradients = train_step(golden, name)
    reference = golden.meta["train"][name]["grad_norm"]
    ours = {key: gradients[f"module.{key}"].norm().item() for key in reference}
    for key, norm in reference.items():
        floor = tolerances.GRAD_NORMS_FLOOR
        if key.endswith(".key.bias"):
            # Zero by algebra: a softmax is invariant to a shift of all its logits.
            weight = key.removesuffix("bias") + "weight"
            floor = max(floor, tolerances.KEY_BIAS_RELATIVE * reference[weight])
        expected = pytest.approx(norm, rel=tolerances.GRAD_NORMS_RELATIVE, abs=floor)
        assert ours[key] == expected, key


@pytest.mark.parametrize(("golden", "name"), TRAINING_CASES)
def test_stored_gradients(golden: Golden, name: str) -> None:
    _, gradients = train_step(golden, name)
    prefix = f"{name}/grad/"
    stored = {k.removeprefix(prefix): v for k, v in golden.train_arrays.items() if prefix in k}
    for key, reference in stored.items():
        floor = tolerances.GRAD_NORMS_RELATIVE * np.linalg.norm(reference)
        np.testing.assert_allclose(
            gradients[f"module.{key}"].numpy(), reference, rtol=0, atol=floor, err_msg=key
        )


@pytest.mark.parametrize(("golden", "name", "image"), ASSIGNED_IMAGES)
def test_positive_anchors_are_the_references(golden: Golden, name: str, image: int) -> None:
    ours = label_anchors(golden, name).matched_idxs[image] >= 0
    reference = golden.train_arrays[f"{name}/assign{image}/labels"] > 0
    np.testing.assert_array_equal(ours.numpy(), reference)


@pytest.mark.parametrize(("golden", "name", "image"), ASSIGNED_IMAGES)
def test_box_targets_are_the_references(golden: Golden, name: str, image: int) -> None:
    targets = label_anchors(golden, name)
    ours = targets.box_deltas[image][targets.matched_idxs[image] >= 0]
    reference = golden.train_arrays[f"{name}/assign{image}/reg_targets_pos"]
    np.testing.assert_allclose(ours.numpy(), reference, atol=tolerances.BOX_DELTAS, rtol=0)


@pytest.mark.parametrize(("golden", "name", "image"), ASSIGNED_IMAGES)
def test_token_targets_are_the_references(golden: Golden, name: str, image: int) -> None:
    token_targets = label_anchors(golden, name).token_targets[image]
    length = token_targets.shape[1]
    reference = golden.train_arrays[f"{name}/assign{image}/token_labels_argwhere"]
    # The reference marks background on its last token, which is padding here.
    reference = reference[reference[:, 1] < length]
    assert token_targets.nonzero().tolist() == reference.tolist()


EXTRA_CASES = [case for case in TRAINING_CASES if is_extra(*case.values)]


@pytest.mark.parametrize(("golden", "name"), EXTRA_CASES)
def test_the_reference_drops_the_anchors_of_the_first_ground_truth(
    golden: Golden, name: str
) -> None:
    """A defect of its inter-image loss that ours does not have; the comparison reproduces it."""
    matched_idxs = label_anchors(golden, name).matched_idxs
    positive = [matched.gt(0).nonzero().squeeze(1).tolist() for matched in matched_idxs]
    assert positive == golden.meta["train"][name]["positive_index"]
    assert [matched.ge(0).sum().item() for matched in matched_idxs] == (
        golden.meta["train"][name]["n_pos"]
    )
