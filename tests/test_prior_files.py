"""Reading priors: shipped, local, hub; what is damaged or of another kind is refused in words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from huggingface_hub.errors import LocalEntryNotFoundError
from prior_fakes import faces
from safetensors.torch import load_file, save_file

from ufr_edge.errors import BackendUnavailableError, InputFileError, ModelFileError, UfrEdgeError
from ufr_edge.priors import files
from ufr_edge.priors.files import load_prior, prior_digest
from ufr_edge.priors.model import DiffusionPrior, build_prior

WEIGHTS = "diffusion_pytorch_model.safetensors"


def small(**options: Any) -> DiffusionPrior:
    torch.manual_seed(0)
    return build_prior(side=32, factor=2, channels=(32, 32, 32), **options).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small().save_pretrained(tmp_path / "prior")
    return tmp_path / "prior"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def outputs(prior: DiffusionPrior) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = prior(faces(2), torch.tensor([10, 500]))
    return result


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "wiener_residual"])
@pytest.mark.parametrize("learn_variance", [False, True])
def test_round_trip(tmp_path: Path, prediction: str, learn_variance: bool) -> None:
    prior = small(prediction_type=prediction, learn_variance=learn_variance)
    prior.save_pretrained(tmp_path)
    back = load_prior(tmp_path)
    assert torch.equal(outputs(back), outputs(prior))
    written = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    assert written["variance_type"] == ("learned_range" if learn_variance else "fixed_small")
    assert (back.prediction_type, back.side, back.factor) == (prediction, 32, 2)
    assert back.learns_variance == learn_variance
    assert not back.training


def test_diffusers_itself_reads_what_we_write(folder: Path) -> None:
    unet = UNet2DModel.from_pretrained(folder, subfolder="unet", use_safetensors=True)
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    ours = load_prior(folder)
    assert torch.equal(outputs(DiffusionPrior(unet.eval(), prediction_type="wiener_residual")), outputs(ours))
    assert scheduler.config["prediction_type"] == "wiener_residual"
    assert float(scheduler.alphas_cumprod[602]) == pytest.approx(0.024953, abs=1e-6)


def test_half_weights_are_widened(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path, half=True)
    assert {t.dtype for t in load_file(tmp_path / "unet" / WEIGHTS).values()} == {torch.float16}
    prior = load_prior(str(tmp_path))
    assert {p.dtype for p in prior.parameters()} == {torch.float32}
    torch.testing.assert_close(outputs(prior), outputs(small()), rtol=0, atol=0.02)


def test_the_fp16_variant_of_diffusers_is_read(tmp_path: Path) -> None:
    small(prediction_type="epsilon").unet.half().save_pretrained(tmp_path, variant="fp16")
    assert {p.dtype for p in load_prior(tmp_path).parameters()} == {torch.float32}


def test_a_bare_unet_predicts_epsilon(tmp_path: Path) -> None:
    prior = small(prediction_type="epsilon")
    prior.unet.save_pretrained(tmp_path)
    back = load_prior(tmp_path)
    assert back.prediction_type == "epsilon"
    assert torch.equal(outputs(back), outputs(prior))


def test_a_scheduler_beside_a_bare_unet_is_read(tmp_path: Path) -> None:
    small(prediction_type="v_prediction").unet.save_pretrained(tmp_path)
    DDPMScheduler(prediction_type="v_prediction", variance_type="fixed_large").save_pretrained(tmp_path)
    assert load_prior(tmp_path).prediction_type == "v_prediction"


def test_shipped_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WEIGHTS_DIR", folder.parent)
    assert load_prior("prior").side == 32
    with pytest.raises(InputFileError, match=r"prior-999 is no prior.*\(prior\)"):
        load_prior("prior-999")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_train_timesteps", 4000),
        ("beta_start", 0.00085),
        ("beta_end", 0.012),
        ("beta_schedule", "scaled_linear"),
        ("trained_betas", [0.1, 0.2]),
        ("rescale_betas_zero_snr", True),
        ("prediction_type", "sample"),
        ("variance_type", "learned"),
    ],
)
def test_another_schedule_is_refused_by_field(folder: Path, field: str, value: Any) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", **{field: value})
    with pytest.raises(ModelFileError, match=field.replace("_", "[_ ]")):
        load_prior(folder)


@pytest.mark.parametrize("keep", [0, 5, 1000, 200_000])
def test_truncated_weights_are_refused(folder: Path, keep: int) -> None:
    path = folder / "unet" / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelFileError, match="damaged"):
        load_prior(folder)


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    save_file({"conv.weight": torch.zeros(3, 3)}, folder / "unet" / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelFileError, match="do not fit"):
        load_prior(folder)


def test_one_missing_tensor_is_refused(folder: Path) -> None:
    tensors = load_file(folder / "unet" / WEIGHTS)
    del tensors["conv_out.weight"]
    save_file(tensors, folder / "unet" / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelFileError, match=r"1 tensors do not fit.*conv_out\.weight"):
        load_prior(folder)


def test_tensors_of_other_shapes_are_refused(folder: Path) -> None:
    edit(folder / "unet" / "config.json", block_out_channels=[32, 64, 32])
    with pytest.raises(ModelFileError):
        load_prior(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
        ({"in_channels": 4}, r"conv_in\.weight"),
        ({"down_block_types": ["NoSuchBlock"] * 3}, "NoSuchBlock"),
    ],
)
def test_another_network_is_refused(folder: Path, changes: dict[str, Any], says: str) -> None:
    edit(folder / "unet" / "config.json", **changes)
    with pytest.raises(ModelFileError, match=says):
        load_prior(folder)


def test_a_pair_of_equal_sides_is_one_side(folder: Path) -> None:
    edit(folder / "unet" / "config.json", sample_size=[16, 16])
    assert load_prior(folder).side == 32


@pytest.mark.parametrize("size", [None, [16, 24], [[16], [16]], [], "16", 0])
def test_a_side_that_is_none_is_refused_in_words(folder: Path, size: Any) -> None:
    edit(folder / "unet" / "config.json", sample_size=size)
    with pytest.raises(ModelFileError, match=r"sample_size is .*Write the side it was trained at"):
        load_prior(folder)


def test_output_channels_must_fit(tmp_path: Path) -> None:
    UNet2DModel(
        sample_size=16,
        in_channels=12,
        out_channels=36,
        layers_per_block=1,
        block_out_channels=(32,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        num_class_embeds=None,
    ).save_pretrained(tmp_path)
    with pytest.raises(ModelFileError, match="36 output channels"):
        load_prior(tmp_path)


def test_a_class_conditional_network_is_refused(tmp_path: Path) -> None:
    UNet2DModel(
        sample_size=16,
        in_channels=12,
        out_channels=12,
        layers_per_block=1,
        block_out_channels=(32,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        num_class_embeds=10,
    ).save_pretrained(tmp_path)
    with pytest.raises(ModelFileError, match="class-conditional"):
        load_prior(tmp_path)


def test_a_pickled_file_is_read_where_there_is_no_other(tmp_path: Path) -> None:
    prior = small(prediction_type="epsilon")
    prior.unet.save_pretrained(tmp_path, safe_serialization=False)
    assert torch.equal(outputs(load_prior(tmp_path)), outputs(prior))
    assert prior_digest(tmp_path) != prior_digest("prior-256")


def test_attention_under_the_names_of_2022_is_read(tmp_path: Path) -> None:
    """The hub's first DDPM uploads (celebahq-256 among them) are pickled, with query, key, value, proj_attn."""
    prior = small(prediction_type="epsilon")
    prior.unet.save_pretrained(tmp_path, safe_serialization=False)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = dict(prior.unet.state_dict())
    for new, old in names.items():
        tensors = {key.replace(f".{new}.", f".{old}."): tensor for key, tensor in tensors.items()}
    torch.save(tensors, tmp_path / "diffusion_pytorch_model.bin")
    assert any(".proj_attn." in key for key in tensors)
    assert torch.equal(outputs(load_prior(tmp_path)), outputs(prior))


class Evil:
    """What unpickling must never run."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def test_nothing_but_tensors_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(prediction_type="epsilon").unet.save_pretrained(tmp_path, safe_serialization=False)
    torch.save({"conv_in.weight": Evil()}, tmp_path / "diffusion_pytorch_model.bin")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFileError, match="damaged"):
        load_prior(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "unet" / WEIGHTS).unlink()
    with pytest.raises(InputFileError, match=r"neither .*safetensors nor .*\.bin"):
        load_prior(folder)


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_configs_that_are_no_json_object_are_refused(folder: Path, text: str) -> None:
    (folder / "unet" / "config.json").write_text(text)
    with pytest.raises(ModelFileError, match=r"config\.json"):
        load_prior(folder)


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="is no prior"):
        load_prior(tmp_path / "nowhere")
    with pytest.raises(InputFileError, match="is no prior"):
        load_prior("a/b/c")
    with pytest.raises(InputFileError, match="config.json"):
        load_prior(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputFileError, match="is no prior"):
        load_prior(tmp_path / "file")


def test_hub_models_are_fetched_as_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[str]]] = []

    def fetch(hub_id: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        assert not local_files_only
        asked.append((hub_id, allow_patterns))
        return str(folder)

    monkeypatch.setattr(files, "snapshot_download", fetch)
    assert load_prior("someone/some-prior").side == 32
    assert asked[0][0] == "someone/some-prior"
    assert len(asked) == 1
    assert not any("bin" in pattern for pattern in asked[0][1])


def test_the_pickled_file_of_the_hub_is_fetched_only_where_there_is_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def fetch(hub_id: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        assert local_files_only
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setenv("UFR_OFFLINE", "1")
    monkeypatch.setattr(files, "snapshot_download", fetch)
    small(prediction_type="epsilon").unet.save_pretrained(tmp_path, safe_serialization=False)
    assert load_prior("someone/some-prior").side == 32
    assert "diffusion_pytorch_model.bin" in asked[1]
    assert not any("bin" in pattern for pattern in asked[0])


def test_a_hub_out_of_reach_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(hub_id: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        msg = f"no {hub_id}"
        raise LocalEntryNotFoundError(msg)

    monkeypatch.setattr(files, "snapshot_download", fetch)
    with pytest.raises(BackendUnavailableError, match="cannot be reached") as caught:
        load_prior("someone/some-prior")
    assert isinstance(caught.value, UfrEdgeError)


@pytest.mark.slow
def test_offline_mode_is_honoured(tmp_path: Path) -> None:
    """In a process of its own: the hub client reads HF_HUB_OFFLINE when it is imported."""
    code = (
        "from ufr_edge.errors import BackendUnavailableError\n"
        "from ufr_edge.priors.files import find_prior\n"
        "try:\n    find_prior('someone/some-prior')\n"
        "except BackendUnavailableError as exc:\n    print(exc)\n"
    )
    env = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert "HF_HUB_OFFLINE" in done.stdout
