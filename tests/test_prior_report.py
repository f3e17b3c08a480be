"""The report on a prior: its figures, that it goes on where it stopped, and that it never mixes settings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from training_fakes import (
    SIDE,
    make_faces,
    save_small_prior,
    save_small_restorer,
    small_prior,
    write_faces,
)

from ufr_edge.adaptation.identity import feature_distances, inner_face
from ufr_edge.adaptation.prior_figures import (
    epsilon_losses,
    frechet_figures,
    identity_figures,
    target_figures,
    unconditional,
    variance_choices,
)
from ufr_edge.adaptation.prior_pages import (
    epsilon_table,
    frechet_note,
    frechet_table,
    identity_table,
    prior_limits,
    prior_markdown,
    target_table,
)
from ufr_edge.adaptation.prior_report import PriorReportConfig, report_prior
from ufr_edge.adaptation.training import to_tensor
from ufr_edge.cli import main
from ufr_edge.errors import ConfigError, InputFileError, OutputError, ShapeError
from ufr_edge.files import read_json
from ufr_edge.priors.features import PriorFeatures, prior_feature_distance
from ufr_edge.priors.model import build_prior
from ufr_edge.runtime.engines.base import EngineInfo
from ufr_edge.runtime.faces.detect import Face

Images = NDArray[np.uint8]
QUICK = {"count": 4, "fast_steps": 2, "sample_calls": 2, "batch": 3, "precision": "fp32"}


class MovingDetector:
    """Finds one face whose points lie at the mean colour of the picture; none in a black one."""

    info = EngineInfo(
        backend="fake", backend_version="0", device="cpu", precision="fp32", side=None, path=Path("fake")
    )

    def detect(self, frame: Images) -> list[Face]:
        if not frame.any():
            return []
        points = np.full((5, 2), frame.mean(), np.float32)
        return [Face(box=np.zeros(4, np.float32), score=1.0, landmarks=points)]


def no_advance(n: int = 1, note: str = "") -> None:
    """Draw nothing."""


def test_an_untrained_residual_prior_is_the_linear_filter() -> None:
    faces = make_faces(3)
    figures = epsilon_losses(small_prior(), faces, [1, 2, 3], precision="fp32", batch=2, advance=no_advance)
    assert list(figures) == ["20", "60", "120", "240", "400", "600"]
    for values in figures.values():
        assert values["prior"] == pytest.approx(values["linear"], rel=1e-3)
        assert 0 < values["linear"] < 1
    losses = [values["linear"] for values in figures.values()]
    assert losses == sorted(losses, reverse=True)  # the noise is easier to tell where there is more of it


def test_noise_levels_stand_in_order_though_json_sorts_them_as_text() -> None:
    values = {"linear": 0.2, "prior": 0.1}
    assert [row[0] for row in epsilon_table({"120": values, "20": values, "60": values})[1]] == ["20", "60", "120"]


def test_a_faces_noise_does_not_depend_on_the_batch() -> None:
    faces, prior = make_faces(3), small_prior()
    one, all_at_once = (
        epsilon_losses(prior, faces, [4, 5, 6], precision="fp32", batch=n, advance=no_advance)["120"]["linear"]
        for n in (1, 3)
    )
    assert one == pytest.approx(all_at_once, rel=1e-5)


def test_all_pairs_of_feature_distances_are_the_pairwise_ones() -> None:
    a, b = make_faces(3, seed=1), make_faces(2, seed=2)
    features = PriorFeatures(small_prior())
    found = feature_distances(a, b, features, batch=2)
    cpu = torch.device("cpu")
    with torch.no_grad():
        for i in range(3):
            x, y = to_tensor(a[i : i + 1].repeat(2, 0), cpu), to_tensor(b, cpu)
            np.testing.assert_allclose(found[i], prior_feature_distance(features, x, y).numpy(), atol=1e-5)


def test_identity_of_unchanged_swapped_and_moved_faces() -> None:
    features, faces = PriorFeatures(small_prior()), make_faces(4)
    same = identity_figures(faces, faces, features, MovingDetector())
    assert same["own_is_nearest"] == 1
    assert same["own_distance"] == pytest.approx(0, abs=1e-5)
    assert (same["landmarks_px"], same["faces_detected"]) == (0, 4)
    swapped = identity_figures(faces[[1, 0, 3, 2]], faces, features, MovingDetector())
    assert swapped["own_is_nearest"] == 0
    assert swapped["nearest_other_distance"] == pytest.approx(0, abs=1e-5)
    grey = np.stack([np.full((SIDE, SIDE, 3), level, np.uint8) for level in (10, 20, 0)])
    moved = identity_figures(grey + np.uint8(1) * (grey > 0), grey, features, MovingDetector())
    assert moved["faces_detected"] == 2  # none is found in the black one
    assert moved["landmarks_px"] == pytest.approx(np.sqrt(2) * 512 / SIDE, rel=1e-5)


def test_no_face_found_leaves_the_landmarks_out() -> None:
    black = np.zeros((2, SIDE, SIDE, 3), np.uint8)
    figures = identity_figures(black, black, PriorFeatures(small_prior()), MovingDetector())
    assert "landmarks_px" not in figures
    assert ["faces detected before and after", "0 of 2"] in identity_table(figures)[1]


def test_the_inner_face_is_half_the_side_and_fits_the_features() -> None:
    features = PriorFeatures(small_prior())
    assert inner_face(np.zeros((1, 256, 256, 3), np.uint8), features).shape == (1, 128, 128, 3)
    assert inner_face(make_faces(2), features).shape == (2, 32, 32, 3)


def test_target_figures_know_better_from_worse() -> None:
    truth = make_faces(3)
    noise = np.random.default_rng(0).normal(0, 12, truth.shape)
    noisy = (truth + noise).clip(0, 255).astype(np.uint8)
    better = target_figures(truth[[0, 1, 2]] // 2 + noisy // 2, noisy, truth)
    assert better["psnr_change_db"] > 3
    assert 1 < better["detail_ratio"] < better["restored_detail_ratio"]
    worse = target_figures(noisy, truth // 2 + noisy // 2, truth)
    rows = target_table({"good": {**better, "detail_ratio": 1.1}, "bad": worse})[1]
    assert [row.count("holds") for row in rows] == [2, 0]


def test_what_a_prior_misses_is_its_limit() -> None:
    good = {"detail_ratio": 0.9, "psnr_change_db": 1.0}
    config = {"restorer": "edge-a", "degrade": "raw"}
    record = {"config": config, "faces": 64, "figures": {"targets": {"light": good, "paper": good}}}
    assert prior_limits(record) == []
    record["figures"]["targets"]["paper"] = {"detail_ratio": 0.69, "psnr_change_db": -0.5}  # type: ignore[index]
    drawn = "Targets drawn with the paper sampler from edge-a on raw"
    assert prior_limits({**record, "faces": 16}) == [
        f"{drawn} have 69 % of the clean faces' fine detail.",
        f"{drawn} lie 0.50 dB below the restorer's output.",
        "The figures are of 16 faces: too few for tails, or for people unlike these.",
    ]


def test_frechet_needs_equal_counts() -> None:
    features, faces = PriorFeatures(small_prior()), make_faces(4)
    assert frechet_figures({"x": faces}, faces, features)["x"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(ShapeError, match="x has 3 faces, the others 4"):
        frechet_figures({"x": faces[:3]}, faces, features)


def test_frechet_distances_of_few_faces_are_not_told() -> None:
    figures = {"samples": 3.0, "resampled": 2.0, "floor": 1.0}
    for count in (0, 63):
        assert frechet_table({"count": count, **figures})[1] == []
        assert f"need 64 faces a set and as many others (--count), here there were {count}." in frechet_note({"count": count})
    assert [row[1] for row in frechet_table({"count": 64, **figures})[1]] == ["3.0000", "2.0000", "1.0000"]
    assert "64 faces a set: no FID" in frechet_note({"count": 64})


def test_samples_from_noise_depend_on_their_seed_alone() -> None:
    prior = small_prior()
    both = unconditional(prior, SIDE, [1, 2], calls=3, precision="fp32")
    alone = unconditional(prior, SIDE, [2], calls=3, precision="fp32")
    assert both.shape == (2, SIDE, SIDE, 3)
    assert np.abs(both[1].astype(int) - alone[0]).max() <= 1
    assert np.abs(both[0].astype(int) - both[1]).mean() > 5


@pytest.fixture
def place(tmp_path: Path) -> tuple[str, Path, str]:
    prior = save_small_prior(tmp_path / "prior")
    faces = write_faces(tmp_path / "faces", make_faces(8))
    return prior, faces, save_small_restorer(tmp_path / "restorer.safetensors")


def test_a_report_has_every_part_and_is_taken_over_the_second_time(place: tuple[str, Path, str], tmp_path: Path) -> None:
    prior, faces, restorer = place
    out = tmp_path / "report"
    plain = PriorReportConfig(prior=prior, **QUICK)  # type: ignore[arg-type]
    first = report_prior(faces, out, plain, show=False)
    assert (set(first.figures), first.reused) == ({"epsilon", "identity", "frechet"}, 0)
    before = {path: path.read_bytes() for path in out.rglob("*.png")}
    more = PriorReportConfig(prior=prior, restorer=restorer, degrade="raw-iso3000-x4", **QUICK)  # type: ignore[arg-type]
    second = report_prior(faces, out, more, show=False)
    assert (set(second.figures), second.reused) == ({"epsilon", "identity", "targets", "frechet"}, 3)
    assert set(second.figures["targets"]) == {"paper", "light"}
    assert all(path.read_bytes() == data for path, data in before.items() if path.name != "epsilon.png")
    assert second.figures["frechet"] == {"count": 4}
    record = read_json(out / "report.json")
    assert record["figures"] == json.loads(json.dumps(second.figures))
    assert str(tmp_path) not in (out / "report.json").read_text(encoding="utf-8")
    assert record["command"].startswith("ufr-edge prior-report prior --faces VAL -o REPORT --count 4")
    page = (out / "index.html").read_text(encoding="utf-8")
    for name in ("epsilon.png", "resampled.jpg", "targets-paper.jpg", "targets-light.jpg", "samples.jpg"):
        assert name in page
        assert (out / name).is_file()
    assert "No Fréchet distances" in page and "(the floor)" not in page


def test_the_variances_of_the_sampler_are_compared(place: tuple[str, Path, str], tmp_path: Path) -> None:
    prior, faces, restorer = place
    with pytest.raises(ConfigError, match="on a restorer's output"):
        PriorReportConfig(prior=prior, variances=True)
    given = {**QUICK, "fast_steps": 3, "restorer": restorer, "degrade": "raw-iso3000-x4", "variances": True}
    config = PriorReportConfig(prior=prior, **given)  # type: ignore[arg-type]
    figures = report_prior(faces, tmp_path / "report", config, show=False).figures
    found = figures["variances"]
    assert set(found) == {"paper, posterior", "paper, beta", "light, posterior", "light, beta"}
    # A few calls take the posterior's by themselves: those targets are not drawn twice.
    assert found["paper, posterior"] == figures["targets"]["paper"]
    assert {p.name for p in (tmp_path / "report").glob("variances-*")} == {"variances-paper-beta", "variances-light-beta"}
    assert found["paper, beta"]["detail_ratio"] > found["paper, posterior"]["detail_ratio"]  # it leaves more noise
    record = read_json(tmp_path / "report" / "report.json")
    assert record["command"].endswith("--variances") and "| light, beta |" in prior_markdown(record)
    assert "light, beta" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")


def test_a_prior_that_predicts_its_variance_is_run_with_fixed_ones_too() -> None:
    learned = build_prior(side=SIDE, channels=(32, 32), learn_variance=True).eval()
    choices = variance_choices(learned)
    assert set(choices) == {"learned", "posterior", "beta"}
    assert set(variance_choices(small_prior())) == {"posterior", "beta"}
    x, t = torch.zeros(1, 3, SIDE, SIDE), torch.tensor([60])
    with torch.no_grad():
        assert choices["learned"](x, t).shape[1] == 6
        assert torch.equal(choices["beta"](x, t), choices["learned"](x, t)[:, :3])


def test_a_stopped_report_goes_on_with_the_missing_faces(place: tuple[str, Path, str], tmp_path: Path) -> None:
    prior, faces, _ = place
    config = PriorReportConfig(prior=prior, **QUICK)  # type: ignore[arg-type]
    whole = report_prior(faces, tmp_path / "whole", config, show=False)
    report_prior(faces, tmp_path / "cut", config, show=False)
    for name in ("identity.json", "frechet.json", "report.json"):
        (tmp_path / "cut" / name).unlink()
    drawn = sorted((tmp_path / "cut" / "resampled").glob("*.png"))
    drawn[1].unlink()
    kept = {path: path.stat().st_mtime_ns for path in drawn if path != drawn[1]}
    again = report_prior(faces, tmp_path / "cut", config, show=False)
    assert again.reused == 1
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert again.figures["identity"] == pytest.approx(whole.figures["identity"], rel=0.02, abs=1e-3)


def test_other_settings_are_not_mixed_in(place: tuple[str, Path, str], tmp_path: Path) -> None:
    prior, faces, _ = place
    out = tmp_path / "report"
    report_prior(faces, out, PriorReportConfig(prior=prior, **QUICK), show=False)  # type: ignore[arg-type]
    other = PriorReportConfig(prior=prior, **{**QUICK, "seed": 1})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="other settings.*--overwrite"):
        report_prior(faces, out, other, show=False)
    assert report_prior(faces, out, other, overwrite=True, show=False).reused == 0


def test_a_folder_of_others_is_left_alone(place: tuple[str, Path, str], tmp_path: Path) -> None:
    prior, faces, _ = place
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(OutputError, match="not made by this command"):
        report_prior(faces, tmp_path / "mine", PriorReportConfig(prior=prior), overwrite=True, show=False)


def test_bad_calls_end_before_anything_is_measured(place: tuple[str, Path, str], tmp_path: Path) -> None:
    prior, faces, restorer = place
    with pytest.raises(ConfigError, match="needs both"):
        PriorReportConfig(restorer=restorer)
    wrong = PriorReportConfig(prior=prior, restorer=restorer, degrade="no-such", **QUICK)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Unknown degradation"):
        report_prior(faces, tmp_path / "out", wrong, show=False)
    with pytest.raises(InputFileError, match="at least 8"):
        few = write_faces(tmp_path / "few", make_faces(7))
        report_prior(few, tmp_path / "out", PriorReportConfig(prior=prior), show=False)
    assert not (tmp_path / "out").exists()


def test_the_command(place: tuple[str, Path, str], tmp_path: Path) -> None:
    prior, faces, _ = place
    args = ["prior-report", prior, "--faces", str(faces), "-o", str(tmp_path / "r"), "--count", "3"]
    args += ["--fast-steps", "1", "--sample-steps", "1", "--precision", "fp32", "--no-progress"]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, result.output
    assert "index.html" in result.output
    again = CliRunner().invoke(main, [*args, "--json"])
    assert json.loads(again.stdout)["frechet"]["count"] == 3
