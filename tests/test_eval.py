"""`ufr-edge eval`: pairing, presets, columns, settings, what is not measured, and the files it writes."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from training_fakes import SIDE, make_faces, save_small_prior, save_small_restorer, small_prior, write_faces

from ufr_edge.adaptation import eval_run
from ufr_edge.adaptation.eval_run import EvalConfig, EvalOutputs, evaluate
from ufr_edge.adaptation.evaluate import (
    Meters,
    Truth,
    feature_distance,
    measure,
    measure_faces,
    no_reference_figures,
    reference_figures,
)
from ufr_edge.adaptation.faces import source_of
from ufr_edge.adaptation.pictures import sheet
from ufr_edge.cli import main
from ufr_edge.degradations.presets import degrade
from ufr_edge.errors import ConfigError, InputFileError, ModelFileError, OutputError, ShapeError
from ufr_edge.metrics.fid_inception import FidInception
from ufr_edge.metrics.lpips_net import NETS, Lpips
from ufr_edge.metrics.quality import QualitySettings, psnr
from ufr_edge.priors.features import PriorFeatures
from ufr_edge.weights.cards import eval_table

LQ = "classic-light"


@pytest.fixture(autouse=True)
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setenv("UFR_OFFLINE", "1")


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    return write_faces(tmp_path / "clean", make_faces(6))


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    return write_faces(
        tmp_path / "bad", np.stack([degrade(f, LQ, seed=i) for i, f in enumerate(make_faces(6))])
    )


@pytest.fixture
def restorer(tmp_path: Path) -> str:
    return save_small_restorer(tmp_path / "small.safetensors")


def config(**values: object) -> EvalConfig:
    """Settings without the landmark detector, which finds nothing in blobs."""
    return dataclasses.replace(EvalConfig(degrade=(LQ,), truth=Path("x"), landmarks=False), **values)  # type: ignore[arg-type]


def test_degrading_on_the_fly_is_the_same_as_degraded_files(clean: Path, bad: Path, restorer: str) -> None:
    fly = evaluate(config(truth=clean, restorers=(restorer,)), show=False)
    files = evaluate(config(truth=clean, faces=bad, degrade=(), restorers=(restorer,)), show=False)
    assert set(fly.figures) == {LQ} and set(files.figures) == {"given"}
    assert fly.figures[LQ] == files.figures["given"]
    assert list(fly.figures[LQ]) == ["input", "small"]
    assert fly.figures[LQ]["input"]["psnr_db"] != fly.figures[LQ]["small"]["psnr_db"]
    assert fly.settings["seed"] == "face i, by name, has 0 + i"
    other = evaluate(config(truth=clean, seed=1, side=SIDE), show=False)
    assert other.figures[LQ]["input"]["psnr_db"] != fly.figures[LQ]["input"]["psnr_db"]


def test_figures_of_each_preset_and_restorer_stand_side_by_side(
    clean: Path, restorer: str, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    second = tmp_path / "run" / "weights.safetensors"
    second.write_bytes(Path(restorer).read_bytes())
    prior = save_small_prior(tmp_path / "prior")
    both = config(
        truth=clean, degrade=(LQ, "classic-heavy"), restorers=(restorer, str(second), restorer), prior=prior
    )
    report = evaluate(both, show=False)
    for preset in (LQ, "classic-heavy"):
        columns = report.figures[preset]
        assert list(columns) == ["input", "small", "run"]
        assert columns["small"] == columns["run"]
        assert {"prior_feature_distance", "prior_frechet_distance", "hf_energy_ratio"} <= set(columns["run"])
    assert report.figures[LQ]["input"]["psnr_db"] > report.figures["classic-heavy"]["input"]["psnr_db"]


def test_restorers_of_one_name_keep_their_paths_apart(clean: Path, restorer: str, tmp_path: Path) -> None:
    other = tmp_path / "other" / "small.safetensors"
    other.parent.mkdir()
    other.write_bytes(Path(restorer).read_bytes())
    report = evaluate(config(truth=clean, restorers=(restorer, str(other))), show=False)
    assert list(report.figures[LQ]) == ["input", restorer, str(other)]


def test_settings_state_how_psnr_was_taken(clean: Path, bad: Path) -> None:
    plain = config(truth=clean, faces=bad, degrade=(), side=SIDE)
    quality = QualitySettings(border=4, colour="y", match_mean_std=True)
    cut = dataclasses.replace(plain, quality=quality)
    reports = [evaluate(settings, show=False) for settings in (plain, cut)]
    stated = [report.to_json()["settings"]["psnr_ssim"] for report in reports]
    assert (stated[0]["colour"], stated[0]["border_px"], stated[0]["match_mean_std"]) == ("rgb", 0, False)
    assert (stated[1]["colour"], stated[1]["border_px"], stated[1]["match_mean_std"]) == ("y", 4, True)
    assert reports[0].figures["given"]["input"]["psnr_db"] != reports[1].figures["given"]["input"]["psnr_db"]
    truth = make_faces(6)
    lq = [degrade(f, LQ, seed=i) for i, f in enumerate(truth)]
    expected = np.mean([psnr(a, b, quality) for a, b in zip(lq, truth, strict=True)])
    assert reports[1].figures["given"]["input"]["psnr_db"] == pytest.approx(float(expected))


def test_what_has_no_weights_is_not_measured_and_says_why(clean: Path, tmp_path: Path) -> None:
    report = evaluate(config(truth=clean, side=SIDE), show=False)
    figures = report.figures[LQ]["input"]
    assert not {"lpips", "fid", "prior_feature_distance"} & set(figures)
    here = find_spec("lpips") is not None
    missing = "alexnet-owt-7be5be79.pth is not in" if here else "pip install --no-deps lpips"
    assert missing in report.not_measured["lpips"]
    assert (
        "--download" in report.not_measured["fid"]
        and "--prior" in report.not_measured["prior_feature_distance"]
    )
    assert "torchvision" not in report.not_measured["lpips"]  # it is not what is missing
    assert "lpips" not in report.settings and "fid" not in report.settings
    wrong = tmp_path / "wrong.pth"
    wrong.write_bytes(b"x")
    for option in ("lpips_backbone", "fid_backbone") if here else ("fid_backbone",):  # a file that was asked for must be right
        with pytest.raises(ModelFileError, match="another file"):
            evaluate(config(truth=clean, side=SIDE, **{option: wrong}), show=False)
    with pytest.raises(ConfigError, match="LPIPS is defined on"):
        evaluate(config(truth=clean, side=SIDE, lpips="squeeze"), show=False)


def test_lpips_and_fid_are_measured_where_they_load(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in sorted(clean.iterdir())[3:]:
        path.unlink()
    torch.manual_seed(0)
    lpips, inception = Lpips(NETS["alex"]), FidInception()
    lpips.lins.load_state_dict({k: torch.ones_like(v) for k, v in lpips.lins.state_dict().items()})
    monkeypatch.setattr(eval_run, "load_lpips", lambda *_, **__: lpips)
    monkeypatch.setattr(eval_run, "load_inception", lambda **_: inception)
    report = evaluate(config(truth=clean, side=SIDE), show=False)
    figures = report.figures[LQ]["input"]
    assert figures["lpips"] > 0 and math.isfinite(figures["fid"])
    assert "lpips" not in report.not_measured and "fid" not in report.not_measured
    assert report.settings["lpips"].startswith("v0.1, alex, at 64 px")
    assert "compare at equal counts only" in report.settings["fid"]
    # Statement 20: the count of images and the reference set
    assert report.settings["fid"].startswith(f"3 images against the 3 of {clean}, ")
    same = evaluate(config(truth=clean, faces=clean, degrade=(), side=SIDE), show=False).figures["given"][
        "input"
    ]
    assert same["lpips"] == 0 and same["fid"] == pytest.approx(0, abs=1e-6)


def test_means_by_source_follow_the_file_names(tmp_path: Path, clean: Path) -> None:
    for i, path in enumerate(sorted(clean.iterdir())):
        path.rename(path.with_name(f"{'b_one' if i < 2 else 'c'}_{i}.png"))
    report = evaluate(config(truth=clean, side=SIDE), show=False)
    groups = report.by_source[LQ]
    assert {k: v["input"]["faces"] for k, v in groups.items()} == {"b_one": 2, "c": 4}
    rows = [row for row in report.faces if row["source"] == "c"]
    assert groups["c"]["input"]["psnr_db"] == pytest.approx(float(np.mean([row["psnr_db"] for row in rows])))
    assert [source_of(n) for n in ("b_hmd_00804.jpg", "plain.png", "a_b.c_d.png")] == ["b_hmd", "", "a_b.c"]


def test_unusable_faces_take_their_partners_out(clean: Path, bad: Path) -> None:
    (bad / "face_002.png").write_bytes(b"no picture")
    (clean / "face_005.png").write_bytes(b"no picture")
    left = evaluate(config(truth=clean, faces=bad, degrade=(), side=SIDE), show=False)
    assert [name for name, _ in left.skipped] == ["face_002.png", "face_005.png"]
    for name in ("face_002.png", "face_005.png"):
        (bad / name).unlink()
        (clean / name).unlink()
    again = evaluate(config(truth=clean, faces=bad, degrade=(), side=SIDE), show=False)
    assert again.figures == left.figures and again.settings["faces"] == 4


def test_one_face_and_equal_faces(clean: Path, tmp_path: Path) -> None:
    for path in sorted(clean.iterdir())[1:]:
        path.unlink()
    prior = save_small_prior(tmp_path / "prior")
    one = config(truth=clean, faces=clean, degrade=(), side=SIDE, prior=prior)
    figures = evaluate(one, show=False).to_json()["figures"]["given"]["input"]
    assert figures["prior_feature_distance"] == pytest.approx(0, abs=1e-5)
    assert "prior_frechet_distance" not in figures  # one face has no covariance
    assert figures["psnr_db"] is None and figures["ssim"] == pytest.approx(1)  # infinite is no JSON


def test_a_cast_and_a_grid_are_told_beside_clean_faces(tmp_path: Path) -> None:
    truth = np.stack([cv2.GaussianBlur(face, (0, 0), 6) for face in make_faces(6)]).astype(np.int64)
    clean = write_faces(tmp_path / "smooth", truth.astype(np.uint8))
    grid = np.where(np.arange(SIDE) % 4 < 2, 2, -2)[:, None]
    spoilt = {"gridded": truth + grid, "reddened": truth + (12, 0, 0), "red and green": truth.copy()}
    spoilt["red and green"][::2] += (12, 0, 0)
    spoilt["red and green"][1::2] += (0, 12, 0)
    found = {}
    for name, faces in {"same": truth, **spoilt}.items():
        folder = write_faces(tmp_path / name, faces.clip(0, 255).astype(np.uint8))
        report = evaluate(config(truth=clean, faces=folder, degrade=(), side=SIDE), show=False)
        found[name] = report.figures["given"]["input"]
    same = found["same"]
    own = report.settings["grid_truth_levels"]
    assert (same["colour_cast"], same["flat_energy_ratio"]) == pytest.approx((0, 1))
    assert same["grid_levels"] == pytest.approx(own, abs=1e-4) and own < 0.3
    assert found["gridded"]["grid_levels"] == pytest.approx(2, rel=0.1) and found["gridded"]["colour_cast"] < 1
    assert found["reddened"]["colour_cast"] > 3 and found["reddened"]["grid_levels"] < 0.3
    assert found["reddened"]["colour_cast_common"] == pytest.approx(found["reddened"]["colour_cast"], rel=0.1)
    assert found["red and green"]["colour_cast_common"] < 0.7 * found["red and green"]["colour_cast"]
    assert {"colour_cast", "grid_levels", "flat_energy_ratio"} <= set(report.settings)
    assert eval_table(found).splitlines()[0].endswith("| colour cast | grid | flat areas |")


def test_whose_face_it_is_is_told_for_the_input_and_each_restorer(
    clean: Path, restorer: str, tmp_path: Path
) -> None:
    prior = save_small_prior(tmp_path / "prior")
    report = evaluate(config(truth=clean, restorers=(restorer,), prior=prior), show=False)
    assert {0 <= columns["own_is_nearest"] <= 1 for columns in report.figures[LQ].values()} == {True}
    assert "no face recogniser's" in report.settings["own_is_nearest"]
    assert "--prior" in evaluate(config(truth=clean, side=SIDE), show=False).not_measured["own_is_nearest"]
    faces = make_faces(6)
    for name, order, share in (("same", [0, 1, 2, 3, 4, 5], 1), ("swapped", [1, 0, 2, 3, 4, 5], 4 / 6)):
        folder = write_faces(tmp_path / name, faces[order])
        given = evaluate(config(truth=clean, faces=folder, degrade=(), side=SIDE, prior=prior), show=False)
        assert given.figures["given"]["input"]["own_is_nearest"] == pytest.approx(share)


def test_without_truth_only_what_needs_none(bad: Path) -> None:
    report = evaluate(config(truth=None, faces=bad, degrade=(), side=SIDE), show=False)
    figures = report.figures["given"]["input"]
    assert set(figures) == {"noise_sigma", "high_frequency_energy", "input_consistency_db"}
    assert "--truth" in report.not_measured["psnr_db"]


def test_landmarks_are_measured_and_missing_faces_counted(clean: Path) -> None:
    report = evaluate(config(truth=clean, landmarks=True, side=SIDE), show=False)
    figures = report.figures[LQ]["input"]
    # The blobs are no faces: nothing is found, no distance is made up, and the count says so.
    assert figures["landmark_none"] == 6 == report.settings["landmark_truth_none"]
    assert "landmark_px512" not in figures and "pixels at 512 px" in report.settings["landmark_px512"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"degrade": ()}, "Nothing to measure"),
        ({"truth": None}, "Nothing to measure"),
        ({"faces": Path("y")}, "either -i or --degrade"),
        ({"degrade": ("classik",)}, "Unknown degradation"),
        ({"side": 100}, "multiple of 32"),
    ],
)
def test_settings_that_do_not_fit_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config(**values)


def test_restorers_of_two_sides_need_a_choice(clean: Path, restorer: str) -> None:
    with pytest.raises(ConfigError, match="edge-m-256 256 px"):
        evaluate(config(truth=clean, restorers=(restorer, "edge-m-256")), show=False)
    larger = evaluate(config(truth=clean, restorers=(restorer,), side=96), show=False)
    assert larger.settings["side"] == 96 and larger.shown[LQ]["small"].shape == (6, 96, 96, 3)


def test_pairs_without_a_usable_face_are_said(clean: Path, bad: Path) -> None:
    for path in bad.iterdir():
        if path.name != "face_000.png":
            path.write_bytes(b"no picture")
    (clean / "face_000.png").write_bytes(b"no picture")
    with pytest.raises(InputFileError, match="First problem"):
        evaluate(config(truth=clean, faces=bad, degrade=()), show=False)


def test_names_that_differ_are_said(clean: Path, bad: Path) -> None:
    (bad / "face_001.png").rename(bad / "other.png")
    with pytest.raises(InputFileError, match=r"other\.png .*face_001\.png"):
        evaluate(config(truth=clean, faces=bad, degrade=()), show=False)


def test_files_are_written_and_not_overwritten(clean: Path, restorer: str, tmp_path: Path) -> None:
    outputs = EvalOutputs(report=tmp_path / "r.json", per_image=tmp_path / "f.csv", sheet=tmp_path / "s.jpg")
    settings = config(truth=clean, degrade=(LQ, "classic"), restorers=(restorer,))
    report = evaluate(settings, outputs, show=False)
    assert json.loads((tmp_path / "r.json").read_text()) == json.loads(json.dumps(report.to_json()))
    with (tmp_path / "f.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 6 and rows[0]["face"] == "face_000.png" and float(rows[0]["psnr_db"]) > 10
    for preset in (LQ, "classic"):
        picture = cv2.imread(str(tmp_path / f"s-{preset}.jpg"))
        assert picture is not None and picture.shape[1] == 3 * (3 * SIDE) + 2 * 12  # two faces each: 3 strips
    with pytest.raises(OutputError, match="--overwrite"):
        evaluate(dataclasses.replace(settings, truth=tmp_path / "nothing"), outputs, show=False)
    evaluate(settings, outputs, overwrite=True, show=False)
    with pytest.raises(OutputError, match="no picture's name"):
        evaluate(settings, EvalOutputs(sheet=tmp_path / "s.txt"), show=False)


def test_a_sheet_of_many_faces_is_shrunk_and_in_order() -> None:
    faces = np.stack([np.full((128, 128, 3), 10 * i, np.uint8) for i in range(7)])
    picture = sheet({"input": faces, "truth": faces}, across=3, side=64)
    assert picture.shape == (26 + 3 * 64, 3 * 128 + 2 * 12, 3)
    assert picture[26 + 32, 32, 0] == 0 and picture[26 + 2 * 64 + 32, 32, 0] == 20
    assert picture[26 + 32, 128 + 12 + 32, 0] == 30 and picture[26 + 32, 2 * 140 + 96, 0] == 60


def test_figures_of_stacks_agree_however_they_are_asked_for() -> None:
    truth = make_faces(5)
    lq = np.stack([degrade(face, LQ, seed=i) for i, face in enumerate(truth)])
    features = PriorFeatures(small_prior())
    joint = measure({"a": lq}, lq, truth, features)["a"]
    assert joint == {**reference_figures(lq, truth, features), **no_reference_figures(lq, lq)}
    assert joint["prior_feature_distance"] == pytest.approx(feature_distance(lq, truth, features))
    assert reference_figures(truth, truth, None)["hf_energy_ratio"] == pytest.approx(1)
    figures = measure_faces(lq, lq, Truth.of(truth, Meters()), Meters())
    assert figures.means(np.array([3]))["psnr_db"] == pytest.approx(psnr(lq[3], truth[3]))
    with pytest.raises(ShapeError, match="same shape"):
        reference_figures(lq[:2], truth, None)


def test_the_command_prints_figures_settings_and_what_is_missing(clean: Path, restorer: str) -> None:
    arguments = ["eval", "--truth", str(clean), "--degrade", LQ, "--restorer", restorer, "--no-landmarks"]
    result = CliRunner().invoke(main, [*arguments, "--border", "2", "--by-source"])
    assert result.exit_code == 0, result.output
    for words in (
        "psnr_db",
        "colour rgb, border_px 2, match_mean_std off",
        "not measured: lpips",
        "face small",
    ):
        assert words in result.output
    printed = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert set(printed) == {"settings", "figures", "by_source", "not_measured", "skipped"}
    wrong = CliRunner().invoke(main, ["eval", "--truth", str(clean)])
    assert wrong.exit_code == 1 and "--degrade PRESET" in wrong.output
