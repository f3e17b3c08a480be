"""`ufr-edge stream`: from an address to an address, with a real engine, and what is left when it is stopped."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
from click.testing import CliRunner
from clips import picture, read_clip, write_clip
from tiny_bundle import write_tiny_bundle

from ufr_edge.cli import main
from ufr_edge.runtime.images import write_image

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny.ufr")


@pytest.fixture(autouse=True)
def logger_as_before() -> Iterator[None]:
    logger = logging.getLogger("ufr_edge")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers = handlers
    logger.setLevel(level)


@pytest.fixture
def camera(tmp_path: Path) -> str:
    """A test camera over a picture of our own, as scikit-image may not be there."""
    write_image(tmp_path / "scene.png", picture(5, size=(320, 200)))
    return f"synthetic://?size=320x180&rate=50&picture={tmp_path / 'scene.png'}"


def stream(*args: object) -> tuple[int, str, str]:
    given = ["stream", *(str(a) for a in args), "--engine-name", "ort-fp32", "--threads", "1"]
    result = CliRunner().invoke(main, given)
    return result.exit_code, result.stdout, result.stderr


def test_a_file_into_a_file_frame_by_frame(tmp_path: Path, bundle: Path) -> None:
    clip = write_clip(tmp_path / "in.mkv", 12)
    code, output, errors = stream(clip, tmp_path / "out.mkv", "--bundle", bundle)
    assert code == 0, errors
    assert len(read_clip(tmp_path / "out.mkv")) == 12
    assert "12 in, 12 out, 0 dropped" in output and "engine:   onnxruntime" in output


def test_latency_by_the_time_code_and_the_report(tmp_path: Path, bundle: Path, camera: str) -> None:
    report, record = tmp_path / "report.json", tmp_path / "record.mp4"
    code, output, errors = stream(
        camera, "null://", "--engine", bundle, "--frames", 30, "--latency", "--json", "--report", report,
        "--record", record,
    )  # fmt: skip
    assert code == 0, errors
    told = json.loads(output)
    assert told["stats"] | {"seconds": 0} == json.loads(report.read_text())["stats"] | {"seconds": 0}
    stats = told["stats"]
    assert stats["frames_in"] == 30 == stats["frames_out"] + stats["dropped_total"]
    assert stats["in_flight"] == 0 and stats["unreadable"] == 0
    assert stats["glass"]["count"] == stats["frames_out"] and stats["glass"]["p50_ms"] > 0
    assert abs(stats["glass"]["p95_ms"] - stats["age"]["p95_ms"]) < 50
    assert told["ended"] == "30 frames are done" and told["error"] is None
    assert len(read_clip(record)) == stats["frames_out"]


def test_json_lines_in_the_log(bundle: Path, camera: str) -> None:
    result = CliRunner().invoke(
        main,
        [
            "--log-level",
            "info",
            "stream",
            camera,
            "null://",
            "--bundle",
            str(bundle),
            "--frames",
            "3",
            "--log-json",
        ],
    )
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert [line["event"] for line in lines] == ["start", "stop"]
    assert lines[0]["level"] == "info" and lines[0]["message"].startswith("start: synthetic://")


def test_a_lost_source_is_exit_code_6_and_hides_the_password(tmp_path: Path, bundle: Path) -> None:
    report = tmp_path / "r.json"
    code, output, errors = stream(
        "rtsp://me:hunter2@127.0.0.1:9/x", "null://", "--bundle", bundle, "--reconnect", 1, "--timeout", 1,
        "--report", report,
    )  # fmt: skip
    assert code == 6
    assert (
        errors.startswith("error: rtsp://***@127.0.0.1:9/x is lost after 1 try") and errors.count("\n") == 1
    )
    assert "hunter2" not in output + errors


@pytest.mark.parametrize(
    ("sink", "words"),
    [
        ("display://", "screen"),
        ("http://127.0.0.1:1", ""),
        ("out.avi", "no video name"),
        ("ftp://x", "ftp://"),
    ],
)
def test_a_sink_that_cannot_be_is_told_before_the_source_is_opened(
    bundle: Path, sink: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    if sink.startswith("http") and (ROOT / "runtime" / "live" / "page.py").exists():
        pytest.skip("the live page is there")
    code, _, errors = stream("nowhere.mp4", sink, "--bundle", bundle)
    assert code == 1 and words in errors and "nowhere" not in errors


def test_names_with_the_time_let_the_same_command_run_again(tmp_path: Path, bundle: Path) -> None:
    clip = write_clip(tmp_path / "in.mkv", 3)
    names = (tmp_path / "out-%Y%m%d-%H%M%S.mkv", "--record", tmp_path / "rec-%Y%%.mkv")
    code, output, errors = stream(clip, *names, "--bundle", bundle)
    assert code == 0, errors
    (out,) = tmp_path.glob("out-2*.mkv")
    (record,) = tmp_path.glob("rec-*%.mkv")
    assert len(out.stem) == len("out-20260102-131415") and len(record.stem) == len("rec-2026%")
    assert len(read_clip(out)) == len(read_clip(record)) == 3 and f"sink:     {out}" in output
    code, _, errors = stream(clip, tmp_path / "a%20b.mkv", "--bundle", bundle)
    assert code == 1 and "write %% for a percent sign" in errors


def test_a_report_that_cannot_be_written_is_told_before_the_start(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "file").write_text("x")
    for bad, words in ((tmp_path / "file" / "r.json", "cannot be written"), (tmp_path, "is a folder")):
        code, output, errors = stream("nowhere.mp4", "null://", "--bundle", bundle, "--report", bad)
        assert code == 1 and words in errors and "nowhere" not in errors and output == ""
    good = tmp_path / "deep" / "r.json"
    stream("nowhere.mp4", "null://", "--bundle", bundle, "--report", good)
    assert list(good.parent.iterdir()) == []  # a check leaves nothing


def test_a_refused_network_sink_does_not_speak_of_sound(tmp_path: Path, bundle: Path) -> None:
    clip = write_clip(tmp_path / "in.mkv", 3)
    code, _, errors = stream(
        clip, "rtsp://me:hunter2@127.0.0.1:9/x", "--bundle", bundle, "--timeout", 1, "--reconnect", 0
    )
    assert code == 1 and "Connection refused" in errors
    assert "sound" not in errors and "kept" not in errors and "hunter2" not in errors


def test_a_zero_length_file_is_one_line(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "in.mp4").write_bytes(b"")
    code, _, errors = stream(tmp_path / "in.mp4", tmp_path / "out.mp4", "--bundle", bundle)
    assert code == 1 and errors.startswith("error: ") and errors.count("\n") == 1
    assert not (tmp_path / "out.mp4").exists()


def test_a_file_cut_in_mid_gop_leaves_what_could_be_read(tmp_path: Path, bundle: Path) -> None:
    clip = write_clip(tmp_path / "in.mkv", 60)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    code, _, errors = stream(clip, tmp_path / "out.mp4", "--bundle", bundle)
    assert code == 1 and "cut short" in errors and "--partial" not in errors  # which is a flag of `run`
    assert 5 < len(read_clip(tmp_path / "out.mp4")) < 60


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 4), (signal.SIGINT, 4), (signal.SIGKILL, -9)])
def test_stopped_under_load_what_was_written_can_be_played(
    tmp_path: Path, bundle: Path, camera: str, suffix: str, number: signal.Signals, code: int
) -> None:
    out, report = tmp_path / f"out{suffix}", tmp_path / "r.json"
    command = [
        sys.executable, "-m", "ufr_edge", "stream", camera.replace("rate=50", "rate=200"), str(out),
        "--bundle", str(bundle), "--engine-name", "ort-fp32", "--threads", "1", "--report", str(report),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        wait_for_bytes(process, out, 60_000)
        os.kill(process.pid, number)
        output, errors = process.communicate(timeout=40)
    finally:
        process.kill()
    assert process.returncode == code, errors
    assert playable(out) > 10
    if number != signal.SIGKILL:
        stats = json.loads(report.read_text())["stats"]
        assert stats["in_flight"] == 0 and len(read_clip(out)) == stats["frames_out"]
        assert "stopped by a signal" in output


def playable(path: Path) -> int:
    """Frames that a player shows: up to the packet that a kill has cut in two."""
    shown = 0
    with av.open(str(path)) as container, contextlib.suppress(av.error.InvalidDataError):
        for _ in container.decode(video=0):
            shown += 1
    return shown


def wait_for_bytes(process: subprocess.Popen[str], path: Path, size: int) -> None:
    until = time.monotonic() + 120
    while not path.exists() or path.stat().st_size < size:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "nothing was written"
        time.sleep(0.05)
