"""Targets: provenance, weights, processes, teachers, kills, full disks."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import accelerate
import numpy as np
import pytest
from click.testing import CliRunner
from training_fakes import SIDE, make_faces, small_targets, write_faces

from ufr_edge.adaptation import targets as module
from ufr_edge.adaptation.finetune import FinetuneConfig, load_pairs, pair_source
from ufr_edge.adaptation.qa import QaConfig
from ufr_edge.adaptation.target_index import append_entries, digest, read_index, target_weights
from ufr_edge.adaptation.targets import CHOICE, TargetsConfig, make_targets
from ufr_edge.adaptation.workers import Workers, _accelerator
from ufr_edge.cli import main
from ufr_edge.errors import InputFileError, OutputError
from ufr_edge.priors.model import build_prior
from ufr_edge.restorers.edge import build_restorer
from ufr_edge.restorers.files import save_restorer

LOOSE = QaConfig(
    drift=(200, 300), drift_input=(200, 300), colour=(200, 300), noise=(200, 300), noise_chroma=(400, 500), clipped=(1, 2)
)


@pytest.fixture(autouse=True)
def no_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fakes are no faces: looking for some would only take time."""
    monkeypatch.setattr(module, "open_detector", lambda stack: (None, ()))


@pytest.fixture
def camera(tmp_path: Path) -> Path:
    return write_faces(tmp_path / "faces", make_faces(10))


@pytest.fixture
def config(tmp_path: Path) -> TargetsConfig:
    return small_targets(tmp_path, qa=LOOSE, batch=4, device="cpu")


def test_a_target_says_where_it_comes_from(camera: Path, config: TargetsConfig, tmp_path: Path) -> None:
    report = make_targets(camera, tmp_path / "t", config, show=False)
    assert report.verdicts == {"kept": 10, "down-weighted": 0, "rejected": 0}
    entry = read_index(tmp_path / "t")["face_000.png"]
    assert entry["sampler"] | {"start": 20, "hold_until": 10, "filter_n": 8, "samples": 1, "calls": 2} == entry["sampler"]
    assert entry["face_sha256"] == digest(make_faces(1)[0])
    assert len(entry["restorer_sha256"]) == len(entry["prior_sha256"]) == len(entry["target_sha256"]) == 64
    assert {"drift", "drift_input", "colour", "noise", "high_frequency_energy", "clipped"} <= set(entry["scores"])


def test_a_prior_of_another_side_is_told(camera: Path, config: TargetsConfig, tmp_path: Path) -> None:
    told: list[str] = []
    make_targets(camera, tmp_path / "a", config, tell=told.append, show=False)
    assert told == []
    small = build_prior(side=SIDE // 2, factor=4, channels=(32, 32), layers=1)
    small.save_pretrained(tmp_path / "small")
    other = dataclasses.replace(config, prior=str(tmp_path / "small"))
    make_targets(camera, tmp_path / "b", other, tell=told.append, show=False)
    assert len(told) == 1 and "trained at 32 px and the faces are 64 px" in told[0] and "wrong scale" in told[0]


def test_other_limits_judge_anew_without_drawing(camera: Path, config: TargetsConfig, tmp_path: Path) -> None:
    make_targets(camera, tmp_path / "t", config, show=False)
    scores = {name: entry["scores"]["colour"] for name, entry in read_index(tmp_path / "t").items()}
    order = sorted(scores, key=lambda name: scores[name])
    limits = (scores[order[5]], scores[order[8]])
    strict = dataclasses.replace(config, qa=dataclasses.replace(LOOSE, colour=limits))
    report = make_targets(camera, tmp_path / "t", strict, show=False)
    assert report.reused == 10 and report.verdicts == {"kept": 6, "down-weighted": 3, "rejected": 1}
    lines = (tmp_path / "t" / "index.jsonl").read_text().splitlines()
    assert len(lines) == 14  # append-only: ten drawn, four judged anew
    weights = target_weights(tmp_path / "t")
    assert weights[Path(order[9]).stem] == 0 and weights[Path(order[0]).stem] == 1


def test_training_draws_by_weight_and_never_what_was_rejected(camera: Path, tmp_path: Path) -> None:
    folder = write_faces(tmp_path / "t", make_faces(10, seed=1))
    weights = [1.0] * 8 + [0.25, 0.0]
    entries = [
        {"face": f"face_{i:03d}.png", "target": f"face_{i:03d}.png", "weight": w} for i, w in enumerate(weights)
    ]
    append_entries(folder / "index.jsonl", entries)
    pairs = load_pairs(camera, folder, SIDE)
    assert len(pairs.lq) == 9 and pairs.weights is not None
    draw = pair_source(pairs, FinetuneConfig(batch=2, flip=False))
    seen = np.concatenate([draw(step, slice(None))[0] for step in range(400)])
    counts = [int((seen == face).all((1, 2, 3)).sum()) for face in pairs.lq]
    assert 0.15 < counts[8] / np.mean(counts[:8]) < 0.4
    append_entries(folder / "index.jsonl", [{**entry, "weight": 0.0} for entry in entries[:2]])
    with pytest.raises(InputFileError, match=r"only 7 are fit.*--fidelity"):
        load_pairs(camera, folder, SIDE)


def test_a_torn_line_costs_one_target_only(camera: Path, config: TargetsConfig, tmp_path: Path) -> None:
    make_targets(camera, tmp_path / "t", config, show=False)
    index = tmp_path / "t" / "index.jsonl"
    index.write_bytes(index.read_bytes()[:-40])
    (tmp_path / "t" / "index.1.jsonl").write_text('{"face": "of a process that was killed", "target"')
    assert make_targets(camera, tmp_path / "t", config, show=False).reused == 9
    assert len(read_index(tmp_path / "t")) == 10 and not list((tmp_path / "t").glob("index.?.jsonl"))


def test_a_teacher_makes_the_targets(camera: Path, config: TargetsConfig, tmp_path: Path) -> None:
    teacher = build_restorer("edge-s")  # its output is its input
    save_restorer(teacher, tmp_path / "teacher.safetensors", arch="edge-s", side=2 * SIDE)
    taught = dataclasses.replace(config, teacher=str(tmp_path / "teacher.safetensors"))
    make_targets(camera, tmp_path / "a", config, show=False)
    make_targets(camera, tmp_path / "b", taught, show=False)
    own, others = read_index(tmp_path / "a"), read_index(tmp_path / "b")
    assert own["face_001.png"]["restorer_sha256"] != others["face_001.png"]["restorer_sha256"]
    assert own["face_001.png"]["target_sha256"] != others["face_001.png"]["target_sha256"]
    # The teacher works at twice the side and changes nothing, so only the resizing is left as a disagreement.
    restored = module.Atelier(taught).restore(make_faces(2))
    assert restored.shape == (2, SIDE, SIDE, 3) and np.abs(restored - make_faces(2).astype(int)).mean() < 1


def test_the_choice_is_made_once_and_kept(camera: Path, config: TargetsConfig, tmp_path: Path) -> None:
    auto = dataclasses.replace(config, auto=True, choose=dataclasses.replace(config.choose, probe=2, calls=1))
    first = make_targets(camera, tmp_path / "t", auto, show=False)
    assert first.choice is not None and first.choice.rungs and first.lines()[-1].startswith("10 targets")
    saved = json.loads((tmp_path / "t" / CHOICE).read_text())
    assert saved["sampler"]["start"] == first.sampler.start and len(saved["probe"]) == 2
    again = make_targets(camera, tmp_path / "t", auto, show=False)
    assert again.reused == 10 and again.sampler == first.sampler


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_too_little_room_is_said_before_anything_is_drawn(
    camera: Path, config: TargetsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1000, 1000, 0))
    with pytest.raises(OutputError, match=r"10 targets need about 0 MB"):
        make_targets(camera, tmp_path / "t", config, show=False)
    assert not list((tmp_path / "t").glob("*.png"))


def test_contradictions_on_the_command_line(camera: Path, tmp_path: Path) -> None:
    base = ["targets", "-i", str(camera), "-o", str(tmp_path / "t")]
    for extra, words in (
        (["--sampler", "auto", "--start", "60"], "--start"),
        (["--fidelity", "0.3", "--sampler", "auto"], "--sampler auto"),
        (["--truth", str(camera)], "--sweep"),
        (["--sweep", "--sampler", "auto"], "--sampler auto"),
        (["--sweep", "--fidelity", "0.3"], "--fidelity"),
        (["--sweep", "--real", str(camera)], "--real"),
        (["--sweep", "--samples", "2"], "--samples"),
        (["--sweep", "--no-qa"], "--no-qa"),
    ):
        result = CliRunner().invoke(main, [*base, *extra])
        assert result.exit_code == 2 and words in result.output


@pytest.mark.slow
def test_the_dials_curve_is_drawn(camera: Path, config: TargetsConfig, tmp_path: Path) -> None:
    words = ["targets", "-i", str(camera), "-o", str(tmp_path / "t"), "--sweep", "--truth", str(camera)]
    words += ["--restorer", config.restorer, "--prior", config.prior, "--fast-steps", "2", "--no-progress"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "t" / "sweep.json").read_text())["rows"]
    assert [row["fidelity"] for row in rows] == [0, 0.25, 0.5, 0.75, 1]
    assert {"psnr_db", "prior_feature_distance"} <= set(rows[0])
    assert "data:image/png" in (tmp_path / "t" / "sweep.html").read_text()


def test_statement_6_another_camera_with_the_same_restored_faces_gives_the_same_targets(
    camera: Path, config: TargetsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statement 6, through `make_targets`: of the faces it is given only what the restorer made of them counts."""
    other = write_faces(tmp_path / "other", make_faces(10, seed=5))
    config = dataclasses.replace(config, batch=10)
    made = {}
    for restored_seed, folder, out in ((8, camera, "a"), (8, other, "b"), (9, camera, "c")):
        fixed = make_faces(10, seed=restored_seed)
        monkeypatch.setattr(module, "restore_batch", lambda *_, fixed=fixed, **__: fixed)
        make_targets(folder, tmp_path / out, config, show=False)
        made[out] = [path.read_bytes() for path in sorted((tmp_path / out).glob("*.png"))]
    assert len(made["a"]) == 10 and made["a"] == made["b"]
    assert not set(made["a"]) & set(made["c"])


def test_the_shares_of_two_processes_are_what_one_draws(
    camera: Path, config: TargetsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the slow test with real processes below, one after another in this one."""
    make_targets(camera, tmp_path / "one", config, show=False)
    for index in (0, 1):  # each into a folder of its own, or the second would find the first's share done
        workers = Workers("cpu")
        workers.index, workers.count = index, 2
        monkeypatch.setattr(module, "Workers", lambda _, workers=workers: workers)
        make_targets(camera, tmp_path / f"of{index}", config, show=False)
    one, first, second = ({p.name: p.read_bytes() for p in (tmp_path / n).glob("*.png")} for n in ("one", "of0", "of1"))
    assert (len(first), len(second)) == (6, 4)  # groups of 4 and 2, and of 4
    assert one == first | second
    shares = read_index(tmp_path / "of0") | read_index(tmp_path / "of1")
    assert read_index(tmp_path / "one") == shares


def test_nobody_draws_before_all_have_read_what_is_done(
    camera: Path, config: TargetsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a process would take faces that the first has drawn meanwhile for done before, and share out others."""
    seen: list[str] = []
    workers = Workers("cpu")
    (tmp_path / "t").mkdir()
    monkeypatch.setattr(module, "Workers", lambda _: workers)

    def read(*_: object, **__: object) -> dict[str, str]:
        seen.append("read")
        return {}

    monkeypatch.setattr(module, "_prepare", read)
    monkeypatch.setattr(workers, "wait", lambda: seen.append("wait"))
    monkeypatch.setattr(module._Maker, "make", lambda *_: seen.append("draw"))
    make_targets(camera, tmp_path / "t", config, show=False)
    assert seen == ["read", "wait", "draw", "draw", "draw", "wait", "wait"]


def test_processes_wait_for_each_other_as_long_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not ten minutes, NCCL's own limit: the first may choose the sampler for longer."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(accelerate, "Accelerator", lambda **options: given.update(options))
    _accelerator("cpu")
    (patience,) = (h.timeout for h in given["kwargs_handlers"] if isinstance(h, accelerate.InitProcessGroupKwargs))
    assert patience >= timedelta(days=1)


def launch(words: list[str], count: int) -> None:
    """Run a command in `count` processes that know of each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
    base = {k: v for k, v in os.environ.items() if k not in alone} | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    running = []
    for rank in range(count):
        known = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = base | ({k: str(v) for k, v in known.items()} if count > 1 else {})
        running.append(subprocess.Popen([sys.executable, "-m", "ufr_edge", *words], env=env))
    assert [process.wait(timeout=300) for process in running] == [0] * count


@pytest.mark.slow
def test_two_processes_draw_what_one_does(camera: Path, config: TargetsConfig, tmp_path: Path) -> None:
    for count in (1, 2):
        words = ["targets", "-i", str(camera), "-o", str(tmp_path / f"of{count}"), "--device", "cpu", "--no-progress"]
        words += ["--restorer", config.restorer, "--prior", config.prior, "--fast-steps", "2", "--batch", "3"]
        launch(words, count)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / f"of{n}").glob("*.png")} for n in (1, 2))
    assert len(one) == 10 and one == two
    own, shared = (read_index(tmp_path / f"of{n}") for n in (1, 2))
    assert own == shared and not list((tmp_path / "of2").glob("index.*.jsonl"))
