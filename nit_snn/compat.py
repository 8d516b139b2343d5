"""Optional dependencies, and what differs between versions of the two frameworks."""

import importlib
import sys
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Imports `module`, or says which extra of nit_snn brings it.

    Args:
        module: Dotted name of the module.
        extra: Name of the extra in nit_snn's own metadata.

    Raises:
        ImportError: The module is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} could not be imported ({error}). "
            f'Install it with: pip install "nit-snn[{extra}]"'
        ) from error


def loaded_neuron_families() -> list[ModuleType]:
    """The families of noisy neurons whose framework the user has already imported.

    A network made of snnTorch neurons implies that snnTorch is imported, so a framework that
    was never imported need not be looked at, nor be installed.
    """
    return [
        importlib.import_module(f"nit_snn.neurons.{framework}")
        for framework in ("snntorch", "spikingjelly")
        if framework in sys.modules
    ]
