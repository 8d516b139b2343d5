"""Write the tables of docs/sounds_and_events.md from what the examples wrote into docs/results.

python scripts/time_table.py
"""

import json
import re
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "docs" / "results", ROOT / "docs" / "sounds_and_events.md"
FILES = ("spoken_digits", "events", "cifar10", "timing_tasks")
METHODS = ("STBP", "STBP-N", "auto", "forward only")
MORE = ("unbiased", "no derivative")
#: What a task reports beside its score, and how the table calls it.
FACTS = {"spikes": "spikes", "loss": "loss", "latency": "first spike"}


def read(name: str) -> dict[str, Any]:
    """The results of an example; no tasks where it has not run."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"tasks": {}}
    return found


def of(task: dict[str, Any], method: str, what: str) -> float | None:
    """The mean over the runs that count."""
    own = [row[what] for row in task["runs"] if row["method"] == method and row.get("test")]
    return statistics.mean(own) if own else None


def score(task: dict[str, Any], method: str) -> str:
    """In the task's unit."""
    value = of(task, method, "test")
    if value is None:
        return "-"
    return f"{value:.1f}" if task["unit"] == "%" else f"{value:.2f}"


def joined(values: list[float | None]) -> str:
    """Numbers of all methods, in their order."""
    return " / ".join("-" if value is None else f"{value:.0f}" for value in values)


def comparison() -> str:
    """All tasks: score of each method, CPU seconds and memory."""
    lines = [
        "| data | network | STBP | STBP-N | NIT | forward only "
        "| CPU seconds | peak MiB | numbers |",
        "|---" * 9 + "|",
    ]
    for name in FILES:
        for task in read(name)["tasks"].values():
            data = task["data"] if task["unit"] else f"{task['data']} (less is better)"
            peaks = [task["peaks"].get(method, {}).get("tensors_mib") for method in METHODS]
            cells = [
                data,
                task["network"],
                *(score(task, method) for method in METHODS),
                joined([of(task, method, "cpu_seconds") for method in METHODS]),
                joined(peaks),
                f"[{name}.json](results/{name}.json)",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def timing() -> str:
    """The tasks whose answer lies in time, by all six methods."""
    methods = (*METHODS, *MORE)
    heads = ["NIT" if method == "auto" else method for method in methods]
    lines = ["| task | what | " + " | ".join(heads) + " |", "|---" * (2 + len(methods)) + "|"]
    for name, task in read("timing_tasks")["tasks"].items():
        unit = "accuracy, %" if task["unit"] == "%" else "distance"
        lines.append(f"| {name} | {unit} | " + " | ".join(score(task, m) for m in methods) + " |")
        for fact, called in FACTS.items():
            if any(fact in row for row in task["runs"]):
                cells = [of(task, method, fact) for method in methods]
                shown = ["-" if value is None else f"{value:.3g}" for value in cells]
                lines.append(f"| {name} | {called} | " + " | ".join(shown) + " |")
        seconds = [of(task, method, "cpu_seconds") for method in methods]
        shown = ["-" if value is None else f"{value:.0f}" for value in seconds]
        lines.append(f"| {name} | CPU seconds | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def steps() -> str:
    """What an optimizer step takes, all methods in turns in one process."""
    lines = [
        "| data | ms of a step | NIT over STBP-N | peak MiB, resident | of tensors |",
        "|---" * 5 + "|",
    ]
    for name in FILES:
        for task in read(name)["tasks"].values():
            spent, peaks = task.get("ms_of_a_step", {}), task["peaks"]
            if not all(method in spent for method in METHODS):
                continue
            memory = [
                joined([peaks.get(method, {}).get(what) for method in METHODS])
                for what in ("resident_mib", "tensors_mib")
            ]
            ratio = spent["auto"] / spent["STBP-N"]
            own = joined([spent[method] for method in METHODS])
            lines.append(f"| {task['data']} | {own} | {ratio:.2f} | {memory[0]} | {memory[1]} |")
    return "\n".join(lines)


def memory() -> str:
    """MiB of a learning step by length."""
    rows = read("long_sequences").get("peaks", [])
    lengths = sorted({row["steps"] for row in rows})
    lines = [
        "| MiB, resident (tensors) | " + " | ".join(f"T = {n}" for n in lengths) + " |",
        "|---" * (1 + len(lengths)) + "|",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = {row["steps"]: row for row in rows if row["method"] == method}
        cells = [f"{own[n]['resident_mib']:.0f} ({own[n]['tensors_mib']:.0f})" for n in lengths]
        lines.append(f"| {'NIT' if method == 'auto' else method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def written(page: str) -> str:
    """The page with its tables made anew: each stands between two comments that name it."""
    for name, make in TABLES.items():
        pattern = rf"(% {name}: made by [^\n]*\n).*?(\n% end of {name}\n)"
        page = re.sub(
            pattern, lambda m, make=make: f"{m[1]}\n{make()}\n{m[2]}", page, flags=re.DOTALL
        )
    return page


TABLES = {"comparison": comparison, "steps": steps, "timing": timing, "memory": memory}


def main() -> None:
    """Writes the page."""
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
