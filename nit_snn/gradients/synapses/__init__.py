"""Layers whose gradient is had without an autograd graph; see `registry`."""

from . import conv, linear  # they fill the registry
from .registry import SynapseGradient, gradient_function, register_synapse

__all__ = ["SynapseGradient", "conv", "gradient_function", "linear", "register_synapse"]
