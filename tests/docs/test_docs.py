"""The pages of docs/: complete, reachable from the index, and with no link or file that is not."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
import types
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
#: What examples and benchmarks write into docs is no page.
PAGES = sorted(
    p for p in DOCS.rglob("*.md") if not {"_build", "results", "benchmarks"} & set(p.parts)
)
TUTORIALS = sorted((DOCS / "tutorials").glob("[0-9][0-9]_*.md"))
PUBLIC = (
    "nit_snn",
    "datasets",
    "errors",
    "estimators.credit",
    "exchange",
    "gradients.synapses",
    "inspect.audit",
    "inspect.monitoring",
    "inspect.plotting",
    "inspect.probe",
    "loop",
    "neurons",
    "robustness",
)
#: Files that commands in the documents write, or that are named as another's.
NOT_HERE = {"results.json", "audit.json", "tuning.cc"}


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^(`{3,})[^`].*?^\1", "", path.read_text(), flags=re.M | re.S)


def public_names(module: types.ModuleType) -> list[str]:
    """What `__all__` lists; without one, what is defined there and begins with no underscore."""
    own = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]
    names = list(getattr(module, "__all__", own))
    return [name for name in names if not inspect.ismodule(getattr(module, name))]


@cache
def documented() -> set[str]:
    """Qualified names in the directives of the API pages."""
    text = "\n".join(p.read_text() for p in (DOCS / "api").glob("*.md"))
    return set(re.findall(r"^\.\. auto(?:class|function|data|module):: ([\w.]+)$", text, re.M))


@pytest.mark.parametrize("package", PUBLIC)
def test_api_reference_has_every_public_name(package: str) -> None:
    module = importlib.import_module(package if package == "nit_snn" else f"nit_snn.{package}")
    names = public_names(module)
    assert names
    listed = {name.rpartition(".")[2] for name in documented()}
    whole_module = module.__name__ in documented()
    assert whole_module or set(names) <= listed, set(names) - listed


@pytest.mark.parametrize("name", sorted(documented()))
def test_api_reference_names_what_exists_and_has_a_docstring(name: str) -> None:
    found = resolved(name)
    named = inspect.isclass(found) or inspect.isroutine(found) or inspect.ismodule(found)
    assert found.__doc__ or not named


def linked(page: Path) -> list[str]:
    """Pages in the toctrees of a page."""
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text(), re.M | re.S)
    lines = [line.strip() for tree in trees for line in tree.splitlines()]
    lines = [line for line in lines if line and not line.startswith(":")]
    return [re.sub(r".*<(.+)>", r"\1", line) for line in lines]


def test_every_page_is_reached_from_the_index() -> None:
    found, left = set(), [DOCS / "index.md"]
    while left:
        page = left.pop()
        assert page.exists(), page
        assert page not in found, f"{page} is in two toctrees"
        found.add(page)
        left += [(page.parent / f"{name}.md").resolve() for name in linked(page)]
    assert found == set(PAGES)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CHANGELOG.md"], ids=ids)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"https?:", target):
            assert (page.parent / target.split("#")[0]).exists(), target
    for target in re.findall(r"^```\{literalinclude\} (\S+)", page.read_text(), re.M):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=ids)
def test_every_file_that_is_named_exists(page: Path) -> None:
    named = r"`(?:python )?([\w./-]+\.(?:py|md|json|png|cff))\b[^`\n]*`"
    for name in re.findall(named, prose(page)):
        if name not in NOT_HERE:
            places = (ROOT / name, page.parent / name, ROOT / "nit_snn" / name)
            assert any(p.exists() for p in places), name


@cache
def options_of(script: Path) -> set[str]:
    """The options that a script names, and the modules beside it that it imports."""
    text = script.read_text()
    found = set(re.findall(r"--[a-z][a-z-]*", text))
    for module in re.findall(r"^(?:import|from) (\w+)", text, re.M):
        beside = [ROOT / folder / f"{module}.py" for folder in ("examples", "benchmarks")]
        found |= {o for path in beside if path.exists() for o in options_of(path)}
    return found


def unknown_options(text: str) -> list[str]:
    """Options in the commands of a text that the script does not have, as "script option"."""
    pattern = r"python ((?:examples|benchmarks|scripts|docs)/\w+\.py)([^`\n]*)"
    return [
        f"{script} {option}"
        for script, rest in re.findall(pattern, text)
        for option in re.findall(r"--[a-z][a-z-]*", rest)
        if option not in options_of(ROOT / script)
    ]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CHANGELOG.md"], ids=ids)
def test_a_command_gives_a_script_options_that_it_has(page: Path) -> None:
    assert not unknown_options(page.read_text())


def test_an_option_that_a_script_does_not_have_is_found() -> None:
    command = "`python benchmarks/accuracy.py --data-dir data --download --no-such-option 3`"
    assert unknown_options(command) == ["benchmarks/accuracy.py --no-such-option"]


def resolved(dotted: str) -> object:
    """The module, or what is in one, that a qualified name means."""
    module, _, rest = dotted.partition(".")
    found: object = importlib.import_module(module)
    for name in rest.split("."):
        module = f"{module}.{name}"
        if not hasattr(found, name):
            importlib.import_module(module)
        found = getattr(found, name)
    return found


@pytest.mark.parametrize(
    "page", [*PAGES, *(ROOT / n for n in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md"))], ids=ids
)
def test_every_qualified_name_exists(page: Path) -> None:
    """Also in code blocks; `nit_snn/..` is a file, which another test looks for.

    What was measured of modules that are gone since is left out.
    """
    text = re.sub(
        r"<!-- mutants: begin -->.*?<!-- mutants: end -->", "", page.read_text(), flags=re.S
    )
    for name in set(re.findall(r"(?<![\w/.])nit_snn(?:\.[A-Za-z_]\w*)+", text)):
        resolved(name)


def test_a_qualified_name_that_does_not_exist_is_found() -> None:
    assert resolved("nit_snn.neurons.NoisyNeuron.reset_state")
    for name in ("nit_snn.no_such_module", "nit_snn.NITLearner.no_such_method"):
        with pytest.raises((ImportError, AttributeError)):
            resolved(name)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=ids)
def test_a_learner_is_given_options_that_it_takes(page: Path) -> None:
    known = set(inspect.signature(importlib.import_module("nit_snn").NITLearner).parameters)
    for call in re.findall(r"NITLearner\(([^()]*)\)", page.read_text()):
        assert set(re.findall(r"\b(\w+)=", call)) <= known, call


def test_the_map_of_the_paper_has_a_row_for_each_of_its_parts() -> None:
    """Its numbered equations, its algorithm, figures and tables, and what it proves."""
    rows = re.findall(r"^\| ([^|]+) \|", (DOCS / "paper.md").read_text(), re.M)
    named = "\n".join(rows)
    parts = [f"Eq. {n}" for n in range(1, 9)] + [f"Fig. {n}" for n in (1, 2, 3)]
    parts += [f"Table {n}" for n in (1, 2, 3)] + ["Lemma 1", "Theorems 1 and 2"]
    parts += ["section 3.1", "section 3.2", "section 3.3", "section 4.1", "section 4.2"]
    assert not [part for part in parts if not re.search(rf"{part}\b", named)]
    assert "\n## Algorithm 1\n" in (DOCS / "paper.md").read_text()


def test_every_package_with_public_names_has_an_api_page() -> None:
    package = ROOT / "nit_snn"
    folders = [p.parent.relative_to(package) for p in package.rglob("*/__init__.py")]
    packages = {".".join(folder.parts) for folder in folders if folder.parts} | {"neurons"}
    with_names = {
        name for name in packages if hasattr(importlib.import_module(f"nit_snn.{name}"), "__all__")
    }
    assert with_names <= set(PUBLIC)


def test_tutorials_are_eleven_listed_and_end_with_the_next() -> None:
    assert len(TUTORIALS) == 11
    assert linked(DOCS / "tutorials" / "index.md") == [p.stem for p in TUTORIALS]
    for number, (page, after) in enumerate(pairwise(TUTORIALS), start=1):
        text = page.read_text()
        assert re.search(rf"^# {number}\. ", text, re.M), page
        assert f"({after.name})" in text.rpartition("Next: ")[2]


@pytest.mark.parametrize("page", TUTORIALS, ids=ids)
def test_a_tutorial_is_run_and_shows_and_checks_something(page: Path) -> None:
    text = page.read_text()
    assert text.startswith("---\nfile_format: mystnb\n")
    cells = re.findall(r"^```\{code-cell\} python\n(.*?)^```", text, re.M | re.S)
    cells = [
        re.sub(r"\A(?:---\n.*?^---\n|:tags:.*\n)", "", cell, flags=re.M | re.S) for cell in cells
    ]
    code = "\n".join(cells)
    compile(code, str(page), "exec")
    assert "plt.show()" in code
    assert re.search(r"\bassert\b|assert_close", code)
    assert all(len(line) <= 100 for line in code.splitlines())


def test_no_page_holds_the_results_of_a_notebook() -> None:
    assert not [p for p in DOCS.rglob("*.ipynb") if "_build" not in p.parts]


def test_pages_from_the_root_keep_their_links() -> None:
    """The hook in conf.py, on this README: each link leads to the file it leads to on GitHub."""
    source = (DOCS / "conf.py").read_text()
    names: dict[str, object] = {"__file__": str(DOCS / "conf.py"), "__name__": "conf"}
    exec(compile(source, "conf.py", "exec"), names)
    hook = names["page_from_root"]
    assert callable(hook)
    text = [""]
    hook(None, "readme", text)
    before = re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text())
    after = re.findall(r"\]\(([^)\s]+)\)", text[0])
    pages = {"CHANGELOG.md": DOCS / "changelog.md"}
    for there, here in zip(before, after, strict=True):
        if not re.match(r"https?:", there):
            assert (DOCS / here).resolve() == pages.get(there, (ROOT / there).resolve())


def test_link_check_finds_missing_files_and_anchors(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<p id="here"></p><a href="b.html#there"></a><a href="#here"></a><img src="no.png" alt="x">'
        '<a href="b.html#nowhere"></a><a href="https://example.org/x"></a>'
    )
    (tmp_path / "b.html").write_text('<h1 id="there"></h1>')
    script = [sys.executable, str(DOCS / "check_links.py"), str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60)
    lines = ["a.html: no.png", "a.html: b.html#nowhere", "2 pages, 2 broken links, 0 slips"]
    assert done.returncode == 1 and done.stdout.splitlines() == lines


def test_link_check_finds_slips_of_single_pages(tmp_path: Path) -> None:
    """Each kind once, and none of the same words outside of a cell's output."""
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "a.html").write_text(
        '<h1>One</h1><h1>Two</h1><p>UserWarning: of a page</p><img src="a.png" alt="a plot">'
        '<img src="a.png" alt="../a.png"><div class="cell"><div class="cell_output docutils"><div>'
        "<pre>UserWarning: of a cell</pre></div></div></div><p>Traceback</p>"
    )
    script = [sys.executable, str(DOCS / "check_links.py"), str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "a.html: no alt text: a.png",
        "a.html: in an output: 'UserWarning:'",
        "a.html: 2 titles",
        "1 pages, 0 broken links, 3 slips",
    ]


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_a_page_has_one_title_and_a_text_and_a_caption_for_every_plot(page: Path) -> None:
    text = page.read_text()
    assert len(re.findall(r"^# ", prose(page), re.M)) == 1
    assert not re.search(r"!\[\]", text)
    head = r"---\nmystnb:\n  image:\n    alt: \w.*\n  figure:\n    caption: >-\n      \w"
    for cell in re.findall(r"^```\{code-cell\} python\n(.*?)^```", text, re.M | re.S):
        assert "plt.show()" not in cell or re.match(head, cell)
