"""What the networks of `adversarial_training.py` withstand, as a table; which of them differ."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from typing import Any

import torch

from nit_snn.robustness import mcnemar


def pairs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """McNemar's test of the methods, two by two, and of the runs of the same seed."""
    found = []
    for first, second in itertools.combinations(rows, 2):
        if first["seed"] == second["seed"] and first["method"] != second["method"]:
            told = [torch.tensor([c == "1" for c in row["withstood"]]) for row in (first, second)]
            names = {"first": first["method"], "second": second["method"], "seed": first["seed"]}
            found.append({**names, **asdict(mcnemar(*told))})
    return found


def table(results: dict[str, Any]) -> str:
    """What the networks withstand, and between which there is a difference."""
    lines = [
        "| training | seed | epochs | clean | EOT-PGD, worst gradient | APGD | black box "
        "| worst case | by chance |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        attacks = row["attacks"]

        def least(*words: str, attacks: dict[str, float] = attacks) -> str:
            return f"{min(v for name, v in attacks.items() if name.startswith(words)):.1f}"

        lines.append(
            f"| {row['method']} | {row['seed']} | {row['training']['epochs']} "
            f"| {row['clean']:.1f} | {least('EOT-PGD')} | {least('APGD')} "
            f"| {least('NAttack', 'Square')} | {row['worst']:.1f} "
            f"| {row['worst_by_chance']:.1f} |"
        )
    lines += [
        "",
        "| | seed | only the first withstands | only the second | p |",
        "|---|---|---|---|---|",
    ]
    for pair in results["pairs"]:
        lines.append(
            f"| {pair['first']} and {pair['second']} | {pair['seed']} | {pair['first_alone']} "
            f"| {pair['second_alone']} | {pair['p']:.2g} |"
        )
    return "\n".join(lines) + "\n"
