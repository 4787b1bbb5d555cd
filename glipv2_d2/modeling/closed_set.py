"""The class names of a detector that was trained with a closed list of classes."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode

from glipv2_d2.dataset_classes import class_names_of
from glipv2_d2.modeling.class_evidence import ClassEvidence, build_class_evidence
from glipv2_d2.modeling.language import LanguageBackbone
from glipv2_d2.modeling.language.text_embedder import TextEmbedder
from glipv2_d2.text.tokenizer import Tokenizer


def build_closed_set_evidence(
    cfg: CfgNode, language_backbone: LanguageBackbone, tokenizer: Tokenizer
) -> ClassEvidence | None:
    """Build the evidence of the classes of ``cfg.MODEL.CLOSED_SET``; None where it has none.

    Raises:
        ValueError: the names are set twice, or the language backbone may change after they are
            embedded.
    """
    closed_set, language = cfg.MODEL.CLOSED_SET, cfg.MODEL.LANGUAGE_BACKBONE
    names = closed_set_names(closed_set.CLASS_NAMES, closed_set.DATASET)
    if not names:
        return None
    if not (language.FREEZE and language.WEIGHTS):
        raise ValueError(
            "the class names of MODEL.CLOSED_SET are embedded when the model is built: set "
            f"MODEL.LANGUAGE_BACKBONE.FREEZE, {language.FREEZE}, to True and WEIGHTS, "
            f"{language.WEIGHTS!r}, to those of a text encoder"
        )
    return build_class_evidence(
        names,
        TextEmbedder(language_backbone, tokenizer),
        min_similarity=closed_set.MIN_SIMILARITY,
        max_similarity=closed_set.MAX_SIMILARITY,
    )


def closed_set_names(class_names: Sequence[str], dataset: str) -> list[str]:
    """The class names of a detector: ``class_names``, or those of a dataset's metadata.

    Raises:
        ValueError: both are set, or the dataset has no class names.
    """
    if class_names and dataset:
        raise ValueError(
            f"MODEL.CLOSED_SET has {len(class_names)} CLASS_NAMES and the DATASET {dataset!r}: "
            "leave one empty"
        )
    return list(class_names_of(dataset) if dataset else class_names)


def num_closed_classes(class_names: Sequence[str], dataset: str) -> int:
    """The number of class names of a detector, see :func:`closed_set_names`.

    Raises:
        ValueError: there are none.
    """
    names = closed_set_names(class_names, dataset)
    if not names:
        raise ValueError(
            "MODEL.CLOSED_SET has no class names: set CLASS_NAMES or DATASET to those of the "
            "detector's weights"
        )
    return len(names)
