"""Things without names, found in a tiny model with random weights."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers.models import random_image, tiny_cfg, tiny_model
from torch import Tensor

from glipv2_d2.modeling import GLIPv2
from glipv2_d2.modeling.regions import RegionFinder, build_region_finder
from glipv2_d2.structures import Regions

NUM_REGIONS = 6


@pytest.fixture(scope="module")
def model() -> GLIPv2:
    return tiny_model()


def finder_for(model: GLIPv2, *opts: object) -> RegionFinder:
    cfg = tiny_cfg("MODEL.REGION_READER.NUM_REGIONS", NUM_REGIONS, *opts)
    return build_region_finder(cfg, model.backbone.output_shape())


def find(model: GLIPv2, images: list[Tensor], *opts: object) -> tuple[Regions, dict[str, Tensor]]:
    """The regions, and the maps that they are cut from."""
    batch = model.preprocess_image([{"image": image} for image in images])
    features = model.backbone(batch.tensor)
    return finder_for(model, *opts)(model, batch, features), features


def coordinates(level: Tensor) -> Tensor:
    """(1, 2, H, W), x and y in shares of the map."""
    height, width = level.shape[-2:]
    x = (torch.arange(width) + 0.5).expand(height, width) / width
    y = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    return torch.stack([x, y])[None]


def test_every_image_has_as_many_regions_inside_of_it(model: GLIPv2) -> None:
    regions, features = find(model, [random_image(128, 160), random_image(96, 128, seed=1)])
    channels = next(iter(features.values())).shape[1]
    assert regions.features.shape == regions.fused_features.shape == (2, NUM_REGIONS, channels)
    centers, sizes, scores = regions.places.split((2, 2, 1), dim=-1)
    assert (sizes > 0).all() and (scores > 0).all()
    assert (centers - sizes / 2 >= -1e-5).all() and (centers + sizes / 2 <= 1 + 1e-5).all()
    assert (scores.diff(dim=1) <= 0).all()


def test_a_region_is_cut_out_of_a_map_of_its_place(model: GLIPv2) -> None:
    """With maps that say their own x and y everywhere, the mean of a box is its centre."""
    batch = model.preprocess_image([{"image": random_image(256, 256)}])
    features = model.backbone(batch.tensor)
    maps = {name: coordinates(level) for name, level in features.items()}
    searcher = SimpleNamespace(
        language_backbone=model.language_backbone,
        fused_head=model.fused_head,
        proposal_generator=model.proposal_generator,
        read=lambda _, prompts: model.read(features, prompts),
        judge=model.judge,
    )
    found = finder_for(model)(searcher, batch, maps)
    centers, sizes = found.places[..., :2], found.places[..., 2:4]
    # ROIAlign reads beyond the middle of the first and the last pixel what stands there.
    is_inside = ((centers - 0.5).abs() + sizes / 2 < 0.45).all(dim=-1)
    assert is_inside.any()
    torch.testing.assert_close(found.features[is_inside], centers[is_inside], atol=0.01, rtol=0)


def test_no_image_depends_on_the_others_of_its_batch(model: GLIPv2) -> None:
    images = [random_image(seed=seed) for seed in (0, 1)]
    together, _ = find(model, images)
    for row, image in enumerate(images):
        alone, _ = find(model, [image])
        torch.testing.assert_close(together.images([row]), alone, atol=1e-4, rtol=1e-4)


def test_searching_is_the_same_in_training_and_leaves_the_mode_alone(model: GLIPv2) -> None:
    expected, _ = find(model, [random_image()])
    drop = tiny_model("MODEL.FUSED_HEAD.FUSION_DROPOUT", 0.5, "MODEL.FPN.DROP_BLOCK_PROB", 0.0)
    drop.load_state_dict(model.state_dict())
    drop.train()
    drop.backbone.eval()
    were_training = [part for part in drop.modules() if part.training]
    found, _ = find(drop, [random_image()])
    torch.testing.assert_close(found, expected)
    assert [part for part in drop.modules() if part.training] == were_training


def test_maps_learn_from_regions_and_the_search_learns_nothing() -> None:
    model = tiny_model().train()
    regions, _ = find(model, [random_image()])
    (regions.features.sum() + regions.fused_features.sum() + regions.places.sum()).backward()
    learned = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learned and all(name.startswith("backbone.") for name in learned)


def test_an_image_with_fewer_things_has_zeros_behind_them(model: GLIPv2) -> None:
    regions, _ = find(model, [random_image(32, 32)], "MODEL.REGION_READER.NMS_THRESH", 0.0)
    is_empty = (regions.places == 0).all(dim=-1)[0]
    assert 0 < int(is_empty.sum()) < NUM_REGIONS
    assert is_empty.tolist() == sorted(is_empty.tolist())
    assert (regions.features[0, is_empty] == 0).all()


def test_a_search_for_nothing_is_refused(model: GLIPv2) -> None:
    with pytest.raises(ValueError, match=r"MODEL\.REGION_READER\.PROMPT is ' '"):
        finder_for(model, "MODEL.REGION_READER.PROMPT", " ")
