"""Many cameras in one call: one that fails stops no other, what is done is not done again, however many processes."""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result
from fleet_fakes import BREAK, REFUSE, fake_readapt, write_jobs
from test_readapt import QUICK, Sees
from tiny_bundle import write_tiny_bundle
from training_fakes import make_faces, save_small_prior, save_small_restorer, write_faces

from ufr_edge import __version__
from ufr_edge.adaptation import fleet, fleet_ray
from ufr_edge.adaptation.fleet import (
    CameraResult,
    CameraTask,
    FleetPlace,
    FleetReport,
    load_jobs,
    readapt_all,
)
from ufr_edge.adaptation.fleet_ray import RayConfig, readapt_on_ray
from ufr_edge.adaptation.readapt import ReadaptConfig, ReadaptReport, readapt
from ufr_edge.adaptation.workers import alone, is_main_process
from ufr_edge.cli import main
from ufr_edge.config import to_json
from ufr_edge.errors import (
    BackendUnavailableError,
    ConfigError,
    GateFailedError,
    InputFileError,
    OutputError,
    TrainingError,
)
from ufr_edge.export.bundle_export import ExportOptions, export_bundle
from ufr_edge.export.requests import EngineRequest
from ufr_edge.files import sha256_file, write_json
from ufr_edge.restorers.loading import load_any_restorer
from ufr_edge.runtime.lock import file_lock
from ufr_edge.runtime.registry import read_registry
from ufr_edge.runtime.versions import current_version, history, install_once, install_version, rollback

SEEDS = {"door": 1, "gate": REFUSE, "lost": 2, "yard": 3, "odd": BREAK, "hall": 4}


def states(report: FleetReport) -> dict[str, str]:
    return {item.camera: item.state for item in report.results}


def calls(out: Path) -> dict[str, int]:
    """How often each camera was adapted."""
    return {path.stem: len(path.read_text().split()) for path in sorted(out.glob("*.calls"))}


def run(jobs: Path, out: Path, **place: Any) -> FleetReport:
    return readapt_all(load_jobs(jobs), FleetPlace(out=out, **place), adapt=fake_readapt)


def test_settings_of_the_fleet_and_of_a_camera(tmp_path: Path) -> None:
    tasks = load_jobs(write_jobs(tmp_path, seeds={"door": 1, "yard": 2}))
    assert [task.name for task in tasks] == ["door", "yard"]
    assert tasks[1].faces == tmp_path / "faces" / "yard"
    config = tasks[1].config
    assert (config.steps, config.seed, config.limits.noise, config.limits.noise_levels) == (7, 2, 2.0, 0.5)
    assert config.limits.skill_db == 0.3
    assert (tasks[0].weights, tasks[0].real, tasks[0].keep) == (None, None, None)


CAMERA = '[[cameras]]\nname = "{}"\nbundle = "{}"\nfaces = "f"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cameras: this setting is required"),
        ("cameras = []", "there is no"),
        (CAMERA.format("a", "b") + CAMERA.format("A", "c"), "two cameras are named a"),
        (CAMERA.format("../up", "b"), "a name is of letters"),
        (CAMERA.format("", "b"), "a name is of letters"),
        (CAMERA.format("a", "b") + "settings = { stepz = 1 }", "camera 'a': settings.stepz.*'steps'"),
        (CAMERA.format("a", "b") + "settings = { held_out = 2.0 }", "holds out a share"),
        (CAMERA.format("a", "b") + "bundel = 1", "no such setting.*'bundle'"),
        (CAMERA.format("a", "site") + CAMERA.format("b", "site"), "folder of versions of two cameras"),
    ],
)
def test_a_jobs_file_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    write_jobs(tmp_path, seeds={})
    install_version(tmp_path / "site", tmp_path / "base.ufr")
    (tmp_path / "jobs.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_jobs(tmp_path / "jobs.toml")


def test_no_jobs_file(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="does not exist"):
        load_jobs(tmp_path / "jobs.toml")


def test_one_that_fails_stops_no_other(tmp_path: Path) -> None:
    jobs, out = write_jobs(tmp_path, seeds=SEEDS, missing="lost"), tmp_path / "out"
    report = run(jobs, out)
    assert states(report) == {
        "door": "made",
        "gate": "refused",
        "lost": "failed",
        "yard": "made",
        "odd": "failed",
        "hall": "made",
    }
    reasons = {item.camera: item.reason for item in report.results}
    assert reasons["gate"].startswith("The new bundle is no better")
    assert reasons["lost"] == f"{tmp_path / 'faces' / 'lost'} does not exist."
    assert reasons["odd"].startswith("ZeroDivisionError")
    with pytest.raises(TrainingError, match="2 of 6 cameras failed: lost, odd"):
        report.raise_if_failed()
    # The same call again: what failed is tried again, nothing else.
    (tmp_path / "faces" / "lost").mkdir()
    second = run(jobs, out)
    assert {item.camera: item.new for item in second.results} == {
        name: name in ("lost", "odd") for name in SEEDS
    }
    assert calls(out) == {"door": 1, "gate": 1, "hall": 1, "lost": 1, "odd": 2, "yard": 1}
    assert states(second)["lost"] == "made"


def test_refused_is_no_failure(tmp_path: Path) -> None:
    report = run(write_jobs(tmp_path, seeds={"door": 1, "gate": REFUSE}), tmp_path / "out")
    with pytest.raises(
        GateFailedError, match="1 of 2 cameras were refused by a gate and keep their bundle: gate"
    ):
        report.raise_if_failed()
    run(write_jobs(tmp_path, seeds={"door": 1}), tmp_path / "out").raise_if_failed()


def test_other_settings_are_another_job(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(write_jobs(tmp_path, seeds={"gate": REFUSE, "door": 1}), out)
    report = run(write_jobs(tmp_path, seeds={"gate": 5, "door": 1}), out)
    assert states(report) == {"gate": "made", "door": "made"}
    assert calls(out) == {"door": 1, "gate": 2}
    # A result that was spoilt, or whose bundle is gone, is no result.
    (out / "door.json").write_text("{")
    (out / "gate" / "door.ufr").rename(tmp_path / "moved.ufr")
    report = run(write_jobs(tmp_path, seeds={"gate": 5, "door": 1}), out)
    assert states(report)["door"] == "made"
    assert calls(out) == {"door": 2, "gate": 3}


def test_what_is_made_is_in_the_registry(tmp_path: Path) -> None:
    jobs, out, registry = (
        write_jobs(tmp_path, seeds=SEEDS, missing="lost"),
        tmp_path / "out",
        tmp_path / "reg",
    )
    run(jobs, out)
    assert not registry.exists()
    report = run(jobs, out, registry=registry, keep_bundle=True)  # made before it was asked for
    found = read_registry(registry)
    made = {item.camera: item.model for item in report.results if item.state == "made"}
    assert {record.camera: record.id for record in found.records if record.camera} == made
    root = found.lineage(found.find(made["yard"]))[-1]
    assert root.manifest == read_registry(registry, camera="").records[0].manifest
    record = found.find(made["yard"])
    assert record.run is not None
    assert (record.run.faces, record.run.settings["steps"], record.run.prior) == (40, 7, "prior-256")
    assert record.run.figures["new"] == {"noise_sigma": 4.0}
    assert len(record.run.prior_sha256) == 64
    assert record.archive is not None
    before = calls(out)
    third = run(jobs, out, registry=registry)
    assert {name: count for name, count in calls(out).items() if name != "odd"} == {
        name: count for name, count in before.items() if name != "odd"
    }
    assert {item.model for item in third.results} == {item.model for item in report.results}


def test_a_registry_that_cannot_be_is_a_failure_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "reg").write_text("no folder")
    jobs = write_jobs(tmp_path, seeds={"door": 1})
    assert states(run(jobs, tmp_path / "out", registry=tmp_path / "reg")) == {"door": "failed"}
    (tmp_path / "reg").unlink()
    assert states(run(jobs, tmp_path / "out", registry=tmp_path / "reg")) == {"door": "made"}


def installing(bundle: Path, faces: Path, work: Path, config: ReadaptConfig, **given: Any) -> ReadaptReport:
    """As `fake_readapt`, into a folder of versions, and the work folder keeps records alone."""
    current = current_version(bundle).path
    made = fake_readapt(current, faces, work, config, camera=given["camera"])
    installed = install_once(bundle, made.bundle, keep=given["keep"])
    return replace(made, bundle=installed, installed=installed)


def install_another(site: Path, number: int) -> None:
    """What comes later by other ways, as from `ufr-edge watch`."""
    made = write_tiny_bundle(site.parent / f"later{number}.ufr", name=f"later{number}")
    install_version(site, made, keep=2)


def test_a_version_that_newer_ones_took_the_place_of_is_not_made_again(tmp_path: Path) -> None:
    """Neither where its parent is gone too, nor where a registry is asked for that it can no longer come into."""
    site, out = tmp_path / "base.ufr", tmp_path / "out"
    install_version(site, write_tiny_bundle(tmp_path / "first.ufr"))
    write_jobs(tmp_path, seeds={"door": 1})
    tasks = tuple(replace(task, keep=2) for task in load_jobs(tmp_path / "jobs.toml"))

    def call(**place: Any) -> CameraResult:
        (result,) = readapt_all(tasks, FleetPlace(out=out, **place), adapt=installing).results
        return result

    first = call(registry=tmp_path / "reg")
    assert (first.state, first.installed) == ("made", str(site / "versions" / "0002.ufr"))
    for number in (3, 4):
        install_another(site, number)
    assert [version.number for version in history(site)] == [3, 4]
    again = call(registry=tmp_path / "reg")
    assert again == replace(first, new=False) and again.model
    assert calls(out) == {"door": 1}
    # It was made without a registry, which is asked for too late.
    value = json.loads((out / "door.json").read_text())
    write_json(out / "door.json", {**value, "result": {**value["result"], "model": ""}})
    late = call(registry=tmp_path / "other")
    assert late.state == "made" and "cannot be added to the registry" in late.reason
    assert call() == replace(again, model="")
    assert calls(out) == {"door": 1}


def test_a_version_that_is_lost_is_made_again(tmp_path: Path) -> None:
    """The newest is never removed by `keep`: where it is gone, somebody took it away."""
    site = tmp_path / "base.ufr"
    install_version(site, write_tiny_bundle(tmp_path / "first.ufr"))
    tasks = load_jobs(write_jobs(tmp_path, seeds={"door": 1}))
    place = FleetPlace(out=tmp_path / "out")
    (first,) = readapt_all(tasks, place, adapt=installing).results
    rollback(site)
    Path(first.installed).rename(tmp_path / "taken.ufr")
    (second,) = readapt_all(tasks, place, adapt=installing).results
    assert (second.state, second.new) == ("made", True) and Path(second.bundle).is_dir()
    assert calls(tmp_path / "out") == {"door": 2}


def test_two_calls_at_once(tmp_path: Path) -> None:
    jobs = write_jobs(tmp_path, seeds={"door": 1})
    with file_lock(tmp_path / "out" / ".lock"), pytest.raises(OutputError, match="in use by another"):
        run(jobs, tmp_path / "out")


def test_ctrl_c_ends_all(tmp_path: Path) -> None:
    def stopped(*_: object, **__: object) -> Any:
        raise KeyboardInterrupt

    tasks = load_jobs(write_jobs(tmp_path, seeds={"door": 1, "yard": 2}))
    with pytest.raises(KeyboardInterrupt):
        readapt_all(tasks, FleetPlace(out=tmp_path / "out"), adapt=stopped)
    assert list((tmp_path / "out").glob("*.json")) == []


def invoke(monkeypatch: pytest.MonkeyPatch, *args: object) -> Result:
    monkeypatch.setattr(fleet, "readapt_all", functools.partial(readapt_all, adapt=fake_readapt))
    return CliRunner().invoke(main, ["readapt-all", *map(str, args)])


@pytest.mark.parametrize(
    ("seeds", "code"),
    [({"a": 1}, 0), ({"a": 1, "b": REFUSE}, 3), ({"a": BREAK, "b": REFUSE}, 1)],
)
def test_the_command_ends_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: dict[str, int], code: int
) -> None:
    jobs = write_jobs(tmp_path, seeds=seeds)
    result = invoke(monkeypatch, jobs, "-o", tmp_path / "out")
    assert result.exit_code == code, result.output
    for name in seeds:
        assert f"\n{name}" in result.stdout
    again = invoke(monkeypatch, jobs, "-o", tmp_path / "out", "--json")
    assert again.exit_code == code
    assert [item["camera"] for item in json.loads(again.stdout)] == list(seeds)


def test_a_helper_process_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    jobs = write_jobs(tmp_path, seeds={"a": REFUSE})
    result = invoke(monkeypatch, jobs, "-o", tmp_path / "out", "--json")
    assert (result.exit_code, result.output) == (3, "")


def test_keeping_bundles_needs_a_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = invoke(monkeypatch, tmp_path / "jobs.toml", "-o", tmp_path / "out", "--keep-bundle")
    assert result.exit_code == 2


def test_readapt_adds_what_it_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ufr_edge.adaptation.readapt.readapt", fake_readapt)
    write_jobs(tmp_path, seeds={"door": 1})
    args = [
        "readapt",
        "--bundle",
        str(tmp_path / "base.ufr"),
        "--faces",
        str(tmp_path / "faces"),
        "--steps",
        "9",
    ]
    args += ["--work", str(tmp_path / "out" / "work"), "--camera", "door", "--keep-bundle"]
    assert CliRunner().invoke(main, args).exit_code == 2
    (tmp_path / "out").mkdir()
    for _ in range(2):
        result = CliRunner().invoke(main, [*args, "--registry", str(tmp_path / "reg")])
        assert result.exit_code == 0, result.output
    parent, made = sorted(read_registry(tmp_path / "reg").records, key=lambda record: record.camera)
    assert (made.parent, made.camera, parent.run) == (parent.id, "door", None)
    assert made.run is not None
    assert made.run.settings["steps"] == 9
    assert made.archive is not None
    refused = CliRunner().invoke(main, [*args, "--registry", str(tmp_path / "none"), "--seed", str(REFUSE)])
    assert refused.exit_code == 3
    assert not (tmp_path / "none").exists()


def test_alone_hides_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "PMI_RANK", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.setenv(name, "3")
    assert not is_main_process()
    with pytest.raises(ZeroDivisionError), alone():
        assert is_main_process()
        assert not {"WORLD_SIZE", "PMI_RANK", "OMPI_COMM_WORLD_SIZE"} & set(os.environ)
        raise ZeroDivisionError
    assert os.environ["OMPI_COMM_WORLD_SIZE"] == "3"
    assert not is_main_process()


@pytest.mark.slow
def test_two_processes_make_what_one_makes(tmp_path: Path) -> None:
    jobs = write_jobs(tmp_path, seeds=SEEDS, missing="lost")
    reports = {}
    for count in (1, 2):
        out, registry = tmp_path / f"out{count}", tmp_path / f"reg{count}"
        outputs = launch([str(jobs), str(out), str(registry)], count)
        assert len(set(outputs)) == 1  # every process knows everything
        reports[count] = json.loads(outputs[0].replace(str(out), "OUT"))
        pids = {line for path in out.glob("*.calls") for line in path.read_text().split()}
        assert len(pids) == count
        assert all(n == 1 for n in calls(out).values())
    assert reports[1] == reports[2]
    files = [
        {
            path.name: json.loads(path.read_text())["run"]
            for path in (tmp_path / f"reg{n}" / "models").iterdir()
        }
        for n in (1, 2)
    ]
    assert files[0] == files[1]


@pytest.mark.slow
def test_with_the_real_thing(tmp_path: Path) -> None:
    restorer = load_any_restorer(save_small_restorer(tmp_path / "weights.safetensors"))
    requests = [EngineRequest(format="onnx", precision="fp32")]
    export_bundle(restorer, tmp_path / "base.ufr", formats=requests, options=ExportOptions(store_faces=False))
    write_faces(tmp_path / "faces", make_faces(16, seed=3))
    config = replace(QUICK, prior=save_small_prior(tmp_path / "prior"))
    task = CameraTask(
        name="door",
        bundle=tmp_path / "base.ufr",
        faces=tmp_path / "faces",
        config=config,
        real=write_faces(tmp_path / "real", make_faces(12, seed=5)),
    )
    place = FleetPlace(out=tmp_path / "out", registry=tmp_path / "reg", keep_bundle=True)
    for new in (True, False):
        report = readapt_all([task], place, adapt=functools.partial(readapt, detector=cast(Any, Sees())))
        (result,) = report.results
        assert (result.state, result.new) == ("made", new), result.reason
    found = read_registry(tmp_path / "reg")
    record = found.find(result.model)
    assert record.camera == "door"
    assert record.run is not None
    assert (record.run.faces, record.run.held_out, record.run.settings["steps"]) == (16, 3, 2)
    assert {"noise_sigma", "skill_psnr_db"} <= set(record.run.figures["new"])
    assert found.lineage(record)[-1].id == sha256_file(tmp_path / "base.ufr" / "manifest.json")
    stored = {path.suffix for path in (tmp_path / "reg").rglob("*") if path.is_file()}
    assert stored == {".json", ".ufrz"}


def launch(arguments: list[str], count: int) -> list[str]:
    """Run the fleet of fakes in so many processes, as a launcher does; returns what each printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(Path(__file__).parent)}
    base = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")} | own
    command = [sys.executable, "-m", "fleet_fakes", *arguments]
    running = []
    for rank in range(count):
        env = dict(base)
        if count > 1:
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        pipe = subprocess.PIPE
        running.append(subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True))
    ended = [process.communicate(timeout=240) for process in running]
    for process, (_, errors) in zip(running, ended, strict=True):
        assert process.returncode == 0, errors
    return [out for out, _ in ended]


class FakeRay(ModuleType):
    """Ray's calls that are used, in one process: a task runs when its result is asked for."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.seen: list[tuple[str, object]] = []
        self.dead: set[str] = set()
        self.nobody = False
        self.exceptions = SimpleNamespace(RayError=type("RayError", (Exception,), {}))

    def init(self, *, address: str, log_to_driver: bool) -> None:
        if self.nobody:
            msg = f"Could not find any running Ray instance at {address}.\nMore lines."
            raise ConnectionError(msg)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))  # as the real one does
        self.seen.append(("init", address))

    def remote(self, **options: object) -> Callable[[Callable[..., object]], object]:
        self.seen.append(("remote", options))

        def wrap(function: Callable[..., object]) -> object:
            def begin(*args: Any) -> tuple[Callable[..., object], str]:
                json.dumps(args[:-1])  # what travels is plain
                name = args[0]["name"]

                def work() -> object:
                    if name in self.dead:
                        msg = "The worker died.\nunexpectedly"
                        raise self.exceptions.RayError(msg)
                    return function(*args)

                return work, name

            return SimpleNamespace(remote=begin)

        return wrap

    def wait(self, references: list[object], *, num_returns: int) -> tuple[list[object], list[object]]:
        return references[-num_returns:], references[:-num_returns]

    def get(self, reference: tuple[Callable[[], object], str]) -> object:
        return reference[0]()

    def shutdown(self) -> None:
        self.seen.append(("shutdown", None))


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


def on_ray(jobs: Path, out: Path, *, registry: Path | None = None, gpus: float = 0.0) -> FleetReport:
    config = RayConfig(address="auto", cpus=2, gpus=gpus)
    place = FleetPlace(out=out, registry=registry)
    return readapt_on_ray(load_jobs(jobs), place, config, adapt=fake_readapt)


def test_one_task_a_camera_on_ray(tmp_path: Path, ray: FakeRay) -> None:
    jobs = write_jobs(tmp_path, seeds=SEEDS, missing="lost")
    ray.dead = {"hall"}
    before = signal.getsignal(signal.SIGTERM)
    report = on_ray(jobs, tmp_path / "out", registry=tmp_path / "reg", gpus=0.5)
    assert signal.getsignal(signal.SIGTERM) is before
    here = run(jobs, tmp_path / "other", registry=tmp_path / "reg2")
    wanted = states(here) | {"hall": "failed"}
    assert states(report) == wanted
    assert [item.model for item in report.results if item.camera != "hall"] == [
        item.model for item in here.results if item.camera != "hall"
    ]
    reasons = {item.camera: item.reason for item in report.results}
    assert reasons["hall"] == "RayError: unexpectedly"
    assert ray.seen == [
        ("init", "auto"),
        ("remote", {"num_cpus": 2, "num_gpus": 0.5}),
        ("shutdown", None),
    ]
    # Again: what is done is not sent again.
    ray.dead = set()
    assert states(on_ray(jobs, tmp_path / "out", registry=tmp_path / "reg"))["hall"] == "made"
    assert calls(tmp_path / "out")["door"] == 1


def test_ray_that_does_not_answer(tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = write_jobs(tmp_path, seeds={"door": 1})
    ray.nobody = True
    with pytest.raises(BackendUnavailableError, match=r"No Ray cluster answers at auto \(Could not find"):
        on_ray(jobs, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendUnavailableError, match=r'pip install "ufr-edge\[ray\]"'):
        on_ray(jobs, tmp_path / "out")
    with pytest.raises(ConfigError, match="Ray needs an address"):
        RayConfig(address="")


def test_a_node_with_another_version_or_another_disk(tmp_path: Path, ray: FakeRay) -> None:
    jobs = write_jobs(tmp_path, seeds={"door": 1})
    task = load_jobs(jobs)[0]
    asked = to_json(task)
    paths = {"out": str(tmp_path / "out"), "registry": None}
    result = fleet_ray.on_worker(asked, paths, False, "0.0.9", fake_readapt)
    assert (result["state"], calls(tmp_path / "out")) == ("failed", {})
    assert f"has ufr-edge {__version__}, not 0.0.9" in result["reason"]

    def elsewhere(*args: Any, **given: Any) -> Any:
        made = fake_readapt(*args, **given)
        made.bundle.rename(tmp_path / "on-its-node.ufr")
        return made

    place = FleetPlace(out=tmp_path / "out")
    report = readapt_on_ray([task], place, RayConfig(address="auto"), adapt=elsewhere)
    assert "OUT must be on a shared disk" in report.results[0].reason


def test_the_command_on_ray(tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_ray, "readapt_on_ray", functools.partial(readapt_on_ray, adapt=fake_readapt))
    jobs = write_jobs(tmp_path, seeds={"door": 1, "gate": REFUSE})
    args = ["readapt-all", str(jobs), "-o", str(tmp_path / "out"), "--ray", "ray://head:10001"]
    result = CliRunner().invoke(main, [*args, "--ray-gpus", "1"])
    assert result.exit_code == 3, result.output
    assert ("init", "ray://head:10001") in ray.seen
    write_json(tmp_path / "out" / "gate.json", {})
    assert CliRunner().invoke(main, args).exit_code == 3
