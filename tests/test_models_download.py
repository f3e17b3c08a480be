"""Fetching: resumed, checked, refused in words; against a server in the test."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save

from ufr_edge.downloads import RemoteFile, fetch, is_offline, misfit
from ufr_edge.errors import BackendUnavailableError, DownloadError, ModelFileError, OutputError
from ufr_edge.files import cache_folder

CONTENT = bytes(range(256)) * 4000
SHA = hashlib.sha256(CONTENT).hexdigest()
PAGE = b"\n<!DOCTYPE html><title>Sign in</title>"


def archive(seed: int = 0, *, old: bool = False) -> bytes:
    """What torch writes: an archive, or the pickle of old releases."""
    file = io.BytesIO()
    tensors = {"weight": torch.full((64, 64), float(seed))}
    torch.save(tensors, file, _use_new_zipfile_serialization=not old)
    return file.getvalue()


@dataclass
class Served:
    """What the server sends, and what it was asked."""

    content: bytes = CONTENT
    etag: str = '"one"'
    ranges: bool = True
    kind: str | None = None
    chunked: bool = False
    """Send in pieces of 1,000 bytes, and no length."""
    cut_after: list[int | None] = field(default_factory=list)
    """For each request: break off after so many bytes; None or nothing: send all."""
    asked: list[str | None] = field(default_factory=list)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    """A file server with byte ranges, If-Range, and lines that break."""

    def __init__(self, served: Served, *args: object) -> None:
        self.served = served
        super().__init__(*args)  # type: ignore[arg-type]

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        served, wanted = self.served, self.headers.get("Range")
        served.asked.append(wanted)
        if self.path == "/missing":
            self.send_error(404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and served.ranges else 0  # type: ignore[index]
        if self.headers.get("If-Range", served.etag) != served.etag:
            start = 0
        if wanted and start >= len(served.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(served.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._send(start)

    def _send(self, start: int) -> None:
        served, total = self.served, len(self.served.content)
        self.send_response(206 if start else 200)
        self.send_header("ETag", served.etag)
        sizes = ("Transfer-Encoding", "chunked") if served.chunked else ("Content-Length", str(total - start))
        self.send_header(*sizes)
        if served.kind:
            self.send_header("Content-Type", served.kind)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.end_headers()
        cut = served.cut_after.pop(0) if served.cut_after else None
        body = pieces(served.content[start:], cut) if served.chunked else served.content[start:][:cut]
        self.wfile.write(body)


def pieces(content: bytes, cut: int | None) -> bytes:
    """The chunks of `content`; all but the first `cut` bytes of it are left out, and the end with them."""
    parts = [content[i : i + 1000] for i in range(0, len(content), 1000)]
    whole = [b"%x\r\n%s\r\n" % (len(part), part) for part in parts]
    if cut is None:
        return b"".join(whole) + b"0\r\n\r\n"
    done, left = divmod(cut, 1000)
    return b"".join(whole[:done]) + b"%x\r\n%s" % (len(parts[done]), parts[done][:left])


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, served))
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}/model.pth"
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UFR_OFFLINE", "UFR_CACHE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def remote(served: Served, *, size: int | None = len(CONTENT), sha256: str | None = SHA) -> RemoteFile:
    return RemoteFile(url=served.url, name="model.pth", size=size, sha256=sha256)


def unknown(served: Served, name: str = "model.pth") -> RemoteFile:
    """A file of which neither size nor hash is publicly known."""
    return RemoteFile(url=served.url, name=name)


def get(served: Served, folder: Path, file: RemoteFile | None = None, *, attempts: int = 1) -> Path:
    return fetch(file or remote(served), folder, show=False, attempts=attempts, pause_s=0)


def test_a_file_is_fetched_once(served: Served, tmp_path: Path) -> None:
    path = get(served, tmp_path / "deep" / "cache")
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["model.pth"]
    assert get(served, path.parent) == path
    assert served.asked == [None]


def test_an_interrupted_download_goes_on_in_a_later_call(served: Served, tmp_path: Path) -> None:
    served.cut_after = [300_000]
    with pytest.raises(DownloadError, match=r"broke off after 300,000 bytes.*goes on from there"):
        get(served, tmp_path)
    assert (tmp_path / "model.pth.part").stat().st_size == 300_000
    assert not (tmp_path / "model.pth").exists()
    assert get(served, tmp_path).read_bytes() == CONTENT
    assert served.asked == [None, "bytes=300000-"]


def test_a_line_that_breaks_twice_is_taken_up_in_the_same_call(served: Served, tmp_path: Path) -> None:
    served.cut_after = [300_000, 200_000, None]
    assert get(served, tmp_path, attempts=3).read_bytes() == CONTENT
    assert served.asked == [None, "bytes=300000-", "bytes=500000-"]


@pytest.mark.parametrize("change", ["etag", "no ranges"])
def test_a_server_that_starts_anew_overwrites_the_part(served: Served, tmp_path: Path, change: str) -> None:
    served.cut_after = [300_000]
    with pytest.raises(DownloadError):
        get(served, tmp_path)
    if change == "etag":
        served.etag, served.content = '"two"', CONTENT[::-1]
    else:
        served.ranges = False
    digest = hashlib.sha256(served.content).hexdigest()
    assert get(served, tmp_path, remote(served, sha256=digest)).read_bytes() == served.content


def test_a_whole_part_of_unknown_size_is_kept(served: Served, tmp_path: Path) -> None:
    (tmp_path / "model.pth.part").write_bytes(CONTENT)
    assert get(served, tmp_path, remote(served, size=None)).read_bytes() == CONTENT
    assert served.asked == [f"bytes={len(CONTENT)}-"]


def test_a_part_longer_than_the_file_is_thrown_away(served: Served, tmp_path: Path) -> None:
    (tmp_path / "model.pth.part").write_bytes(CONTENT + b"more")
    assert get(served, tmp_path, remote(served, size=None), attempts=2).read_bytes() == CONTENT


def test_a_wrong_hash_keeps_nothing(served: Served, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=f"SHA-256 is {SHA}, not 0000"):
        get(served, tmp_path, remote(served, sha256="0" * 64))
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_release_is_refused(served: Served, tmp_path: Path) -> None:
    served.content = CONTENT[:1000]
    with pytest.raises(ModelFileError, match="it has 1,000 bytes, not 1,024,000"):
        get(served, tmp_path)
    assert not (tmp_path / "model.pth").exists()


def test_a_damaged_file_is_fetched_again(served: Served, tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(CONTENT[:-1] + b"x")
    assert get(served, tmp_path).read_bytes() == CONTENT


def test_an_answer_in_chunks_that_is_cut_goes_on_later(served: Served, tmp_path: Path) -> None:
    served.content, served.chunked, served.cut_after = archive(), True, [1024]
    with pytest.raises(DownloadError, match=r"broke off after 1,024 bytes \(the answer ended before its end\)"):
        get(served, tmp_path, unknown(served))
    assert (tmp_path / "model.pth.part").read_bytes() == served.content[:1024]
    assert not (tmp_path / "model.pth").exists()
    assert get(served, tmp_path, unknown(served)).read_bytes() == served.content
    assert served.asked == [None, "bytes=1024-"]


def test_a_web_page_takes_no_models_place_nor_that_of_a_part(served: Served, tmp_path: Path) -> None:
    served.content, served.cut_after = archive(), [1024]
    with pytest.raises(DownloadError):
        get(served, tmp_path, unknown(served))
    whole, served.content, served.kind, served.etag = served.content, PAGE, "text/html; charset=utf-8", '"page"'
    with pytest.raises(DownloadError, match=r"/model\.pth is a web page, not model\.pth: .*put it into") as caught:
        get(served, tmp_path, unknown(served), attempts=3)
    assert str(tmp_path) in str(caught.value) and len(served.asked) == 2  # another try would not mend it
    assert (tmp_path / "model.pth.part").read_bytes() == whole[:1024]
    served.content, served.kind, served.etag = whole, "application/octet-stream", '"one"'
    assert get(served, tmp_path, unknown(served)).read_bytes() == whole
    assert served.asked[-1] == "bytes=1024-"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.pth", PAGE, "a web page"),
        ("model.pth", b"", "empty"),
        ("model.pth", b'{"error": "not found"}', "neither an archive of torch"),
        ("model.pth", b"version https://git-lfs.github.com/spec/v1", "b'version http'"),
        ("model.pth", archive()[:-10], "cut short"),
        ("config.json", PAGE, "a web page"),
        ("config.json", b'{"side": 2', "no JSON"),
    ],
    ids=["page", "nothing", "json", "pointer", "cut archive", "page for json", "cut json"],
)
def test_what_is_no_model_is_not_kept(served: Served, tmp_path: Path, name: str, content: bytes, words: str) -> None:
    served.content, served.chunked = content, True  # no length to go by, and no text/html
    with pytest.raises(ModelFileError, match=words):
        get(served, tmp_path, unknown(served, name))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.pth", archive()),
        ("model.ckpt", archive(old=True)),
        ("model.safetensors", save({"weight": torch.zeros(2)})),
        ("config.json", json.dumps({"side": 256}).encode()),
    ],
    ids=["archive", "pickle", "safetensors", "json"],
)
def test_what_is_a_model_is_kept_without_a_hash(served: Served, tmp_path: Path, name: str, content: bytes) -> None:
    served.content = content
    assert get(served, tmp_path, unknown(served, name)).read_bytes() == content


def test_a_page_that_was_kept_earlier_is_fetched_again(served: Served, tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(PAGE)
    assert misfit(unknown(served), tmp_path / "model.pth") == "it is a web page, not a model"
    with pytest.raises(BackendUnavailableError, match="has to be fetched again, and the network is switched off"):
        fetch(unknown(served), tmp_path, offline=True)
    served.content = archive()
    assert get(served, tmp_path, unknown(served)).read_bytes() == served.content


def test_again_replaces_a_file_once_the_new_one_is_whole(served: Served, tmp_path: Path) -> None:
    path, file = tmp_path / "model.pth", unknown(served)
    again = partial(fetch, file, tmp_path, again=True, show=False, attempts=1, pause_s=0)
    path.write_bytes(archive(1))
    served.content = PAGE
    with pytest.raises(ModelFileError, match="web page"):
        again()
    served.content, served.cut_after = archive(2), [1024]
    with pytest.raises(DownloadError, match="goes on from there"):
        again()
    assert path.read_bytes() == archive(1) == get(served, tmp_path, file).read_bytes()
    assert again().read_bytes() == archive(2)
    assert served.asked == [None, None, "bytes=1024-"]
    assert [p.name for p in tmp_path.iterdir()] == ["model.pth"]


def test_what_the_server_refuses_is_named(served: Served, tmp_path: Path) -> None:
    missing = RemoteFile(url=served.url.replace("model.pth", "missing"), name="missing")
    with pytest.raises(DownloadError, match="/missing answered 404"):
        get(served, tmp_path, missing, attempts=3)
    assert len(served.asked) == 1


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="broke off after 0 bytes"):
        fetch(RemoteFile(url="http://127.0.0.1:9/x", name="x"), tmp_path, show=False, attempts=2, pause_s=0)


def test_offline_fails_in_words_and_uses_what_is_there(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackendUnavailableError, match="switched off.*Fetch http"):
        fetch(remote(served), tmp_path, offline=True)
    monkeypatch.setenv("UFR_OFFLINE", "1")
    with pytest.raises(BackendUnavailableError, match="switched off"):
        get(served, tmp_path)
    (tmp_path / "model.pth").write_bytes(CONTENT)
    assert get(served, tmp_path) == tmp_path / "model.pth"
    assert served.asked == []


def test_a_full_disk_is_seen_before_the_download(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(OutputError, match=r"1 MB free; 1 MB more are needed for model\.pth.*UFR_CACHE"):
        get(served, tmp_path)


def test_two_processes_do_not_write_one_part(served: Served, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    with (tmp_path / "model.pth.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="being fetched by another process"):
            get(served, tmp_path)


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "ufr-edge"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x" / "ufr-edge"
    monkeypatch.setenv("UFR_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


@pytest.mark.parametrize(("value", "off"), [("1", True), ("true", True), ("0", False), ("", False), ("no", False)])
def test_what_offline_means(monkeypatch: pytest.MonkeyPatch, value: str, off: bool) -> None:
    monkeypatch.setenv("UFR_OFFLINE", value)
    assert is_offline() is off
