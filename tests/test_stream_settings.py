"""What the flags and the settings file of `stream` and `watch` become: the same stack as `run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from clips import read_clip, write_clip
from tiny_bundle import write_tiny_bundle

from ufr_edge.cli import main
from ufr_edge.cli import run as run_module
from ufr_edge.cli import stream as stream_module
from ufr_edge.errors import ConfigError
from ufr_edge.runtime.faces.stabilise import StabiliserConfig
from ufr_edge.runtime.live.session import LiveConfig
from ufr_edge.runtime.live.sinks import LIVE_ENCODE
from ufr_edge.runtime.run import RunConfig
from ufr_edge.runtime.versions import install_version

FACES = (
    "--min-face", "40", "--max-yaw", "30", "--restore-faces", "2", "--no-stabilise", "--grain", "0.5",
    "--detect-every", "5", "--codec", "h265", "--crf", "30", "--preset", "fast", "--threads", "1",
)  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny.ufr")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configs that would have been run; the commands end with an error."""
    kept: list[Any] = []

    def stop(*given: Any, **_: Any) -> None:
        kept.append(next(item for item in given if isinstance(item, (LiveConfig, RunConfig))))
        msg = "seen"
        raise ConfigError(msg)

    monkeypatch.setattr(stream_module, "open_stream", stop)
    monkeypatch.setattr(run_module, "run_path", stop)
    return kept


def call(*given: object) -> str:
    return CliRunner().invoke(main, [str(item) for item in given]).output


def test_stream_takes_the_face_and_output_settings_of_run(
    tmp_path: Path, bundle: Path, seen: list[Any]
) -> None:
    assert "seen" in call("stream", "in.mp4", "null://", "--bundle", bundle, *FACES)
    clip = write_clip(tmp_path / "in.mkv", 3)
    assert "seen" in call("run", "-i", clip, "-o", tmp_path / "o.mkv", "--engine", bundle, *FACES)
    live, film = seen
    assert live.pipeline == film.pipeline and live.pipeline.stabilise is None
    limits = live.pipeline.limits
    assert (limits.min_side, limits.max_yaw, limits.max_faces) == (40, 30, 2)
    assert live.pipeline.grain == 0.5 and live.pipeline.track.detect_every == 5
    encode = live.sink.encode
    assert (encode.codec, encode.crf, encode.preset, encode.threads) == ("h265", 30, "fast", 1)
    assert encode.extra == LIVE_ENCODE.extra and film.encode.extra == ()


def test_without_flags_each_keeps_its_own(tmp_path: Path, bundle: Path, seen: list[Any]) -> None:
    call("stream", "in.mp4", "null://", "--bundle", bundle)
    clip = write_clip(tmp_path / "in.mkv", 3)
    call("run", "-i", clip, "-o", tmp_path / "o.mkv", "--engine", bundle, "--max-faces", 3)
    live, film = seen
    assert live.sink.encode == LIVE_ENCODE and film.encode.crf == 18
    assert live.pipeline.stabilise == StabiliserConfig()
    assert film.pipeline.limits.max_faces == 3  # the older name in `run`


def test_the_settings_file_takes_them_too(tmp_path: Path, bundle: Path, seen: list[Any]) -> None:
    file = tmp_path / "s.json"
    file.write_text(
        '{"source": "in.mp4", "sink": "null://", "min_face": 33, "restore_faces": 1, "grain": 1, "crf": 28,'
        f' "no_stabilise": true, "codec": "h265", "preset": "ultrafast", "bundle": "{bundle}"}}'
    )
    assert "seen" in call("stream", "--config", file)
    (live,) = seen
    assert live.pipeline.limits.min_side == 33 and live.pipeline.limits.max_faces == 1
    assert live.pipeline.stabilise is None and live.sink.encode.codec == "h265"


def test_a_stream_into_an_h265_file(tmp_path: Path, bundle: Path) -> None:
    clip = write_clip(tmp_path / "in.mkv", 6)
    output = call(
        "stream", clip, tmp_path / "out.mkv", "--bundle", bundle, "--engine-name", "ort-fp32",
        "--codec", "h265", "--preset", "ultrafast", "--crf", "30", "--threads", "1",
    )  # fmt: skip
    assert "6 in, 6 out" in output and len(read_clip(tmp_path / "out.mkv")) == 6


def test_watch_has_the_same_settings_and_makes_a_token_for_a_page_for_others(
    tmp_path: Path, bundle: Path, seen: list[Any]
) -> None:
    install_version(tmp_path / "door", bundle)
    given = ("--bundle", tmp_path / "door", "--readapt", "off", "--restore-faces", "2", "--crf", "30")
    output = call("watch", "in.mp4", "http://0.0.0.0:0", *given)
    (live,) = seen
    assert live.pipeline.limits.max_faces == 2 and live.sink.encode.crf == 30
    assert f"token: {live.sink.token} " in output and len(live.sink.token) == 32
