"""Measure the shipped weights and write docs/quality.md, each table under the command that gave it.

    python benchmarks/quality.py --faces VAL -o runs/quality [--adaptation runs/adaptation ...]

VAL: held-out clean aligned faces. runs/adaptation: what benchmarks/adaptation.py measured, to be taken in. What lies in
the output folder is not measured again, whatever the options; give --overwrite for that. The document shows above each
table the command that measured it (kept in index.json), and at its top the one that wrote it. The JSON is kept in
docs/measured/ as well, and taken from there on another machine, unless it is of earlier weights and measured now.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adaptation import RESULT
from adapted_tables import adaptation_sections, comparison, shown_folder
from dial_curve import commands as dial_commands
from dial_curve import section as dial_section
from linear_oracle import RESULT as ORACLE
from linear_oracle import section as oracle_section
from loop_claims import RESULT as LOOP
from loop_claims import section as loop_section
from measured import INDEX, KEPT, digests, earlier, keep, keep_run, read_index, take
from quality_asked import UNSEEN, asked
from target_ways import RESULT as WAYS
from target_ways import section as ways_section

from ufr_edge import __version__
from ufr_edge.adaptation.prior_pages import prior_markdown
from ufr_edge.files import atomic_file, read_json, write_json
from ufr_edge.weights import list_weights
from ufr_edge.weights.cards import command_block, eval_table, in_order, markdown_table, settings_line

CLASSIC = ("classic", "classic-light", "classic-heavy")
CAMERAS = ("raw-iso1500-x4", "raw-iso3000-x4", "codec-motion", "defocus")
DOC = Path("docs/quality.md")
COUNT = 64
PICTURE = (
    "![Generated people that training has not seen; above: classic-light, below: classic-heavy](faces.jpg)\n\n"
    "*Above classic-light, below classic-heavy: `python benchmarks/faces_picture.py`, generated people of the demo that "
    "training has not seen. edge-m-first is the first stage of training alone. Where nearly nothing is left of a face, the "
    "restorer draws somebody: the old woman is young and gains a shadow of glasses, the small child closes its mouth.*"
)
COMPARED = MappingProxyType(
    {
        "cost": "Calls of the prior a target: what fewer of them cost",
        "pairs": "Extra pairs from the estimated camera: do they help?",
        "targets": "Adapting by other targets",
    }
)
"""Options that take folders of benchmarks/adaptation.py differing in one setting, and the titles of their tables."""


@dataclass(frozen=True)
class Job:
    """Commands of ours (words after `ufr-edge`, folders as VAL, OUT) and the JSON they leave in OUT."""

    name: str
    title: str
    commands: tuple[tuple[str, ...], ...]
    result: str

    def words(self) -> list[str]:
        """All words of its commands."""
        return [word for words in self.commands for word in words]

    def shown(self, folder: Path) -> list[str]:
        """The commands as the document prints them, without this machine's folders."""
        out = shown_folder(folder)
        return [
            shlex.join(["ufr-edge", *(word.replace("OUT", out) for word in words)]) for words in self.commands
        ]


def evaluation(name: str, title: str, restorers: Sequence[str], presets: Sequence[str], *more: str) -> Job:
    """Restorers side by side on presets."""
    words = [
        "eval",
        "--truth",
        "VAL",
        *(w for preset in presets for w in ("--degrade", preset)),
        "--seed",
        "0",
    ]
    words += [w for restorer in restorers for w in ("--restorer", restorer)]
    words += [
        "--prior",
        "prior-256",
        *more,
        "-o",
        f"OUT/{name}.json",
        "--sheet",
        f"OUT/{name}.jpg",
        "--by-source",
    ]
    return Job(name, title, (tuple(words),), f"{name}.json")


def prior_job(prior: str, restorer: str, more: Sequence[str]) -> Job:
    """A report on a prior."""
    words = (
        "prior-report",
        prior,
        "--faces",
        "VAL",
        "-o",
        f"OUT/{prior}",
        "--restorer",
        restorer,
        "--degrade",
        UNSEEN,
    )
    return Job(prior, f"The prior: {prior}", ((*words, *more),), f"{prior}/report.json")


def plan(args: argparse.Namespace) -> list[Job]:
    """Everything to measure, in the order of the document."""
    models = list_weights()
    restorers = [m.name for m in models if m.kind == "restorer" and m.card.get("side", 256) == 256]
    main = args.restorer or ("edge-m-256" if "edge-m-256" in restorers else restorers[0])
    jobs = [
        evaluation("classic", "The classic blind degradations", restorers, CLASSIC),
        evaluation("cameras", "Cameras that training has not seen", restorers, CAMERAS),
        evaluation("side-384", "The same weights at 384 px", restorers, CLASSIC[:1], "--side", "384"),
        evaluation("side-512", "The same weights at 512 px", restorers, CLASSIC[:1], "--side", "512"),
    ]
    if args.first_stage:
        title = f"{main} beside {args.first_stage.name}, its first stage alone (L1 and log-MSE, neither perceptual nor adversarial)"
        jobs.append(evaluation("first-stage", title, (main, str(args.first_stage)), CLASSIC))
    fast = ("--fast-steps", str(args.fast_steps)) if args.fast_steps else ()
    more = ("--count", str(args.count), *fast, *(("--variances",) if args.variances else ()))
    jobs += [prior_job(m.name, main, more) for m in models if m.kind == "prior"]
    title = "One dial from realism to fidelity"
    return [*jobs, Job("dial", title, dial_commands(UNSEEN, main), "dial/sweep.json")]


def run(job: Job, args: argparse.Namespace) -> bool:
    """Run a job's commands unless its result lies there; whether they ran. Ends the program when one fails."""
    if (args.out / job.result).exists() and not args.overwrite:
        return False
    folders = {"VAL": args.faces}
    for words in job.commands:
        # Ours to replace: an earlier run may have stopped halfway. A prior report goes on where it stopped.
        again = ["--overwrite"] if words[0] in ("eval", "degrade") or args.overwrite else []
        real = [str(folders.get(word, word)).replace("OUT", str(args.out)) for word in words]
        print("ufr-edge", shlex.join([*real, *again]), flush=True)
        status = subprocess.run([sys.executable, "-m", "ufr_edge", *real, *again], check=False).returncode
        if status:
            sys.exit(f"stopped: that command ended with code {status}. Run this again to go on.")
    return True


def own_command(args: argparse.Namespace) -> str:
    """The command that writes the document, without this machine's folders and what only says when to measure."""
    words = ["python", "benchmarks/quality.py", "--faces", "VAL", "-o", shown_folder(args.out)]
    usual = {"restorer": None, "first_stage": None, "count": COUNT, "fast_steps": None}
    words += ["--variances"] if args.variances else []
    for name, value in usual.items():
        if (given := getattr(args, name)) != value:
            words += [f"--{name.replace('_', '-')}", Path(given).name if name == "restorer" else str(given)]
    if args.doc != DOC:
        words += ["--doc", args.doc.name]
    for name in ("adaptation", *COMPARED):
        if folders := getattr(args, name):
            words += [f"--{name}", *map(shown_folder, folders)]
    return shlex.join(words)


def render(
    jobs: Sequence[Job],
    out: Path,
    command: str,
    *,
    commands: Mapping[str, Sequence[str]] = MappingProxyType({}),
    notes: Mapping[str, Sequence[str]] = MappingProxyType({}),
    adapted: Sequence[Path] = (),
    compared: Mapping[str, Sequence[Path]] = MappingProxyType({}),
    oracle: Mapping[str, Any] | None = None,
    loop: Mapping[str, Any] | None = None,
    ways: Mapping[str, Any] | None = None,
    docs: Path = DOC.parent,
) -> str:
    """The document, from JSON files alone; its picture of the dial is written to `docs`.

    command: the one that writes it; commands: those that measured a job, by its name, where they are not its present
    ones; notes: paragraphs before a job's tables. adapted: folders of benchmarks/adaptation.py; compared: the same under
    a title, one table each. oracle, loop, ways: as linear_oracle.py,
    loop_claims.py and target_ways.py of benchmarks/ wrote them.
    """
    results = {job.name: read_json(out / job.result) for job in jobs}
    lead = (
        f"ufr-edge {__version__}. Written by `{command}`; no figure is typed by "
        "hand. VAL are held-out clean faces of other people than those of training. The commands leave sheets of 64 "
        "faces beside their JSON. What the figures mean, and what they do not, is said above each table. PSNR rewards "
        "blur: look at the sheets too. Feature distances are on the prior's own features, which training and adapting use as "
        "well: PSNR, detail and landmarks are the witnesses that they do not know."
    )
    told = asked(
        results,
        adapted,
        costs=compared.get(COMPARED["cost"], ()),
        pairs=compared.get(COMPARED["pairs"], ()),
        loop=loop,
        ways=ways,
    )
    parts = [
        "# Quality, measured",
        lead,
        "## What was asked, and what is",
        markdown_table(["asked", "is", ""], told),
        PICTURE,
    ]
    for job in jobs:
        made_by = commands.get(job.name, job.shown(out))
        body = section(made_by, results[job.name], docs)
        parts += [f"## {job.title}", *notes.get(job.name, ()), *body]
        parts += oracle_section(oracle) if oracle and job.name == "classic" else []
    parts += adaptation_sections(adapted)
    for title, folders in compared.items():
        if folders:
            parts += [f"## {title}", *comparison(folders, timed=title != COMPARED["pairs"])]
    parts += ways_section(ways) if ways else []
    parts += loop_section(loop) if loop else []
    return "\n\n".join(parts) + "\n"


def section(commands: Sequence[str], result: Mapping[str, Any], docs: Path) -> list[str]:
    """One job's tables under the commands that made them; a picture goes into the folder `docs`."""
    if "rows" in result:
        return dial_section(commands, result, docs)
    if result.get("kind") == "prior-report":
        return [prior_markdown({**result, "command": commands[0]})]
    tables = [
        part
        for preset, columns in in_order(result).items()
        for part in (f"**{preset}**", eval_table(columns))
    ]
    return ["\n".join(command_block(line) for line in commands), settings_line(result), *tables]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faces", type=Path, required=True, help="held-out clean aligned faces (VAL)")
    parser.add_argument(
        "--adaptation",
        type=Path,
        nargs="*",
        default=[],
        help="folders of benchmarks/adaptation.py to take in",
    )
    for name, title in COMPARED.items():
        about = f"the same, for the table: {title}"
        parser.add_argument(f"--{name}", type=Path, nargs="*", default=[], help=about)
    parser.add_argument("-o", "--output", dest="out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--doc", type=Path, default=DOC)
    parser.add_argument("--kept", type=Path, default=KEPT, help="where the JSON is kept [docs/measured]")
    parser.add_argument("--restorer", help="for the prior reports [edge-m-256]")
    parser.add_argument(
        "--first-stage", type=Path, help="run of its training without the sharp stage, to set beside it"
    )
    parser.add_argument("--count", type=int, default=COUNT, help="faces of a prior report")
    parser.add_argument("--fast-steps", type=int, help="calls of the prior per face in place of all")
    parser.add_argument(
        "--variances", action="store_true", help="the prior reports compare the sampler's variances too"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        help="measure these now, such as classic prior-256; the document has all that were measured",
    )
    parser.add_argument("--overwrite", action="store_true", help="measure everything again")
    return parser.parse_args(argv)


def measure(planned: Sequence[Job], args: argparse.Namespace) -> dict[str, list[str]]:
    """Run what is asked for and not there; return the commands that made each result, kept in the index after each."""
    known = {job["name"]: job for job in read_index(args.out)}
    made = {name: job["commands"] for name, job in known.items()}
    weights = {name: job.get("weights", {}) for name, job in known.items()}
    for job in planned:
        if (not args.only or job.name in args.only) and run(job, args):
            made[job.name], weights[job.name] = job.shown(args.out), digests(job.words())
        elif made.get(job.name, job.shown(args.out)) != job.shown(args.out):
            print(
                f"{job.name}: kept as it was measured before, with other options. To measure it again: --overwrite"
            )
        there = [job for job in planned if (args.out / job.result).exists()]
        entries = [
            index_entry(job, made.setdefault(job.name, job.shown(args.out)), weights.get(job.name, {}))
            for job in there
        ]
        write_json(args.out / INDEX, entries)
    return made


def index_entry(job: Job, commands: Sequence[str], weights: Mapping[str, str]) -> dict[str, Any]:
    """As benchmarks/cards.py and measured.py read it."""
    own = {"name": job.name, "title": job.title, "result": job.result}
    return {**own, "commands": list(commands), "weights": dict(weights)}


def _kept(path: Path) -> dict[str, Any] | None:
    return dict(read_json(path)) if path.is_file() else None


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, then write the document."""
    args = parse(argv)
    planned = plan(args)
    if not args.overwrite:
        take(args.kept, args.out, again=lambda name: not args.only or name in args.only)
    made = measure(planned, args)
    keep(args.out, args.kept)
    for folder in (*args.adaptation, *(one for name in COMPARED for one in getattr(args, name))):
        keep_run(folder, args.kept, RESULT)
    notes = {job["name"]: earlier(job.get("weights", {})) for job in read_index(args.out)}
    jobs = [job for job in planned if (args.out / job.result).exists()]
    compared = {title: getattr(args, name) for name, title in COMPARED.items()}
    text = render(
        jobs,
        args.out,
        own_command(args),
        commands=made,
        notes=notes,
        adapted=args.adaptation,
        compared=compared,
        oracle=_kept(args.kept / ORACLE),
        loop=_kept(args.kept / LOOP),
        ways=_kept(args.kept / WAYS),
        docs=args.doc.parent,
    )
    with atomic_file(args.doc) as beside:
        beside.write_text(text, encoding="utf-8")
    print(f"{args.doc}")


if __name__ == "__main__":
    main()
