"""Known checkpoints of others: where they come from, how to tell them, and under which licence (no torch here).

Sizes and hashes are those that public sources agree on. None means that none was found: such a file is checked by its
length as the server states it, by its kind (`downloads.wrong_kind`), and by strict loading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from ufr_edge.downloads import RemoteFile, fetch, misfit, wrong_kind
from ufr_edge.errors import ConfigError, InputFileError, ModelFileError
from ufr_edge.files import cache_folder, read_json, sha256_file, write_json

_DIFFACE = "https://github.com/zsyOAOA/DifFace"
_S_LAB = "S-Lab License 1.0 (non-commercial)"
_SWINIR_CODE = "MIT (spandrel); SwinIR itself Apache-2.0"
_ACCEPTED = "accepted-licences.json"


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A checkpoint of others that the loaders take.

    `code_licence` is that of the network's code as it runs here, `weights_licence` that of the files. With
    `restricted` the licence forbids commercial use and is accepted once, by name, before anything is fetched or
    loaded. `extra` names the extra of ufr-edge that brings the code. `side`: the face side in pixels.
    """

    name: str
    kind: Literal["restorer", "prior"]
    arch: str
    side: int
    summary: str
    files: tuple[RemoteFile, ...]
    page: str
    paper: str
    code_licence: str
    weights_licence: str
    restricted: bool
    extra: str | None = None

    @property
    def size(self) -> int | None:
        """Bytes of all files, None unless every one is known."""
        sizes = [file.size for file in self.files]
        return sum(size for size in sizes if size is not None) if None not in sizes else None

    @property
    def folder(self) -> Path:
        """Where the files lie once fetched."""
        return cache_folder() / "models" / self.name

    @property
    def path(self) -> Path:
        """What the loaders are given: the one file, or the folder of several."""
        return self.folder / self.files[0].name if len(self.files) == 1 else self.folder

    @property
    def fetched(self) -> bool:
        """Whether every file is there (sizes and hashes are looked at by `fetch_known`)."""
        return all((self.folder / file.name).is_file() for file in self.files)


def _swinir(name: str, summary: str, file: RemoteFile, page: str, licence: str) -> KnownModel:
    return KnownModel(
        name=name,
        kind="restorer",
        arch="swinir",
        side=512,
        summary=summary,
        files=(file,),
        page=page,
        paper="arXiv:2108.10257",
        code_licence=_SWINIR_CODE,
        weights_licence=licence,
        restricted=True,
        extra="spandrel",
    )


_MODELS = (
    _swinir(
        "swinir-face-gan",
        "SwinIR with an 8x unshuffle head, L1 + LPIPS + GAN on FFHQ 512: the paper's own restorer",
        RemoteFile(
            url="https://github.com/SamsungLabs/DT-BFR/releases/download/v1.0.0/swinir_gan_v1.pth",
            name="swinir_gan_v1.pth",
        ),
        "https://github.com/SamsungLabs/DT-BFR",
        "CC BY-NC-SA 4.0 (non-commercial, share-alike), as its repository",
    ),
    _swinir(
        "swinir-face-l1",
        "The same SwinIR trained with L1 alone (DifFace)",
        RemoteFile(
            url=f"{_DIFFACE}/releases/download/V1.0/swinir_restoration512_L1.pth",
            name="swinir_restoration512_L1.pth",
        ),
        _DIFFACE,
        _S_LAB,
    ),
    _swinir(
        "swinir-face-diffbir",
        "The same SwinIR as DiffBIR passes it on; its authors name DifFace as the origin",
        RemoteFile(
            url="https://huggingface.co/lxq007/DiffBIR/resolve/main/face_swinir_v1.ckpt", name="face_swinir_v1.ckpt"
        ),
        "https://huggingface.co/lxq007/DiffBIR",
        f"Apache-2.0 (DiffBIR's repository); the weights come from DifFace, {_S_LAB}",
    ),
    KnownModel(
        name="gfpgan-1.4",
        kind="restorer",
        arch="gfpgan",
        side=512,
        summary="GFPGAN v1.4, 512 px only",
        files=(
            RemoteFile(
                url="https://github.com/TencentARC/GFPGAN/releases/download/v1.3.4/GFPGANv1.4.pth",
                name="GFPGANv1.4.pth",
                size=348_632_874,
                sha256="e2cd4703ab14f4d01fd1383a8a8b266f9a5833dacee8e6a79d3bf21a1b6be5ad",
            ),
        ),
        page="https://github.com/TencentARC/GFPGAN",
        paper="arXiv:2101.04061",
        code_licence="MIT (spandrel); GFPGAN itself Apache-2.0",
        weights_licence="Apache-2.0, as its repository; trained on FFHQ (CC BY-NC-SA 4.0 as a collection)",
        restricted=False,
        extra="spandrel",
    ),
    KnownModel(
        name="restoreformer",
        kind="restorer",
        arch="restoreformer",
        side=512,
        summary="RestoreFormer (the file of the GFPGAN release), 512 px only",
        files=(
            RemoteFile(
                url="https://github.com/TencentARC/GFPGAN/releases/download/v1.3.4/RestoreFormer.pth",
                name="RestoreFormer.pth",
                size=290_785_322,
                sha256="07404d446d62ca3d5ed38b1de09a947a1e77d46dbccec961a74d713a8f24ace0",
            ),
        ),
        page="https://github.com/wzhouxiff/RestoreFormer",
        paper="arXiv:2201.06374",
        code_licence="MIT (spandrel); RestoreFormer itself Apache-2.0",
        weights_licence="Apache-2.0, as its repository; trained on FFHQ (CC BY-NC-SA 4.0 as a collection)",
        restricted=False,
        extra="spandrel",
    ),
    KnownModel(
        name="codeformer",
        kind="restorer",
        arch="codeformer",
        side=512,
        summary="CodeFormer v0.1.0, 512 px only; w = 0.5",
        files=(
            RemoteFile(
                url="https://github.com/sczhou/CodeFormer/releases/download/v0.1.0/codeformer.pth",
                name="codeformer.pth",
                size=376_637_898,
                sha256="1009e537e0c2a07d4cabce6355f53cb66767cd4b4297ec7a4a64ca4b8a5684b7",
            ),
        ),
        page="https://github.com/sczhou/CodeFormer",
        paper="arXiv:2206.11253",
        code_licence=_S_LAB,
        weights_licence=_S_LAB,
        restricted=True,
        extra="codeformer",
    ),
    KnownModel(
        name="iddpm-ffhq-512",
        kind="prior",
        arch="improved-diffusion",
        side=512,
        summary="DifFace's improved-DDPM on FFHQ 512, learned-range variance: the paper's own prior",
        files=(
            RemoteFile(
                url=f"{_DIFFACE}/releases/download/V1.0/iddpm_ffhq512_ema500000.pth", name="iddpm_ffhq512_ema500000.pth"
            ),
        ),
        page=_DIFFACE,
        paper="arXiv:2212.06512",
        code_licence="Apache-2.0 (written afresh here)",
        weights_licence=_S_LAB,
        restricted=True,
    ),
    KnownModel(
        name="ddpm-celebahq-256",
        kind="prior",
        arch="diffusers",
        side=256,
        summary="DDPM on CelebA-HQ 256 in diffusers' layout",
        files=tuple(
            RemoteFile(url=f"https://huggingface.co/google/ddpm-celebahq-256/resolve/main/{name}", name=name)
            for name in ("config.json", "scheduler_config.json", "diffusion_pytorch_model.bin")
        ),
        page="https://huggingface.co/google/ddpm-celebahq-256",
        paper="arXiv:2006.11239",
        code_licence="Apache-2.0 (diffusers)",
        weights_licence="Apache-2.0, as its model card; trained on CelebA-HQ (research only)",
        restricted=False,
    ),
)

KNOWN_MODELS: Mapping[str, KnownModel] = MappingProxyType({model.name: model for model in _MODELS})


def find_known(name: str, *, kind: Literal["restorer", "prior"]) -> Path | None:
    """Return where a known model of this kind lies, None for a name that is not in the registry.

    Raises InputFileError, with the command that fetches it, when it has not been fetched, and ModelFileError, with the
    one that fetches it again, when a file is no model at all: a web page in its place, or an archive that was cut.
    """
    model = KNOWN_MODELS.get(name)
    if model is None or model.kind != kind:
        return None
    if not model.fetched:
        flag = " --accept-licence" if model.restricted else ""
        msg = f"{name} has not been fetched ({model.weights_licence}). Run: ufr-edge models fetch {name}{flag}"
        raise InputFileError(msg)
    for file in model.files:
        if (wrong := wrong_kind(model.folder / file.name, file.name)) is not None:
            raise _damaged(model, file, wrong)
    return model.path


def recognise(path: Path) -> KnownModel | None:
    """Return the known model of one file that lies at `path`: fetched there, or of the same size and sha256."""
    if not path.is_file():
        return None
    for model in KNOWN_MODELS.values():
        file = model.files[0]
        if len(model.files) > 1:
            continue
        if model.fetched and model.path.samefile(path):
            return model
        if file.sha256 is not None and file.size == path.stat().st_size and sha256_file(path) == file.sha256:
            return model
    return None


def how_to_mend(path: Path) -> str:
    """The command that mends a damaged file or folder of a known model in the cache; "" for any other."""
    for model in KNOWN_MODELS.values():
        if model.folder.resolve() in (path.resolve(), path.resolve().parent):
            return f"Run: ufr-edge models fetch {model.name} --again"
    return ""


def fetch_known(
    model: KnownModel, *, accept: bool = False, again: bool = False, offline: bool = False, show: bool = True
) -> Path:
    """Fetch every file of a model that is not there and whole already; return the path the loaders take.

    With `again` every file is replaced, each once the new one is whole and checked.
    Raises ConfigError unless a restricted licence is accepted (see `require_licence`), and as `downloads.fetch`.
    """
    require_licence(model, accept=accept)
    for file in model.files:
        fetch(file, model.folder, again=again, offline=offline, show=show)
    return model.path


def check_known(model: KnownModel) -> None:
    """Raise ModelFileError when a fetched file is not what the registry says."""
    for file in model.files:
        if (wrong := misfit(file, model.folder / file.name)) is not None:
            raise _damaged(model, file, wrong)


def require_licence(model: KnownModel, *, accept: bool) -> None:
    """Raise ConfigError unless the licence is free, accepted now (which is kept), or was accepted before."""
    if not model.restricted or model.name in accepted_licences():
        return
    if not accept:
        msg = (
            f"{model.name}: code {model.code_licence}; weights {model.weights_licence}; see {model.page}. "
            f"To accept this once: ufr-edge models accept {model.name} (or give --accept-licence)."
        )
        raise ConfigError(msg)
    record = {**accepted_licences(), model.name: f"code {model.code_licence}; weights {model.weights_licence}"}
    write_json(cache_folder() / _ACCEPTED, record)


def accepted_licences() -> dict[str, str]:
    """Names of the models whose restricted licence was accepted here, with the licence's words."""
    path = cache_folder() / _ACCEPTED
    record = read_json(path) if path.is_file() else {}
    return {str(k): str(v) for k, v in record.items()} if isinstance(record, dict) else {}


def _damaged(model: KnownModel, file: RemoteFile, wrong: str) -> ModelFileError:
    msg = f"{model.folder / file.name} is damaged: {wrong}. Run: ufr-edge models fetch {model.name} --again"
    return ModelFileError(msg)
