"""The dial's curve in the report of an adaptation: when it is drawn, on which axes, and gone on with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from training_fakes import SIDE, make_faces, small_targets, write_faces

from ufr_edge.adaptation import forecast as forecasting
from ufr_edge.adaptation.adapt import AdaptConfig, adapt
from ufr_edge.adaptation.dial import POSITIONS, REAL, curve_axes, curve_png, dial
from ufr_edge.adaptation.finetune import FinetuneConfig
from ufr_edge.adaptation.forecast import Forecast, forecast
from ufr_edge.adaptation.qa import QaConfig
from ufr_edge.adaptation.restorer_task import LossWeights, RestorerTraining
from ufr_edge.adaptation.sweep import COUNT, curve_calls, curve_wanted, quick
from ufr_edge.adaptation.targets import Atelier
from ufr_edge.cli import main
from ufr_edge.files import read_json
from ufr_edge.priors.sampler import LIGHT_TOUCH, PAPER_SWINIR, SamplerConfig

Images = NDArray[np.uint8]
FEW = SamplerConfig(start=150, hold_until=90, filter_n=8, fast_steps=1)


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    return write_faces(tmp_path / "faces", make_faces(8))


@pytest.fixture
def config(tmp_path: Path) -> AdaptConfig:
    losses = LossWeights(prior_features=0.0, adversarial=0.0)
    return AdaptConfig(
        targets=small_targets(tmp_path, sampler=FEW, qa=QaConfig(judge=False), device="cpu"),
        finetune=FinetuneConfig(batch=4, training=RestorerTraining(steps=1, precision="fp32", losses=losses)),
        align=False,
        shown=2,
        curve="always",
    )


def test_it_is_drawn_where_it_is_small_beside_the_targets() -> None:
    calls = curve_calls(LIGHT_TOUCH, faces=200)
    per_face = sum(dial(position).sampler(quick(LIGHT_TOUCH)).calls for position in POSITIONS)
    assert calls == COUNT * per_face and curve_calls(LIGHT_TOUCH, faces=3) == 3 * per_face
    assert quick(PAPER_SWINIR).calls == 30 and quick(FEW).calls == 1  # never more than were asked for
    many, few = (curve_wanted("auto", LIGHT_TOUCH, faces=n, shown=n) for n in (200, 20))
    assert calls < 0.2 * 200 * LIGHT_TOUCH.calls and many and not few
    assert curve_wanted("always", LIGHT_TOUCH, faces=20, shown=20)
    assert not curve_wanted("never", LIGHT_TOUCH, faces=10**6, shown=20)


def test_the_forecast_counts_it(faces: Path, config: AdaptConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecasting, "time_call", lambda *_: 0.5)
    images = make_faces(8)
    found = forecast(faces, images, config.targets, config.finetune, wanted=0, steps=0, curve_calls=240)
    assert found.curve == found.total == 120
    line = Forecast(per_target=1, per_step=1, targets=300, training=300, curve=120).line()
    assert "2 min of the dial's curve (--no-curve" in line and line.endswith("about 12 min in all")


def test_without_truth_the_axes_are_agreement_and_distance_to_real_faces(
    faces: Path, config: AdaptConfig, tmp_path: Path
) -> None:
    out, real = tmp_path / "run", write_faces(tmp_path / "real", make_faces(9, seed=4))
    told: list[str] = []
    report = adapt(faces, out, config, real=real, tell=told.append, show=False)
    curve = read_json(out / "dial.json")
    assert [row["fidelity"] for row in curve["rows"]] == list(POSITIONS)
    assert curve_axes(curve["rows"]) == (REAL, "input_consistency_db")
    assert set(curve["marks"]) == {"base", "adapted"} and (curve["faces"], curve["real"]) == (8, 9)
    assert all(np.isfinite(found[REAL]) for found in (*curve["rows"], *curve["marks"].values()))
    page = report.report.read_text()
    assert "The dial" in page and "Distances are to 9 real faces" in page and "without mean/std" in page
    assert page.index("Licences") < page.index(config.targets.prior) and "as its source says" in page
    assert (out / "dial.png").read_bytes().startswith(b"\x89PNG") and page.count("data:image/png") >= 2
    assert "of the dial&#39;s curve" not in page and any("of the dial's curve" in line for line in told)


def test_it_goes_on_from_the_positions_that_are_there(
    faces: Path, config: AdaptConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, drawn = tmp_path / "run", list[int]()
    adapt(faces, out, config, show=False)
    whole = Atelier.sample

    def counted(self: Atelier, restored: Images, names: list[str], sampler: SamplerConfig) -> Images:
        drawn.append(sampler.samples_per_image)
        return whole(self, restored, names, sampler)

    monkeypatch.setattr(Atelier, "sample", counted)
    before, told = read_json(out / "dial.json"), list[str]()
    adapt(faces, out, config, tell=told.append, show=False)
    assert drawn == [] and not any("expected" in line for line in told)
    for path in (out / "dial" / "1").iterdir():
        path.unlink()
    (out / "dial" / "1").rmdir()
    adapt(faces, out, config, show=False)
    assert drawn == [4] and read_json(out / "dial.json") == before
    other = dataclasses.replace(config, targets=dataclasses.replace(config.targets, seed=1))
    adapt(faces, out, other, overwrite=True, show=False)
    assert drawn.count(4) == 2 and read_json(out / "dial.json") != before


def test_with_truth_fidelity_is_psnr_and_statement_20_is_kept(
    faces: Path, config: AdaptConfig, tmp_path: Path
) -> None:
    """Statement 20: adapt's report says that nothing was matched, and the Frechet distance's count and reference."""
    test = write_faces(tmp_path / "test", make_faces(3, seed=2))
    page = adapt(faces, tmp_path / "run", config, test_faces=test, truth=test, show=False).report.read_text()
    assert "Measured on 3 faces" in page and "no mean/std matching" in page
    assert "prior_frechet_distance" in page and "from these 3 faces to their 3 clean versions" in page
    curve = read_json(tmp_path / "run" / "dial.json")
    assert curve_axes(curve["rows"]) == ("prior_feature_distance", "psnr_db") and curve["faces"] == 3
    kept = {key: row[key] for row in curve["rows"][:1] for key in ("fidelity", "psnr_db", "high_frequency_energy")}
    assert curve_axes([kept]) == ("high_frequency_energy", "psnr_db")  # a prior without features
    assert curve_png(curve["rows"], marks=curve["marks"]) != curve_png(curve["rows"])  # they are drawn


def test_the_report_says_why_there_is_none_and_what_draws_it(faces: Path, config: AdaptConfig, tmp_path: Path) -> None:
    report = adapt(faces, tmp_path / "run", dataclasses.replace(config, curve="auto"), show=False)
    page = report.report.read_text()
    assert "Its curve was not drawn" in page and "--curve draws it" in page and not (tmp_path / "run" / "dial").exists()
    words = ["adapt", "-i", faces, "-o", tmp_path / "run", "--curve", "--no-align", "--no-qa", "--no-progress"]
    words += ["--restorer", config.targets.restorer, "--prior", config.targets.prior, "--device", "cpu"]
    words += ["--start", 150, "--hold-until", 90, "--filter-n", 8, "--fast-steps", 1, "--steps", 1, "--batch", 4]
    write_faces(tmp_path / "test", make_faces(8, seed=2))
    words += ["--test", tmp_path / "test", "--truth", tmp_path / "test"]
    result = CliRunner().invoke(main, [*map(str, words), "--overwrite"])
    assert result.exit_code == 0, result.output
    assert "psnr_db" in result.stdout and "no mean/std matching" in result.stdout
    assert read_json(tmp_path / "run" / "dial.json")["faces"] == 8 and SIDE == 64
