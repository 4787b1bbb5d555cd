"""Detection in overlapping tiles of a large image, with supervision's slicer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import supervision

# Of a tile's side: an object up to this size is whole in one tile.
OVERLAP = 0.2


def import_supervision() -> Any:
    """The package supervision.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise ValueError(
            "this needs the package supervision: pip install 'glipv2_d2[supervision]'"
        ) from error
    return supervision


def detect_in_tiles(
    detect: Callable[[Sequence[np.ndarray]], list[supervision.Detections]],
    image: np.ndarray,
    tile_size: int,
    *,
    overlap_threshold: float,
    batch_size: int,
) -> supervision.Detections:
    """Detect in tiles and merge: of boxes of one class, the best suppresses those that overlap it.

    Args:
        detect: images -> their detections.
        image: (H, W, 3).
        tile_size: width and height of a tile, in pixels.
        overlap_threshold: from this intersection, as a share of the smaller box, two boxes
            overlap: at the border of a tile only a part of an object is in it.
        batch_size: tiles per call of ``detect``.

    Raises:
        ValueError: the size is too small, or the package supervision is missing.
    """
    if tile_size < 32:
        raise ValueError(f"tiles={tile_size}: a tile has at least 32 pixels")
    supervision = import_supervision()

    def callback(tiles: Any) -> Any:
        return detect(tiles) if isinstance(tiles, list) else detect([tiles])[0]

    slicer = supervision.InferenceSlicer(
        callback,
        slice_wh=tile_size,
        overlap_wh=round(OVERLAP * tile_size),
        overlap_filter=supervision.OverlapFilter.NON_MAX_SUPPRESSION,
        overlap_metric=supervision.OverlapMetric.IOS,
        iou_threshold=overlap_threshold,
        batch_size=batch_size,
    )
    with warnings.catch_warnings():
        # A box may reach a fraction of a pixel beyond its tile.
        warnings.filterwarnings("ignore", message="Detections returned by the callback")
        return slicer(image)
