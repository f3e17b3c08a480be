"""`ufr-edge models` and the registry behind it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ufr_edge.cli import main
from ufr_edge.errors import ConfigError, InputFileError, ModelFileError
from ufr_edge.priors.files import load_prior
from ufr_edge.restorers import registry
from ufr_edge.restorers.loading import load_any_restorer
from ufr_edge.restorers.registry import (
    KNOWN_MODELS,
    accepted_licences,
    check_known,
    fetch_known,
    find_known,
    require_licence,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UFR_CACHE", str(tmp_path))
    monkeypatch.setenv("UFR_OFFLINE", "1")
    return tmp_path


def run(*args: str) -> Result:
    return CliRunner().invoke(main, ["models", *args])


def place(name: str, content: bytes = b"\x80\x02weights") -> Path:
    model = KNOWN_MODELS[name]
    for file in model.files:
        (model.folder / file.name).parent.mkdir(parents=True, exist_ok=True)
        (model.folder / file.name).write_bytes(b"{}" if file.name.endswith(".json") else content)
    return model.path


@pytest.mark.parametrize("name", KNOWN_MODELS)
def test_every_entry_is_whole(name: str) -> None:
    entry = KNOWN_MODELS[name]
    assert entry.name == name
    assert entry.files
    assert entry.code_licence
    assert entry.weights_licence
    assert entry.page.startswith("https://")
    # A licence that forbids commercial use is always asked for.
    forbids = any("non-commercial" in words for words in (entry.code_licence, entry.weights_licence))
    assert entry.restricted == forbids
    for file in entry.files:
        assert file.url.startswith("https://")
        assert file.url.endswith("/" + file.name)
        assert file.sha256 is None or (len(file.sha256) == 64 and file.size)


def test_no_shipped_model_has_the_name_of_a_known_one() -> None:
    rows = json.loads(run("list", "--json").output)
    names = [row["name"] for row in rows]
    assert len(set(names)) == len(names)
    assert {row["state"] for row in rows if row["name"] in KNOWN_MODELS} == {"not fetched"}


def test_list_and_info_tell_state_source_and_licence() -> None:
    place("gfpgan-1.4")
    listed = {line.split()[0]: line for line in run("list").output.splitlines()}
    assert " fetched " in listed["gfpgan-1.4"]
    assert "not fetched" in listed["codeformer"]
    shown = run("info", "codeformer").output
    for words in ("S-Lab", "not accepted yet", "376,637,898 bytes", "1009e537e0c2", "ufr-edge[codeformer]"):
        assert words in shown
    assert "sha256 not publicly known" in run("info", "iddpm-ffhq-512").output
    assert json.loads(run("info", "codeformer", "--json").output)["side"] == 512


def test_path_says_where_and_whether(cache: Path) -> None:
    missing = run("path", "iddpm-ffhq-512")
    wanted = cache / "models" / "iddpm-ffhq-512" / "iddpm_ffhq512_ema500000.pth"
    assert missing.stdout.strip() == str(wanted)
    assert "ufr-edge models fetch iddpm-ffhq-512" in missing.stderr
    place("iddpm-ffhq-512")
    assert run("path", "iddpm-ffhq-512").stderr == ""
    place("gfpgan-1.4", b"short")
    refused = run("path", "gfpgan-1.4", "--check")
    assert refused.exit_code == 1
    assert "it has 5 bytes, not 348,632,874" in refused.stderr


def test_a_restricted_licence_is_accepted_once() -> None:
    place("iddpm-ffhq-512")
    refused = run("fetch", "iddpm-ffhq-512")
    assert refused.exit_code == 1
    assert "S-Lab" in refused.stderr
    assert "--accept-licence" in refused.stderr
    fetched = run("fetch", "iddpm-ffhq-512", "--accept-licence")
    assert (fetched.exit_code, fetched.stdout.strip()) == (0, str(KNOWN_MODELS["iddpm-ffhq-512"].path))
    assert "only its length and kind were checked" in fetched.stderr
    assert run("fetch", "iddpm-ffhq-512").exit_code == 0
    assert list(accepted_licences()) == ["iddpm-ffhq-512"]
    assert "accepted" in run("accept", "codeformer").output
    assert sorted(accepted_licences()) == ["codeformer", "iddpm-ffhq-512"]


def test_licences_in_the_library() -> None:
    require_licence(KNOWN_MODELS["gfpgan-1.4"], accept=False)
    with pytest.raises(ConfigError, match="ufr-edge models accept codeformer"):
        require_licence(KNOWN_MODELS["codeformer"], accept=False)
    assert accepted_licences() == {}


def test_offline_fetch_names_the_url() -> None:
    result = run("fetch", "gfpgan-1.4")
    assert result.exit_code == 1
    assert "https://github.com/TencentARC/GFPGAN/releases/download/v1.3.4/GFPGANv1.4.pth" in result.stderr


def test_finding_by_name() -> None:
    assert find_known("edge-m-256", kind="restorer") is None
    assert find_known("iddpm-ffhq-512", kind="restorer") is None
    with pytest.raises(InputFileError, match="Run: ufr-edge models fetch swinir-face-gan --accept-licence"):
        find_known("swinir-face-gan", kind="restorer")
    path = place("swinir-face-gan")
    assert find_known("swinir-face-gan", kind="restorer") == path
    folder = place("ddpm-celebahq-256")
    assert folder.is_dir()
    assert fetch_known(KNOWN_MODELS["ddpm-celebahq-256"], show=False) == folder


def test_a_damaged_file_is_named() -> None:
    place("codeformer")
    with pytest.raises(ModelFileError, match=r"codeformer\.pth is damaged: it has 9 bytes.*codeformer --again"):
        check_known(KNOWN_MODELS["codeformer"])


def test_a_web_page_in_a_models_place_is_named_with_what_mends_it() -> None:
    path = place("iddpm-ffhq-512", b"<!DOCTYPE html><title>Sign in</title>")
    mend = "it is a web page, not a model. Run: ufr-edge models fetch iddpm-ffhq-512 --again"
    checked = run("path", "iddpm-ffhq-512", "--check")
    assert checked.exit_code == 1 and f"{path} is damaged: {mend}" in checked.stderr
    with pytest.raises(ModelFileError, match=mend):
        load_prior("iddpm-ffhq-512")
    place("swinir-face-gan", b"PK\x03\x04 and no end")
    with pytest.raises(ModelFileError, match="cut short.*models fetch swinir-face-gan --again"):
        load_any_restorer("swinir-face-gan")


def test_a_damaged_file_given_by_path_names_what_mends_it() -> None:
    path = place("swinir-face-gan")  # begins like a pickle, and ends there
    for source in (path, "swinir-face-gan"):
        with pytest.raises(ModelFileError, match="Run: ufr-edge models fetch swinir-face-gan --again"):
            load_any_restorer(source)
    folder = place("ddpm-celebahq-256")
    (folder / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ModelFileError, match="Run: ufr-edge models fetch ddpm-celebahq-256 --again"):
        load_prior(folder)


def test_again_fetches_every_file_of_a_model_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    place("ddpm-celebahq-256")
    asked: list[tuple[str, bool]] = []
    monkeypatch.setattr(registry, "fetch", lambda file, *_, again, **__: asked.append((file.name, again)))
    assert run("fetch", "ddpm-celebahq-256", "--again").exit_code == 0
    assert asked == [(file.name, True) for file in KNOWN_MODELS["ddpm-celebahq-256"].files]


def test_again_needs_the_network_and_keeps_what_is_here() -> None:
    path = place("ddpm-celebahq-256")
    refused = run("fetch", "ddpm-celebahq-256", "--again", "--offline")
    assert refused.exit_code == 1 and "has to be fetched again, and the network is switched off" in refused.stderr
    assert (path / "config.json").read_bytes() == b"{}"


def test_the_registry_loads_no_torch() -> None:
    code = "import sys, ufr_edge.cli.models; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "ufr_edge.restorers.registry" in loaded
    assert not set(loaded) & {"torch", "diffusers", "spandrel"}
