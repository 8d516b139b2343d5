"""The table of all neurons is the one that the installed packages give."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import snntorch
from spikingjelly.activation_based import neuron

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(neuron, "KLIFNode"), reason="an older SpikingJelly")
@pytest.mark.skipif(not hasattr(snntorch, "StateLeaky"), reason="an older snnTorch")
def test_the_table_is_that_of_the_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    script = importlib.import_module("neuron_table")
    page = (ROOT / "docs" / "neurons.md").read_text()
    assert script.replaced(page, script.table()) == page
    assert len(script.classes()) > 40
