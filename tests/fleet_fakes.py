"""A re-adaptation that costs nothing, and a fleet of it as a program: `python -m fleet_fakes JOBS OUT REGISTRY`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tiny_bundle import write_tiny_bundle

from ufr_edge.adaptation.fleet import FleetPlace, load_jobs, readapt_all
from ufr_edge.adaptation.readapt import STATE, ReadaptConfig, ReadaptReport
from ufr_edge.adaptation.readapt_faces import USED
from ufr_edge.adaptation.readapt_gate import GateReport
from ufr_edge.config import to_json
from ufr_edge.errors import GateFailedError, InputFileError
from ufr_edge.files import read_json, sha256_file, write_json

REFUSE, BREAK = 13, 14
"""Seeds with which a gate refuses, or something unforeseen happens."""


def fake_readapt(
    bundle: Path, faces: Path, work: Path, config: ReadaptConfig, *, camera: str, **_: Any
) -> ReadaptReport:
    """Leave what `readapt` leaves: a bundle with lineage that depends on the camera alone, and its state."""
    assert "WORLD_SIZE" not in os.environ
    if not faces.exists():
        msg = f"{faces} does not exist."
        raise InputFileError(msg)
    calls = work.with_name(f"{camera}.calls")
    calls.write_text((calls.read_text() if calls.exists() else "") + f"{os.getpid()}\n")
    if config.seed == REFUSE:
        msg = "The new bundle is no better, and the old one stays: noise left in levels: 9."
        raise GateFailedError(msg)
    if config.seed == BREAK:
        raise ZeroDivisionError
    made = work / "door.ufr"
    if not made.exists():
        work.mkdir(parents=True)
        _write_bundle(made, {"parent": sha256_file(bundle / "manifest.json"), "camera": camera})
        write_json(work / STATE, {"asked": {"config": to_json(config)}, "parent": str(bundle)})
        write_json(work / USED, {"faces": 40, "held_out": 8, "sha256": "f" * 64})
    figures = {"old": {"noise_sigma": 4.0}, "new": {"noise_sigma": 1.0 + config.seed}}
    return ReadaptReport(
        bundle=made, installed=None, gate=GateReport(figures=figures, reasons=(), faces=8), notes=()
    )


def _write_bundle(folder: Path, lineage: dict[str, str]) -> None:
    write_tiny_bundle(folder)
    value = read_json(folder / "manifest.json")
    write_json(folder / "manifest.json", {**value, "lineage": lineage})


def write_jobs(folder: Path, *, seeds: dict[str, int], missing: str = "") -> Path:
    """Write a jobs file with a bundle and faces; a camera for each seed, `missing` without its faces."""
    if not (folder / "base.ufr").exists():
        write_tiny_bundle(folder / "base.ufr")
    lines = ["[settings]", "steps = 7", "[settings.limits]", "noise = 2.0"]
    for name, seed in seeds.items():
        if name != missing:
            (folder / "faces" / name).mkdir(parents=True, exist_ok=True)
        lines += ["[[cameras]]", f'name = "{name}"', 'bundle = "base.ufr"', f'faces = "faces/{name}"']
        lines += [f"settings = {{ seed = {seed}, limits = {{ noise_levels = 0.5 }} }}"]
    (folder / "jobs.toml").write_text("\n".join(lines) + "\n")
    return folder / "jobs.toml"


def main() -> None:
    """Print the report as JSON."""
    jobs, out, registry = map(Path, sys.argv[1:])
    report = readapt_all(load_jobs(jobs), FleetPlace(out=out, registry=registry), adapt=fake_readapt)
    print(json.dumps([asdict(item) for item in report.results]))


if __name__ == "__main__":
    main()
