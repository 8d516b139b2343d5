"""Every combination of versions that nit_snn claims to run with, each in an environment of its own.

    nox                      # all of them; with uv installed, packages are shared between them
    nox -s frameworks        # Python x torch x the two frameworks
    nox -s extras            # each extra of pyproject.toml alone, and none

What came of it is in docs/benchmarks/compatibility.json, row by row (`scripts/compatibility.py`).
"""

from pathlib import Path

import nox

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = False

#: The lower bounds of pyproject.toml, and whatever is newest.
TORCH = {"oldest": "torch==2.6.0", "newest": "torch"}
FRAMEWORKS = {
    "oldest": ("snntorch==0.9.4", "spikingjelly==0.0.0.0.14"),
    "newest": ("snntorch", "spikingjelly"),
}
COMBINATIONS = [
    ("3.11", "oldest", "oldest"),
    ("3.11", "oldest", "newest"),
    ("3.11", "newest", "newest"),
    ("3.12", "newest", "newest"),
    ("3.13", "newest", "oldest"),
    ("3.13", "newest", "newest"),
]
#: What depends on the frameworks and on torch; the rest of the suite is the project's own code.
TESTS = [
    str(next(Path("tests").rglob(f"test_{name}.py")))
    for name in [
        *("smoke", "swap", "neurons", "learner", "rules", "routes", "conditioned", "control"),
        *("oracle", "taps", "synapses", "interop_snntorch", "interop_spikingjelly"),
        *("golden", "cheap_estimate"),
    ]
]
TOOLS = ("pytest", "hypothesis", "pandas", "tensorboard", "matplotlib", "scipy")
PROJECT = nox.project.load_toml("pyproject.toml")["project"]
#: Each alone; "all" is what the other sessions and `make test` have. NIR carries a framework's net.
EXTRAS = ["none", *(extra for extra in PROJECT["optional-dependencies"] if extra != "all")]
EXTRAS += ["nir,snntorch"]


@nox.session
@nox.parametrize(
    "python,torch,frameworks", COMBINATIONS, ids=["-".join(each) for each in COMBINATIONS]
)
def frameworks(session: nox.Session, torch: str, frameworks: str) -> None:
    """The tests that concern the frameworks and torch; fewer, if they are named behind a --."""
    session.install(TORCH[torch], *FRAMEWORKS[frameworks], *TOOLS)
    session.install("--no-deps", "-e", ".")
    session.env["OMP_NUM_THREADS"] = "1"
    name = f"Python {session.python}, {torch} torch, {frameworks} frameworks"
    session.run("python", "scripts/compatibility.py", name, *(session.posargs or TESTS))


@nox.session(python="3.12")
@nox.parametrize("extra", EXTRAS, ids=EXTRAS)
def extras(session: nox.Session, extra: str) -> None:
    """What an extra is for, with that extra alone; all others are named where they are missing."""
    session.install("." if extra == "none" else f".[{extra}]", "pytest")
    session.env["OMP_NUM_THREADS"] = "1"
    arguments = ("--noconftest", "tests/docs/test_smoke.py")
    session.run("python", "scripts/compatibility.py", f"extra: {extra}", *arguments)
