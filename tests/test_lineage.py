"""One bundle adapted to three cameras in a row: each carries the ones before, replays them, and is judged on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from test_readapt import QUICK, Sees
from training_fakes import make_faces, save_small_prior, save_small_restorer, write_faces

from ufr_edge.adaptation import finetune as finetune_module
from ufr_edge.adaptation.camera_pairs import CameraModel, degrade_all
from ufr_edge.adaptation.earlier_cameras import CAMERAS, camera_json, replay_source
from ufr_edge.adaptation.faces import FaceSet
from ufr_edge.adaptation.readapt import readapt
from ufr_edge.adaptation.restorer_task import PairSource
from ufr_edge.export.bundle_export import ExportOptions, export_bundle
from ufr_edge.export.requests import EngineRequest
from ufr_edge.files import sha256_file
from ufr_edge.restorers.loading import load_any_restorer
from ufr_edge.runtime.bundle import read_bundle
from ufr_edge.runtime.versions import current_version, install_version

SEEN = {
    "a": CameraModel(blur=1.6),
    "b": CameraModel(blur=0.3, noise=(14.0,) * 5),
    "c": CameraModel(shrink=3.0, quality=30),
}


def first_site(folder: Path) -> Path:
    restorer = load_any_restorer(save_small_restorer(folder / "weights.safetensors"))
    requests = [EngineRequest(format="onnx", precision="fp32")]
    options = ExportOptions(store_faces=False)
    export_bundle(restorer, folder / "door.ufr", formats=requests, options=options)
    install_version(folder / "site", folder / "door.ufr")
    return folder / "site"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_three_cameras_in_a_row_are_carried_replayed_and_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = first_site(tmp_path)
    prior = save_small_prior(tmp_path / "prior")
    real = write_faces(tmp_path / "real", make_faces(12, seed=5))
    replayed: list[tuple[CameraModel, ...]] = []

    def spy(clean: FaceSet, cameras: Sequence[CameraModel], count: int, seed: int) -> PairSource:
        replayed.append(tuple(cameras))
        return replay_source(clean, cameras, count, seed)

    monkeypatch.setattr(finetune_module, "replay_source", spy)
    carried: list[list[object]] = []
    for number, (name, model) in enumerate(SEEN.items()):
        seen = degrade_all(make_faces(16, seed=30 + number), model, seed=number)
        parent = sha256_file(current_version(site).path / "manifest.json")
        config = replace(QUICK, prior=prior, batch=4, replay=0.5)
        report = readapt(
            site,
            write_faces(tmp_path / f"faces-{name}", seen),
            tmp_path / f"work-{name}",
            config,
            real=real,
            detector=Sees(),  # type: ignore[arg-type]
            show=False,
            camera=name,
        )
        assert report.installed == current_version(site).path
        lineage = read_bundle(current_version(site).path).manifest.lineage
        assert (lineage["parent"], lineage["camera"]) == (parent, name)
        carried.append(json.loads(lineage[CAMERAS]))
        # Its figures are those of all cameras before, of the new engine and the old.
        for whose in ("old", "new"):
            figures = report.gate.figures[whose]
            assert sorted(f for f in figures if f.startswith("earlier_camera")) == [
                f"earlier_camera_{i + 1}_psnr_db" for i in range(number)
            ]
    assert current_version(site).number == 4
    # Every one carries what the one before carried, unchanged, and its own camera at the end.
    assert [len(models) for models in carried] == [1, 2, 3]
    assert carried[2][:2] == carried[1] and carried[1][:1] == carried[0]
    assert len({json.dumps(model) for model in carried[2]}) == 3
    # Fine-tuning was given exactly those.
    assert [[camera_json(model) for model in cameras] for cameras in replayed] == [[], carried[0], carried[1]]
