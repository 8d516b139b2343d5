"""What is installed from a wheel, an sdist and an editable checkout, and what must not be."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy
import pytest

ROOT = Path(__file__).parents[2]

# Imports only what was installed into the folder given as an argument, plus torch and numpy.
PROBE = """
import sys
sys.path.insert(0, sys.argv[1])
import nit_snn, nit_snn.dynamics.cuda_executor
import nit_snn.neurons.snntorch, nit_snn.neurons.spikingjelly
from nit_snn.datasets import load
assert nit_snn.__file__.startswith(sys.argv[1]), nit_snn.__file__
assert nit_snn.neurons.__file__.startswith(sys.argv[1]), nit_snn.neurons.__file__
assert len(load("fashion-mnist")[0]) == 10_000
try:
    import neurons
except ImportError:
    print("ok")
"""


def run(*command: object, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("NIT_SNN_DATA", "PYTHONPATH")}
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A wheel made from an sdist, both from a copy that holds only what git would."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


@pytest.mark.full
def test_both_hold_the_kernels(distributions: tuple[Path, Path]) -> None:
    kernels = ROOT / "nit_snn" / "dynamics" / "kernels"
    wanted = {
        str(p.relative_to(ROOT)) for kind in ("cu", "cuh") for p in kernels.rglob(f"*.{kind}")
    }
    assert len(wanted) > 10
    with zipfile.ZipFile(distributions[0]) as wheel, tarfile.open(distributions[1]) as sdist:
        assert wanted <= set(wheel.namelist())
        assert wanted <= {name.split("/", 1)[1] for name in sdist.getnames() if "/" in name}


@pytest.mark.full
def test_wheel_imports_from_an_empty_folder(
    distributions: tuple[Path, Path], tmp_path: Path
) -> None:
    target = tmp_path / "site"
    with zipfile.ZipFile(distributions[0]) as wheel:
        wheel.extractall(target)
    assert run(sys.executable, "-c", PROBE, target, cwd=tmp_path).strip() == "ok"


@pytest.mark.full
def test_wheel_holds_the_package_its_data_and_nothing_else(
    distributions: tuple[Path, Path],
) -> None:
    with zipfile.ZipFile(distributions[0]) as wheel:
        names = wheel.namelist()
    assert {n.split("/")[0] for n in names} == {
        "nit_snn",
        f"nit_snn-{version('nit-snn')}.dist-info",
    }
    for wanted in ("py.typed", "datasets/mnist-10k.npz", "datasets/spoken-digits.npz"):
        assert f"nit_snn/{wanted}" in names
    licences = [n for n in names if "/licenses/" in n]
    assert len(licences) == 4, licences


@pytest.mark.full
def test_wheel_holds_every_module(distributions: tuple[Path, Path]) -> None:
    """The packages are listed by hand in pyproject.toml."""
    wanted = {
        f"nit_snn/{prefix}{path.relative_to(folder)}"
        for folder, prefix in ((ROOT / "nit_snn", ""), (ROOT / "neurons", "neurons/"))
        for path in folder.rglob("*.py")
    }
    with zipfile.ZipFile(distributions[0]) as wheel:
        assert len(wanted) > 80 and wanted <= set(wheel.namelist())


# Runs every module with torch and numpy, and what these need, as the only packages there are.
EMPTY = """
import importlib, importlib.abc, pkgutil, sys
BORROWED, MISSING = sys.argv[1], set(sys.argv[2].split())

class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Nothing())
sys.path.append(BORROWED)
import nit_snn, torch
assert "site-packages" in nit_snn.__file__ and not nit_snn.__file__.startswith(BORROWED)
for module in pkgutil.walk_packages(nit_snn.__path__, "nit_snn."):
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        assert "pip install \\"nit-snn[" in str(error), (module.name, error)
        print(module.name)

from nit_snn import NITLearner, swap_neurons
net = swap_neurons(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()))
learner = NITLearner(net, replicas=8)
with learner.record():
    losses = net(learner.expand(torch.rand(5, 4))).sum(1)
learner.backward(losses)
assert net[0].weight.grad.abs().sum() > 0
print(nit_snn.__version__)
"""
OPTIONAL = (
    "snntorch spikingjelly torchvision tqdm matplotlib tensorboard torchattacks cupy nir nirtorch "
    "lightning scipy pytest hypothesis"
)


@pytest.mark.full
def test_the_wheel_in_an_empty_environment(
    distributions: tuple[Path, Path], tmp_path: Path
) -> None:
    """A virtual environment of its own, where pip installs the wheel, and no optional package."""
    wheel = distributions[0]
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
    run(*pip, "--no-index", "--no-deps", wheel, cwd=tmp_path)
    borrowed = Path(numpy.__file__).parents[1]
    *unusable, found = run(python, "-c", EMPTY, borrowed, OPTIONAL, cwd=tmp_path).split()
    assert found == version("nit-snn")
    optional = ("snntorch", "spikingjelly", "spikingjelly_more")
    assert set(unusable) == {f"nit_snn.neurons.{name}" for name in optional}


@pytest.mark.full
def test_sdist_holds_both_source_folders(distributions: tuple[Path, Path]) -> None:
    with tarfile.open(distributions[1]) as sdist:
        names = {n.split("/", 1)[-1] for n in sdist.getnames()}
    assert {"neurons/base.py", "nit_snn/learner.py", "pyproject.toml", "LICENSE"} <= names
    assert {"nit_snn/py.typed", "nit_snn/datasets/mnist-10k.npz", "README.md"} <= names


def test_editable_install_maps_neurons_too(tmp_path: Path) -> None:
    """Runs outside of the checkout, in the environment that the tests themselves run in."""
    code = "import nit_snn.neurons as n; print(n.__file__)"
    assert Path(run(sys.executable, "-c", code, cwd=tmp_path).strip()) == (
        ROOT / "neurons" / "__init__.py"
    )


@pytest.mark.full
@pytest.mark.parametrize("framework", ["snntorch", "spikingjelly"])
def test_one_framework_is_enough(framework: str, tmp_path: Path) -> None:
    """With the other framework made unimportable, the package works and names the extra."""
    names = {"snntorch": "NoisyLeaky", "spikingjelly": "NoisyLIFNode"}
    other = {"snntorch": "spikingjelly", "spikingjelly": "snntorch"}[framework]
    code = f"""
import sys
sys.modules[{other!r}] = None
import nit_snn
from nit_snn.neurons import {names[framework]}
try:
    from nit_snn.neurons import {names[other]}
except ImportError as error:
    assert 'pip install "nit-snn[{other}]"' in str(error), error
    print("ok")
"""
    assert run(sys.executable, "-c", code, cwd=tmp_path).strip() == "ok"


def test_one_version_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version("nit-snn") == project
    assert f"\nversion: {project}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"version = {{{project}}}" in (ROOT / "README.md").read_text()
    assert re.search(rf"^## \[{re.escape(project)}\]", (ROOT / "CHANGELOG.md").read_text(), re.M)


@pytest.mark.parametrize(("name", "count"), [("README.md", 2), ("CONTRIBUTING.md", 5)])
def test_documents_show_the_commands_that_the_makefile_has(name: str, count: int) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make ([\w-]+)", (ROOT / name).read_text(), re.M)
    assert len(targets) == count
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target
