"""`ufr-edge degrade` and degrade_folder: same names, seeds by name, broken files named, nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from clips import picture, write_picture

from ufr_edge.cli import main
from ufr_edge.degradations import PRESETS, degrade
from ufr_edge.degradations import folder as folder_module
from ufr_edge.degradations.folder import RECORD, DegradeConfig, degrade_folder, picture_seed
from ufr_edge.errors import ConfigError, InputFileError, OutputError
from ufr_edge.runtime.images import read_image, write_image

LIGHT = DegradeConfig(preset="classic-light", seed=5)


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """Three pictures of different formats and sizes."""
    (tmp_path / "clean").mkdir()
    for number, name in enumerate(("a.png", "b.bmp", "c.jpg")):
        write_picture(tmp_path / "clean" / name, picture(number, size=(48 + 16 * number, 64)))
    return tmp_path / "clean"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["degrade", *map(str, arguments)])


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


def test_folder_keeps_stems_and_sizes_and_records_the_settings(tmp_path: Path, clean: Path) -> None:
    result = run("-i", clean, "-o", tmp_path / "bad", "--preset", "raw-iso1500-x4", "--seed", "5")
    assert result.exit_code == 0, result.output
    assert "3 pictures (raw-iso1500-x4, seed 5)" in result.output
    assert names(tmp_path / "bad") == ["a.png", "b.png", "c.png", RECORD]
    for source in clean.iterdir():
        bad, good = read_image(tmp_path / "bad" / f"{source.stem}.png"), read_image(source)
        assert bad.shape == good.shape and (bad != good).any()
        seed = picture_seed(5, source.name)
        np.testing.assert_array_equal(bad, degrade(good, "raw-iso1500-x4", seed=seed))
    record = json.loads((tmp_path / "bad" / RECORD).read_text())
    assert record["preset"] == "raw-iso1500-x4" and record["seed"] == 5 and record["side"] is None
    assert record["degradation"] == json.loads(json.dumps(PRESETS["raw-iso1500-x4"].describe()))


def test_one_picture(tmp_path: Path, clean: Path) -> None:
    assert run("-i", clean / "c.jpg", "-o", tmp_path / "bad").exit_code == 0
    assert names(tmp_path / "bad") == ["c.png", RECORD]


def test_a_draw_follows_from_seed_and_name_alone(tmp_path: Path, clean: Path) -> None:
    degrade_folder(clean, tmp_path / "all", LIGHT)
    degrade_folder(clean / "c.jpg", tmp_path / "alone", LIGHT)
    degrade_folder(clean / "c.jpg", tmp_path / "other", DegradeConfig(preset="classic-light", seed=6))
    everything, alone, other = (read_image(tmp_path / f / "c.png") for f in ("all", "alone", "other"))
    np.testing.assert_array_equal(everything, alone)
    assert (other != alone).any()
    assert picture_seed(5, "a.png") == picture_seed(5, "a.jpg") != picture_seed(5, "b.png")


def test_side_makes_the_shorter_side_so_long(tmp_path: Path, clean: Path) -> None:
    assert run("-i", clean, "-o", tmp_path / "bad", "--side", "32").exit_code == 0
    sizes = {path.stem: read_image(path).shape[:2] for path in (tmp_path / "bad").glob("*.png")}
    assert {min(size) for size in sizes.values()} == {32}
    height, width = read_image(clean / "a.png").shape[:2]
    assert sizes["a"][1] / sizes["a"][0] == pytest.approx(width / height, rel=0.05)


def test_broken_files_are_named_counted_and_left_out(tmp_path: Path, clean: Path) -> None:
    (clean / "broken.jpg").write_bytes(b"hello")
    (clean / "empty.png").touch()
    (clean / "notes.txt").write_text("no picture, and not meant as one")
    seen: list[int] = []
    report = degrade_folder(clean, tmp_path / "bad", LIGHT, watch=seen.append)
    assert report.written == ("a.png", "b.png", "c.png") and seen == [5] * 5
    assert [name for name, _ in report.skipped] == ["broken.jpg", "empty.png"]
    assert set(json.loads((tmp_path / "bad" / RECORD).read_text())["skipped"]) == {"broken.jpg", "empty.png"}
    result = run("-i", clean, "-o", tmp_path / "bad", "--overwrite")
    assert result.exit_code == 0
    assert "left out 2 files" in result.stderr and "broken.jpg" in result.stderr


def test_no_good_picture_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "clean").mkdir()
    (tmp_path / "clean" / "x.png").write_bytes(b"hello")
    result = run("-i", tmp_path / "clean", "-o", tmp_path / "bad")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ") and "x.png" in result.stderr and result.stderr.count("\n") == 1
    assert names(tmp_path) == ["clean"]


@pytest.mark.parametrize("missing", ["none", "none.png"])
def test_missing_input_is_an_error_naming_it(tmp_path: Path, missing: str) -> None:
    with pytest.raises(InputFileError, match=missing):
        degrade_folder(tmp_path / missing, tmp_path / "bad", LIGHT)
    assert names(tmp_path) == []


def test_two_pictures_of_one_stem_are_refused(tmp_path: Path, clean: Path) -> None:
    write_picture(clean / "a.bmp", picture(9))
    with pytest.raises(InputFileError, match=r"a\.png"):
        degrade_folder(clean, tmp_path / "bad", LIGHT)
    assert not (tmp_path / "bad").exists()


def test_an_existing_output_is_replaced_only_when_told(tmp_path: Path, clean: Path) -> None:
    degrade_folder(clean, tmp_path / "bad", LIGHT)
    before = (tmp_path / "bad" / "a.png").read_bytes()
    refused = run("-i", clean, "-o", tmp_path / "bad", "--seed", "6")
    assert refused.exit_code == 1 and "--overwrite" in refused.stderr
    assert (tmp_path / "bad" / "a.png").read_bytes() == before
    (clean / "b.bmp").unlink()
    assert run("-i", clean, "-o", tmp_path / "bad", "--seed", "6", "--overwrite").exit_code == 0
    assert (tmp_path / "bad" / "a.png").read_bytes() != before
    assert names(tmp_path / "bad") == ["a.png", "c.png", RECORD]


def test_overwrite_spares_folders_it_did_not_make(tmp_path: Path, clean: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    for out in (tmp_path / "mine", clean, tmp_path, clean / "a.png"):
        with pytest.raises(OutputError, match="another output"):
            degrade_folder(clean, out, LIGHT, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    assert names(clean) == ["a.png", "b.bmp", "c.jpg"]


def test_a_stop_midway_leaves_nothing(tmp_path: Path, clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Path] = []

    def stop(path: Path, frame: np.typing.NDArray[np.uint8]) -> None:
        if done:
            raise KeyboardInterrupt
        done.append(path)
        write_image(path, frame)

    monkeypatch.setattr(folder_module, "write_image", stop)
    assert run("-i", clean, "-o", tmp_path / "bad").exit_code == 4
    assert done and names(tmp_path) == ["clean"]


def test_list_needs_no_input_and_names_every_preset() -> None:
    result = run("--list")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.output.splitlines()] == list(PRESETS)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--preset", "clasic"), 1, "classic-heavy"),
        (("--side", "0"), 2, "--side"),
        (("--seed", "x"), 2, "--seed"),
    ],
)
def test_wrong_settings(
    tmp_path: Path, clean: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    result = run("-i", clean, "-o", tmp_path / "bad", *arguments)
    assert result.exit_code == code and words in result.output
    assert not (tmp_path / "bad").exists()


def test_side_below_1_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="side"):
        DegradeConfig(preset="classic", side=0)
