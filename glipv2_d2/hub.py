"""Models as folders, locally and on the Hugging Face hub: config, safetensors and a model card."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import yaml
from detectron2.config import CfgNode
from huggingface_hub import HfApi, ModelCard, ModelCardData, errors
from torch import nn

from glipv2_d2.engine.finetune.tuning import read_delta
from glipv2_d2.file_writing import atomic_open, atomic_write
from glipv2_d2.model_folder import (
    CONFIG_FILE,
    CONFIG_KEY,
    WEIGHTS_FILE,
    is_stored_model,
    portable_config,
    stored_files,
)
from glipv2_d2.model_zoo import ModelFiles, download

CARD_FILE = "README.md"

# Policies that add modules, without which the weights fit no config.
_WITH_OWN_MODULES = ("lora", "prompt")

CARD = """\
---
{metadata}
---

# {title}

A `{architecture}` of [glipv2_d2](https://pypi.org/project/glipv2_d2): objects by name, in text.

```python
from glipv2_d2 import Predictor

predictor = Predictor.from_pretrained("{repository}")
prediction = predictor.predict("photo.jpg", classes=["cat", "coffee cup"])
print(prediction.labels, prediction.instances.scores, prediction.instances.pred_boxes)
```

| file | contents |
|---|---|
| `{config}` | the config, with all keys |
| `{weights}` | the weights |

What it was trained on, how well it does, what it is not for, and its licence: fill in.
"""


def pretrained_files(source: str | Path, revision: str | None = None) -> ModelFiles:
    """The files of a local folder or file, or of a repository ``user/model`` of the hub.

    Raises:
        FileNotFoundError, ValueError: see :func:`~glipv2_d2.model_zoo.download` and
            :func:`~glipv2_d2.model_folder.stored_files`.
    """
    if not is_stored_model(source):
        config, weights = (download(str(source), f, revision) for f in (CONFIG_FILE, WEIGHTS_FILE))
        return ModelFiles(config, weights)
    if revision is not None:
        raise ValueError(f"'{source}' is on this machine and has no revision {revision!r}")
    return stored_files(Path(source))


def save_model(model: nn.Module, cfg: CfgNode, folder: str | Path, name: str | None = None) -> None:
    """Write weights, config and, unless the folder has one, a model card.

    The config is without datasets, output folder and the paths of the weights: they are those of
    this machine.

    Args:
        name: the repository, for the model card; default: the folder.

    Raises:
        ValueError: see :func:`save_one_file`.
    """
    folder = Path(folder)
    save_one_file(model, cfg, folder / WEIGHTS_FILE)
    atomic_write(folder / CONFIG_FILE, portable_config(cfg).dump())
    if not (folder / CARD_FILE).exists():
        repository = str(folder) if name is None else name
        atomic_write(folder / CARD_FILE, _model_card(repository, cfg))


def save_one_file(model: nn.Module, cfg: CfgNode, path: Path) -> None:
    """Write weights and config as one safetensors file, which ``Predictor(path)`` loads.

    Raises:
        ValueError: the weights were rounded (``TEST.PRECISION``), or do not stand alone (delta of
            LoRA or prompt tuning).
    """
    if cfg.TEST.PRECISION != "fp32":
        raise ValueError(
            f"the weights are rounded to {cfg.TEST.PRECISION} for inference; save those of a "
            "Predictor with opts=['TEST.PRECISION', 'fp32']"
        )
    if cfg.MODEL.TUNING.DELTA:
        check_stands_alone(read_delta(cfg.MODEL.TUNING.DELTA).settings["NAME"])
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        # A copy, because a view would share the memory of another tensor.
        key: value.detach().cpu().contiguous().clone()
        for key, value in model.state_dict().items()
    }
    metadata = {"format": "pt", CONFIG_KEY: portable_config(cfg).dump()}
    with atomic_open(path) as file:
        file.write(safetensors.torch.save(state, metadata=metadata))


def check_stands_alone(policy: str) -> None:
    """
    Raises:
        ValueError: weights trained with the policy fit no config.
    """
    if policy in _WITH_OWN_MODULES:
        raise ValueError(
            f"the policy {policy!r} adds modules to the model, so it cannot be one file: publish "
            "the base and the delta as two files"
        )


def push_folder(
    folder: str | Path,
    repository: str,
    *,
    private: bool | None,
    revision: str | None,
    message: str,
    token: str | None,
) -> str:
    """Upload a folder of :func:`save_model`; return the address of the commit.

    Raises:
        ValueError: the hub refuses it; the message has the hub's reason.
    """
    api = HfApi(token=token)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            commit_message=message,
            allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, CARD_FILE],
        )
    except (errors.HfHubHTTPError, errors.HFValidationError, errors.LocalTokenNotFoundError) as e:
        raise ValueError(f"{repository!r} cannot be written to the hub: {e}") from e
    return str(commit.commit_url)


def _model_card(repository: str, cfg: CfgNode) -> str:
    data = ModelCardData(
        library_name="glipv2_d2",
        pipeline_tag="zero-shot-object-detection",
        tags=["object-detection", "phrase-grounding", "detectron2"],
    )
    text = CARD.format(
        metadata=yaml.safe_dump(data.to_dict(), sort_keys=False).strip(),
        title=repository.rpartition("/")[2],
        architecture=cfg.MODEL.META_ARCHITECTURE,
        repository=repository,
        config=CONFIG_FILE,
        weights=WEIGHTS_FILE,
    )
    return str(ModelCard(text).content)
