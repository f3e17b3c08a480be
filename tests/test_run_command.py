"""`ufr-edge run` with a real bundle on ONNX Runtime."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from click.testing import CliRunner
from clips import picture, read_clip, write_clip, write_picture
from tiny_bundle import write_tiny_bundle

from ufr_edge.cli import main
from ufr_edge.runtime.images import read_image
from ufr_edge.runtime.video.opening import builtin_picture
from ufr_edge.runtime.video.parts import PartWriter


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny.ufr")


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(
        main, ["run", "--threads", "1", "--engine-name", "ort-fp32", *map(str, arguments)]
    )
    return result.exit_code, result.output


def test_prints_what_runs_and_the_time_of_each_stage(tmp_path: Path, bundle: Path) -> None:
    source = write_picture(tmp_path / "in.png", builtin_picture())
    code, output = run("-i", source, "-o", tmp_path / "out.png", "--engine", bundle)
    assert code == 0, output
    for word in (
        "onnxruntime",
        "CenterFace",
        "decode",
        "detect",
        "warp",
        "restore",
        "paste",
        "encode",
        "p99",
    ):
        assert word in output
    assert "1 frames in, 1 out, 1 faces" in output
    assert (read_image(tmp_path / "out.png") != builtin_picture()).any()


def test_video_with_json(tmp_path: Path, bundle: Path) -> None:
    clip = write_clip(tmp_path / "in.mp4", 5)
    code, output = run("-i", clip, "-o", tmp_path / "out.mp4", "--engine", bundle, "--json", "--crf", "10")
    report = json.loads(output)
    assert (
        code == 0 and report["frames_in"] == report["frames_out"] == len(read_clip(tmp_path / "out.mp4")) == 5
    )
    assert report["engine"]["backend"] == "onnxruntime" and report["detector"]["device"]


def test_aligned_with_full_fidelity_gives_the_input(tmp_path: Path, bundle: Path) -> None:
    face = picture(2, size=(32, 32))
    source = write_picture(tmp_path / "in.png", face)
    code, output = run("-i", source, "-o", tmp_path / "out.png", "--engine", bundle, "--aligned", "-w", "1")
    assert code == 0, output
    np.testing.assert_array_equal(read_image(tmp_path / "out.png"), face)


STATEMENT_19 = """
import sys
from ufr_edge.cli import main
from ufr_edge.runtime.engines.base import Engine
passes, infer = [], Engine.infer
Engine.infer = lambda self, batch: (passes.append(len(batch)), infer(self, batch))[1]
try:
    main(sys.argv[1:])
except SystemExit as done:
    print("PASSES", done.code, sum(passes), *sys.modules)
"""


def test_statement_19_aligned_faces_take_one_pass_and_no_diffusion(tmp_path: Path, bundle: Path) -> None:
    """Statement 19: the command on aligned faces is the restorer alone; neither torch nor a prior is imported."""
    (tmp_path / "in").mkdir()
    for i in range(3):
        write_picture(tmp_path / "in" / f"{i}.png", picture(i, size=(32, 32)))
    given = ["run", "-i", tmp_path / "in", "-o", tmp_path / "out", "--engine", bundle, "--aligned", "--threads", "1"]
    words = [sys.executable, "-c", STATEMENT_19, *map(str, given)]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("PASSES")[1].split()
    assert shown[0] in ("0", "None") and len(list((tmp_path / "out").glob("*.png"))) == 3
    assert int(shown[1]) in (3, 4)  # and one to warm up
    assert not [name for name in shown if name.startswith(("torch", "diffusers", "ufr_edge.priors"))]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.png", None, "does not exist"),
        ("bad.png", b"hello", "no picture"),
        ("bad.mp4", b"hello", "cannot be opened as a video"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(
    tmp_path: Path, bundle: Path, name: str, content: bytes | None, words: str
) -> None:
    source = tmp_path / name
    if content is not None:
        source.write_bytes(content)
    code, output = run("-i", source, "-o", tmp_path / f"out-{name}", "--engine", bundle, "--json")
    assert code == 1
    assert output.startswith("error: ") and output.count("\n") == 1 and words in output
    assert not (tmp_path / f"out-{name}").exists()


def test_wrong_usage_is_exit_code_2(tmp_path: Path, bundle: Path) -> None:
    code, output = run("-i", "x.png", "-o", "y.png", "--engine", bundle, "-w", "3")
    assert code == 2 and "-w" in output


def test_an_interrupted_video_says_what_is_kept(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(source: str, out: Path, *_: object, **__: object) -> None:
        folder = out.parent / f".{out.name}.parts"
        folder.mkdir()
        with PartWriter(folder / "0000000.part") as part:
            packet = av.Packet(b"coded")
            packet.pts = packet.dts = 0
            part.add([packet] * 7)
            part.finish({})
        raise KeyboardInterrupt

    monkeypatch.setattr("ufr_edge.cli.run.run_path", stopped)
    code, output = run("-i", "in.mp4", "-o", tmp_path / "out.mp4", "--engine", bundle, "--json")
    assert code == 4 and "7 frames are finished and kept. The same command goes on" in output


@pytest.mark.slow
def test_workers_and_codec_from_the_command_line(tmp_path: Path, bundle: Path) -> None:
    stamps = [1000 * n for n in range(25)]  # three segments of ten seconds
    clip = write_clip(tmp_path / "in.mkv", pts=stamps, sound="aac")
    arguments = ("--workers", "2", "--codec", "h265", "--preset", "ultrafast", "--depth", "10", "--json")
    code, output = run("-i", clip, "-o", tmp_path / "out.mkv", "--engine", bundle, *arguments)
    assert code == 0, output
    assert json.loads(output)["frames_out"] == 25
    assert [round(when * 1000) for when, _ in read_clip(tmp_path / "out.mkv")] == stamps
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p10le"
