"""Models by name: configs, and weights, which are shipped or on the Hugging Face hub."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors

from glipv2_d2.config import NAMED_CONFIGS, named_config_file
from glipv2_d2.projects import load_projects

GLIP_REPOSITORY = "GLIPModel/GLIP"

# Model name -> file of the repository.
GLIP_WEIGHTS = {
    "glip-t": "glip_tiny_model_o365_goldg_cc_sbu.pth",
    "glip-t-a": "glip_a_tiny_o365.pth",
    "glip-t-b": "glip_tiny_model_o365.pth",
    "glip-t-c": "glip_tiny_model_o365_goldg.pth",
    "glip-l": "glip_large_model.pth",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelFiles:
    """Local files of a model.

    Attributes:
        config: a YAML file, or a file of weights with a config.
        weights: None if none were published; of a fine-tuned model, those of its base.
    """

    config: Path
    weights: Path | None


def is_model_name(text: str) -> bool:
    """Whether ``text`` is written like a model name, known or not, and not like a file."""
    path = Path(text)
    return len(path.parts) == 1 and path.suffix not in (".yaml", ".yml") and not path.is_file()


def model_files(name: str, revision: str | None = None) -> ModelFiles:
    """The files of a named model; GLIP's weights are downloaded once to the hub's cache.

    Args:
        name: as in :func:`~glipv2_d2.config.get_config`.
        revision: commit, branch or tag of the hub's repository; default: its main branch.

    Raises:
        FileNotFoundError: the weights are neither in the cache nor can they be downloaded.
        ValueError: the name is unknown, or ``revision`` is given for a model that is not on the
            hub.
    """
    config = named_config_file(name)
    if name in GLIP_WEIGHTS:
        return ModelFiles(config, download(GLIP_REPOSITORY, GLIP_WEIGHTS[name], revision))
    if revision is not None:
        raise ValueError(f"the weights of {name!r} are not on the hub: revision={revision!r}")
    if name in NAMED_CONFIGS:
        return ModelFiles(config, None)
    shipped = {key: model for project in load_projects() for key, model in project.models.items()}
    return ModelFiles(config, shipped[name].weights)


def download(repository: str, file: str, revision: str | None = None) -> Path:
    """A file of the Hugging Face hub, from its cache or else downloaded.

    Environment variables of huggingface_hub apply: ``HF_HOME``, ``HF_HUB_OFFLINE``,
    ``HF_ENDPOINT``, ``HF_TOKEN``.

    Raises:
        FileNotFoundError: the file is not in the cache and cannot be downloaded.
        ValueError: ``repository`` is not the name of one.
    """
    what = f"{file!r} of {repository!r}" + (f" at {revision!r}" if revision else "")
    try:
        if not _is_cached(repository, file, revision):
            _check_reachable(repository, file, revision)
        return Path(huggingface_hub.hf_hub_download(repository, file, revision=revision))
    except errors.HFValidationError as error:
        raise ValueError(f"{repository!r} is not a repository of the hub: {error}") from error
    except (errors.LocalEntryNotFoundError, _UnreachableError) as error:
        raise FileNotFoundError(f"{what} is not in the hub's cache, and {_why(error)}") from error
    except errors.GatedRepoError as error:
        raise FileNotFoundError(
            f"{what} needs an agreement to its terms, and a login: hf auth login"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{what}: the hub has no such repository, or it is private (hf auth login)"
        ) from error
    except (errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        missing = "file" if isinstance(error, errors.EntryNotFoundError) else "revision"
        raise FileNotFoundError(f"{what}: the repository has no such {missing}") from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise FileNotFoundError(f"{what} cannot be downloaded: {error}") from error


class _UnreachableError(Exception):
    """The hub cannot be reached; the cause has the reason."""


def _is_cached(repository: str, file: str, revision: str | None) -> bool:
    return isinstance(
        huggingface_hub.try_to_load_from_cache(repository, file, revision=revision), str
    )


def _check_reachable(repository: str, file: str, revision: str | None) -> None:
    """Query the hub once: without a network, ``hf_hub_download`` tries again for half a minute."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return
    try:
        huggingface_hub.get_hf_file_metadata(
            huggingface_hub.hf_hub_url(repository, file, revision=revision)
        )
    # What the hub answers is an error of the download, which also knows when to try again.
    except errors.HfHubHTTPError:
        return
    # The errors of connections belong to the HTTP library of the version of huggingface_hub.
    except Exception as error:
        raise _UnreachableError(str(error)) from error


def _why(error: Exception) -> str:
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids to download it: unset it, or pass a local file as weights"
    endpoint = huggingface_hub.constants.ENDPOINT
    cause = str(error.__cause__ or error).splitlines()[0]
    return (
        f"{endpoint} cannot be reached ({cause}): check the network; or set HF_ENDPOINT to a "
        "mirror; or download the file elsewhere and pass it as weights (--weights FILE)"
    )
