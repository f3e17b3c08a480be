"""Reading priors: a shipped one, a folder or hub model in diffusers' layout, or an improved-diffusion file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from diffusers import UNet2DModel
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError

from ufr_edge.downloads import is_offline
from ufr_edge.errors import BackendUnavailableError, InputFileError, ModelFileError
from ufr_edge.files import read_json, sha256_file
from ufr_edge.priors.improved_diffusion import load_improved_diffusion
from ufr_edge.priors.model import DiffusionPrior
from ufr_edge.priors.schedule import BASE_STEPS, BETA_END, BETA_START
from ufr_edge.restorers.checkpoints import why_unreadable
from ufr_edge.restorers.registry import KNOWN_MODELS, find_known, how_to_mend, recognise, require_licence
from ufr_edge.weights import WEIGHTS_DIR, find_weights

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_PICKLED = "diffusion_pytorch_model.bin"
_FILES = (".pth", ".pt", ".ckpt", ".safetensors")
_CARD = "README.md"  # the hub's model card, also beside a prior that was fetched by hand
_CARD_LICENCE = re.compile(r"^(license|license_name):[ \t]*(\S.*?)?[ \t]*$(?:\n[ \t]*-[ \t]*(\S.*?)[ \t]*$)?", re.MULTILINE)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# What the sampler takes for granted; a scheduler that leaves a key out gets diffusers' own default.
_SCHEDULE = {
    "num_train_timesteps": (BASE_STEPS, 1000),
    "beta_start": (BETA_START, 1e-4),
    "beta_end": (BETA_END, 2e-2),
    "beta_schedule": ("linear", "linear"),
    "trained_betas": (None, None),
    "rescale_betas_zero_snr": (False, False),
}


def load_prior(source: str | Path) -> DiffusionPrior:
    """Load a prior: float32 (fp16 weights are widened), in eval mode, on the CPU.

    `source`: a folder holding `unet/` and `scheduler/`, or a bare UNet2DModel (config.json and weights,
    taken as predicting epsilon under the paper's schedule); a shipped name ("prior-256"); a known one
    ("iddpm-ffhq-512", see `registry`); a hub id ("owner/name"; HF_HUB_OFFLINE and UFR_OFFLINE are honoured);
    or the original file of an improved-diffusion UNet at 512 px. Only tensors are read of any file.

    Raises InputFileError (no such folder, name or model), BackendUnavailableError (the hub cannot be
    reached), ModelFileError (damaged, another network, or trained on another schedule), ConfigError (a known
    model's restricted licence has not been accepted).
    """
    folder = find_prior(source)
    if str(source) in KNOWN_MODELS:
        require_licence(KNOWN_MODELS[str(source)], accept=False)
    if folder.is_file():
        return load_improved_diffusion(folder)
    unet_folder = folder / "unet" if (folder / "unet").is_dir() else folder
    prediction = read_schedule(folder)
    _check_is_unet(unet_folder)
    prior = DiffusionPrior(_read_unet(unet_folder), prediction_type=prediction)
    _check_outputs(prior, unet_folder)
    return prior.eval()


def prior_licence(source: str | Path, *, accept: bool = False) -> str | None:
    """Return a prior's licence in words: of a known one or its file, of a shipped one's card, or of the model card
    (README.md) that lies in the folder or came from the hub; None where none of them states it.

    With `accept`, a restricted one is accepted for this cache folder; without it, and as long as it is not,
    ConfigError is raised. Errors as in `find_prior` too.
    """
    known = KNOWN_MODELS.get(str(source)) or recognise(Path(source))
    if known is None or known.kind != "prior":
        return _stated_licence(find_prior(source))
    find_prior(source)  # first what is missing, then what is to be accepted, as for restorers
    require_licence(known, accept=accept)
    return f"code {known.code_licence}; weights {known.weights_licence}"


def is_shipped(source: str | Path) -> bool:
    """Whether a prior is one of those that this package ships. Errors as in `find_prior`."""
    return find_prior(source).parent == WEIGHTS_DIR


def _stated_licence(path: Path) -> str | None:
    """What the card of a shipped prior states, or the front matter of a model card in its folder."""
    if path.parent == WEIGHTS_DIR and (path / "card.json").is_file():
        card = find_weights(path.name).card
        return f"code {card['code_licence']}; weights {card['weights_licence']}"
    if not (path / _CARD).is_file():
        return None
    parts = (path / _CARD).read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return None
    found = {key: (own or listed or "").strip("'\" ") for key, own, listed in _CARD_LICENCE.findall(parts[1])}
    words = found.get("license_name") or found.get("license")
    return f"weights {words}, as its model card" if words else None


def find_prior(source: str | Path) -> Path:
    """Resolve a folder, a file, a shipped or known name or a hub id to a local path. Errors as in `load_prior`."""
    path = Path(source)
    if path.is_dir() or (path.is_file() and path.suffix in _FILES):
        return path
    if isinstance(source, str) and (WEIGHTS_DIR / source / "unet").is_dir():
        return WEIGHTS_DIR / source
    if (known := find_known(str(source), kind="prior")) is not None:
        return known
    if isinstance(source, str) and _HUB_ID.fullmatch(source) and not path.exists():
        return _fetch(source)
    names = ", ".join(sorted(p.parent.name for p in WEIGHTS_DIR.glob("*/unet"))) or "none"
    known_names = ", ".join(name for name, model in KNOWN_MODELS.items() if model.kind == "prior")
    msg = (
        f"{source} is no prior: give a folder in diffusers' layout, a hub id owner/name, an improved-diffusion file "
        f"({', '.join(_FILES)}), a known name ({known_names}), or a shipped name ({names})."
    )
    raise InputFileError(msg)


def prior_digest(source: str | Path) -> str:
    """Return the SHA-256 over a prior's weight files, in the order of their names. Errors as in `load_prior`."""
    path = find_prior(source)
    if path.is_file():
        return sha256_file(path)
    files = sorted(path.rglob("*.safetensors")) or sorted(path.rglob(_PICKLED))
    return hashlib.sha256("".join(sha256_file(path) for path in files).encode()).hexdigest()


def read_schedule(folder: Path) -> str:
    """Return the prediction type of a prior folder, having checked its schedule against the paper's.

    A folder without a scheduler counts as epsilon. Raises ModelFileError naming the field that differs.
    """
    found = [p for p in (folder / "scheduler", folder) if (p / "scheduler_config.json").is_file()]
    if not found:
        return "epsilon"
    path = found[0] / "scheduler_config.json"
    config = _read_config(path)
    for key, (needed, default) in _SCHEDULE.items():
        value = config.get(key, default)
        if value != needed:
            msg = f"{path}: {key} is {value!r}; the sampler needs {needed!r}. This prior cannot be used."
            raise ModelFileError(msg)
    if config.get("variance_type") == "learned":
        msg = f"{path}: variance_type 'learned' is not supported; the paper's is 'learned_range'."
        raise ModelFileError(msg)
    return str(config.get("prediction_type", "epsilon"))


def _check_is_unet(folder: Path) -> None:
    path = folder / "config.json"
    if not path.is_file():
        msg = f"{folder} holds no config.json: it is no model folder in diffusers' layout."
        raise InputFileError(msg)
    name = _read_config(path).get("_class_name")
    if name != "UNet2DModel":
        msg = f"{path} describes a {name}, not a UNet2DModel. Give an unconditional pixel-space prior."
        raise ModelFileError(msg)
    if not _has_safetensors(folder) and not (folder / _PICKLED).is_file():
        msg = f"{folder} holds neither {_WEIGHTS} nor {_PICKLED}: it has no weights that are read."
        raise InputFileError(msg)


def _has_safetensors(folder: Path) -> bool:
    return any(folder.glob("diffusion_pytorch_model*.safetensors*"))


def _read_unet(folder: Path) -> UNet2DModel:
    safe = _has_safetensors(folder)  # else the pickled file, of which diffusers unpickles tensors only
    variant = "fp16" if safe and not (folder / _WEIGHTS).exists() else None
    with _file_errors(folder):
        # low_cpu_mem_usage would leave tensors missing from the file on the meta device.
        unet, info = UNet2DModel.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=safe,
            variant=variant,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *map(str, info["mismatched_keys"])]
    if wrong:
        msg = f"{folder} says it is a UNet2DModel but {len(wrong)} tensors do not fit, such as {wrong[0]}."
        raise ModelFileError(msg)
    return unet


def _check_outputs(prior: DiffusionPrior, folder: Path) -> None:
    outputs = prior.unet.config["out_channels"]
    if outputs not in (prior.channels, 2 * prior.channels):
        msg = f"{folder}: {outputs} output channels for {prior.channels} of one image; need 1x or 2x."
        raise ModelFileError(msg)
    if prior.unet.class_embedding is not None:
        msg = f"{folder} holds a class-conditional network; the prior must be unconditional."
        raise ModelFileError(msg)


def _fetch(hub_id: str) -> Path:
    wanted = [_CARD, *(f"{part}{name}" for part in ("", "unet/", "scheduler/") for name in ("*.json", "*.safetensors"))]
    pickled = [f"{part}{_PICKLED}" for part in ("", "unet/")]
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=wanted, local_files_only=is_offline()))
        if any(folder.rglob("*.safetensors")):
            return folder
        return Path(snapshot_download(hub_id, allow_patterns=[*wanted, *pickled], local_files_only=is_offline()))
    except (RepositoryNotFoundError, HFValidationError) as exc:
        msg = (
            f"{hub_id} is no folder here, and no model of the hub that can be read. Check the name or log in."
        )
        raise InputFileError(msg) from exc
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, ConnectionError) as exc:
        msg = (
            f"{hub_id} is no folder here, and the Hugging Face hub cannot be reached (or HF_HUB_OFFLINE or UFR_OFFLINE is set)."
            f" Fetch it where there is a network (hf download {hub_id}) and give that folder."
        )
        raise BackendUnavailableError(msg) from exc


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        config = read_json(path)
    except InputFileError as exc:
        raise ModelFileError(str(exc)) from exc
    if not isinstance(config, dict):
        msg = f"{path} is no diffusers config: a JSON object is expected."
        raise ModelFileError(msg)
    return config


@contextmanager
def _file_errors(folder: Path) -> Iterator[None]:
    """Turn what diffusers, safetensors and torch raise on a bad file into ModelFileError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError, UnpicklingError) as exc:
        # torch lists one misfit a line under a heading; the first tells enough.
        lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
        reason = " ".join(lines[:2])[:300] or type(exc).__name__
        if "weights_only" in str(exc) and (folder / _PICKLED).is_file():  # torch would have it unpickled all the same
            reason = why_unreadable(folder / _PICKLED, RuntimeError(str(exc)))
        mend = how_to_mend(folder) or "Fetch or train it again."
        msg = f"{folder} is damaged or holds another network ({reason}). {mend}"
        raise ModelFileError(msg) from exc
