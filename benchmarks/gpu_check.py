"""All that has to be proved on a GPU, by one command, in eight minutes at most.

    python benchmarks/gpu_check.py

Stages run one after the other, each in a process of its own with a limit of its own: versions and
compilation of every kernel; the tests marked `gpu`; a learning step against snnTorch and
SpikingJelly; the same step as a CUDA graph; each kernel against a copy; a profile of a step;
training to an accuracy; and the rest of the grid of benchmarks/gpu.py while there is time. The
report is written after every stage. Called again with the same --output it goes on where it was
stopped, and repeats what has failed. It runs from the source tree, without an install.

    python benchmarks/gpu_check.py --device cpu --quick

tries the script itself on tiny sizes without a GPU: its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
#: The stages and the most seconds that each may take, those first that the others depend on.
LIMITS = {
    "versions": 90,
    "tests": 120,
    "headline": 90,
    "graph": 60,
    "kernels": 45,
    "profile": 40,
    "accuracy": 60,
    "grid": 240,
}
Report = dict[str, Any]


def report_of(path: Path) -> Report:
    """What earlier calls have found; a new report if there is none."""
    return json.loads(path.read_text()) if path.exists() else {"stages": {}}


def write(path: Path, report: Report) -> None:
    """All of it or nothing: a process that is killed here leaves the report before."""
    unfinished = path.with_suffix(".partial")
    unfinished.write_text(json.dumps(report, indent=1) + "\n")
    unfinished.replace(path)


def run_stage(name: str, command: list[str], result: Path, seconds: float) -> Report:
    """One stage in a process of its own.

    Args:
        name: The stage.
        command: What runs it.
        result: The file that it writes its result to.
        seconds: After so many it is ended.

    Returns:
        "state", one of "done", "failed" and "too long"; "seconds"; "result", as far as there is
        one; and the end of what it printed, if it failed.
    """
    result.unlink(missing_ok=True)
    shutil.rmtree(result.parent / name, ignore_errors=True)
    log = result.with_suffix(".log")
    started = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            state = "failed" if process.wait(seconds) else "done"
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            state = "too long"
    found: Report = {"state": state, "seconds": round(time.monotonic() - started, 1)}
    partly = result.parent / name / "gpu.json"  # what benchmarks/gpu.py writes as it goes
    for path in (result, partly):
        if path.exists() and "result" not in found:
            found["result"] = json.loads(path.read_text())
    if state != "done":
        found["output"] = log.read_text()[-2000:]
    return found


def run(args: argparse.Namespace, stages: dict[str, float], command: list[str]) -> Report:
    """All stages that are not done yet, as long as there is time."""
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "gpu_check.json"
    report = report_of(path)
    report["command"] = " ".join(["python", *sys.argv])
    deadline = time.monotonic() + 60 * args.minutes
    for name, limit in stages.items():
        if report["stages"].get(name, {}).get("state") == "done":
            print(f"{name}: done before")
            continue
        left = min(limit, deadline - time.monotonic())
        if left <= 0:
            print(f"{name}: no time left")
            report["stages"].setdefault(name, {"state": "no time left"})
        else:
            result = args.output / f"{name}.json"
            own = [*command, "--stage", name, "--result", str(result), "--seconds", f"{left:.0f}"]
            report["stages"][name] = run_stage(name, own, result, left)
            print(f"{name}: {report['stages'][name]['state']}", flush=True)
        write(path, report)
    return report


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--quick", action="store_true", help="tiny sizes, to try the script; goes with any device")
    add("--minutes", type=float, default=8.0, help="nothing runs longer than this; default: 8")
    add("--output", type=Path, help="folder; default: docs/benchmarks/gpu, quick: runs/gpu_check")
    add("--only", nargs="+", choices=LIMITS, default=list(LIMITS), help="some stages")
    add("--stage", choices=LIMITS, help=argparse.SUPPRESS)
    add("--result", type=Path, help=argparse.SUPPRESS)
    add("--seconds", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cpu" and not args.quick:
        parser.error("without a GPU there is only --device cpu --quick, which tries the script")
    docs = HERE.parent / "docs"
    default = HERE.parent / "runs" / "gpu_check" if args.quick else docs / "benchmarks" / "gpu"
    args.output = (args.output or default).resolve()
    if args.quick and args.output.is_relative_to(docs):
        parser.error("what --quick measures does not belong into docs/; name another place")
    return args


def main() -> None:
    args = parse_arguments()
    if args.stage:
        import gpu_stages  # torch and all that: in the stage's own process alone

        found = gpu_stages.STAGES[args.stage](args)
        write(args.result, found)
        raise SystemExit(found.get("failed", 0))
    command = [sys.executable, str(Path(__file__).resolve()), "--device", args.device]
    command += ["--quick"] if args.quick else []
    report = run(args, {name: LIMITS[name] for name in args.only}, command)
    if any(report["stages"][name]["state"] != "done" for name in args.only):
        raise SystemExit(f"Not all is done; see {args.output / 'gpu_check.json'}")


if __name__ == "__main__":
    main()
