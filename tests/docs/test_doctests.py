"""Every example in a docstring runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import nit_snn

MODULES = [
    "nit_snn",
    *(module.name for module in pkgutil.walk_packages(nit_snn.__path__, "nit_snn.")),
    "nit_snn.neurons.ann",
    "nit_snn.neurons.base",
    "nit_snn.neurons.snntorch",
    "nit_snn.neurons.spikingjelly",
]


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIT_SNN_DATA", raising=False)
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_some_examples_were_run() -> None:
    finder = doctest.DocTestFinder()
    found = [t for n in MODULES for t in finder.find(importlib.import_module(n)) if t.examples]
    assert len(found) >= 8
