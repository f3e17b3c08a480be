"""Where the licences that a bundle's manifest states come from."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
from click.testing import CliRunner
from export_helpers import ANY_PICTURES
from training_fakes import SIDE, make_faces, save_small_prior, save_small_restorer, write_faces

from ufr_edge.adaptation.finetune import FinetuneConfig, finetune
from ufr_edge.adaptation.restorer_task import LossWeights, RestorerTraining
from ufr_edge.cli import main
from ufr_edge.export.bundle_export import ExportOptions, _restorer_info, export_bundle
from ufr_edge.export.requests import EngineRequest
from ufr_edge.files import write_json
from ufr_edge.priors.files import is_shipped, prior_licence
from ufr_edge.restorers import registry
from ufr_edge.restorers.edge import build_restorer
from ufr_edge.restorers.files import load_restorer, save_restorer, shipped_files
from ufr_edge.restorers.loading import load_any_restorer
from ufr_edge.restorers.registry import KNOWN_MODELS, recognise
from ufr_edge.runtime.bundle import read_bundle
from ufr_edge.weights import find_weights


@pytest.mark.parametrize("path", shipped_files(), ids=lambda path: path.parent.name)
def test_a_bundle_of_shipped_weights_states_the_licence_of_their_card(path: Path) -> None:
    card = find_weights(path.parent.name).card
    for source in (path.parent.name, path):
        loaded = load_any_restorer(source)
        info = _restorer_info(loaded, loaded.side)
        assert info.weights_licence == card["weights_licence"] != "unknown"
        assert info.code_licence == card["code_licence"]


def test_weights_without_a_card_state_none(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(shipped_files()[0].read_bytes())
    assert "weights_licence" not in load_restorer(path).meta


def test_known_checkpoints_are_recognised_by_file_or_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UFR_CACHE", str(tmp_path / "cache"))
    gfpgan, content = KNOWN_MODELS["gfpgan-1.4"], b"weights"
    file = replace(gfpgan.files[0], size=len(content), sha256=hashlib.sha256(content).hexdigest())
    known = {"gfpgan-1.4": replace(gfpgan, files=(file,)), "swinir-face-gan": KNOWN_MODELS["swinir-face-gan"]}
    monkeypatch.setattr(registry, "KNOWN_MODELS", MappingProxyType(known))
    copy, other = tmp_path / "renamed.pth", tmp_path / "other.pth"
    copy.write_bytes(content)
    other.write_bytes(b"Weights")
    found = recognise(copy)
    assert found is not None
    assert found.name == "gfpgan-1.4"
    assert recognise(other) is None
    assert recognise(tmp_path) is None
    swinir = known["swinir-face-gan"]
    swinir.folder.mkdir(parents=True)
    swinir.path.write_bytes(b"anything")
    assert recognise(swinir.path) == swinir


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ("---\nlicense: cc-by-nc-4.0\ntags:\n- faces\n---\n# A prior\n", "cc-by-nc-4.0"),
        ("---\nlicense:\n  - mit\n---\n", "mit"),
        ("---\ntags: [a]\nlicense: other\nlicense_name: 'S-Lab 1.0'\n---\n", "S-Lab 1.0"),
        ("---\ntags: [a]\nlicense:\nlibrary_name: diffusers\n---\n", None),
        ("# license: mit\nin the text alone\n", None),
    ],
)
def test_a_priors_licence_is_that_of_its_model_card(tmp_path: Path, card: str, words: str | None) -> None:
    prior = Path(save_small_prior(tmp_path / "prior"))
    assert prior_licence(prior) is None and not is_shipped(prior)
    (prior / "README.md").write_text(card)
    assert prior_licence(prior) == (words and f"weights {words}, as its model card")


def test_a_shipped_priors_licence_is_that_of_its_card() -> None:
    card = find_weights("prior-256").card
    assert prior_licence("prior-256") == f"code {card['code_licence']}; weights {card['weights_licence']}"
    assert is_shipped("prior-256")


def prior_under(folder: Path, licence: str) -> str:
    source = save_small_prior(folder)
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    return source


def tuned(tmp_path: Path, name: str, restorer: str, *, prior: str, teacher: str | None) -> Path:
    """Weights trained for a step from `restorer`, on targets that say who made them."""
    faces = write_faces(tmp_path / "faces", make_faces(8))
    targets = write_faces(tmp_path / f"{name}-targets", make_faces(8))
    write_json(targets / "config.json", {"prior": prior, "teacher": teacher})
    losses = LossWeights(prior_features=0.0, adversarial=0.0)
    training = RestorerTraining(steps=1, precision="fp32", losses=losses)
    config = FinetuneConfig(restorer=restorer, batch=2, training=training, device="cpu")
    return finetune(faces, targets, tmp_path / name, config, show=False)


def test_a_bundle_states_the_licences_of_prior_and_teacher(tmp_path: Path) -> None:
    prior, teacher = prior_under(tmp_path / "prior", "cc-by-nc-4.0"), tmp_path / "teacher.safetensors"
    meta = {"weights_licence": "S-Lab 1.0"}
    save_restorer(build_restorer("edge-s"), teacher, arch="edge-s", side=SIDE, meta=meta)
    base = save_small_restorer(tmp_path / "base.safetensors")
    weights = tuned(tmp_path, "run", base, prior=prior, teacher=str(teacher))
    out, options = tmp_path / "door.ufr", ExportOptions(calibration=ANY_PICTURES, store_faces=False)
    export_bundle(
        load_any_restorer(weights), out, formats=[EngineRequest(format="onnx", precision="fp32")], options=options
    )
    lineage = read_bundle(out).manifest.lineage
    assert (lineage["prior"], lineage["teacher"]) == (prior, str(teacher))
    assert lineage["prior_licence"] == "weights cc-by-nc-4.0, as its model card"
    assert lineage["teacher_licence"] == "S-Lab 1.0"
    shown = CliRunner().invoke(main, ["bundle", "info", str(out)]).output
    assert "prior_licence: weights cc-by-nc-4.0, as its model card" in shown and "teacher_licence: S-Lab 1.0" in shown


def test_weights_adapted_again_keep_the_licences_of_what_they_learned_from(tmp_path: Path) -> None:
    first, second = (prior_under(tmp_path / name, name) for name in ("cc-by-nc-4.0", "mit"))
    base = save_small_restorer(tmp_path / "base.safetensors")
    once = tuned(tmp_path, "once", base, prior=first, teacher="gone.pth")
    again = load_restorer(tuned(tmp_path, "again", str(once), prior=second, teacher=None)).meta
    assert again["prior"] == f"{first}, {second}"
    words = [f"{source}: weights {name}, as its model card" for source, name in ((first, "cc-by-nc-4.0"), (second, "mit"))]
    assert again["prior_licence"] == "; ".join(words)
    assert (again["teacher"], again["teacher_licence"]) == ("gone.pth", "as its source says")
    same = load_restorer(tuned(tmp_path, "same", str(once), prior=first, teacher=None)).meta
    assert same["prior_licence"] == "weights cc-by-nc-4.0, as its model card" and same["prior"] == first
