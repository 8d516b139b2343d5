"""Mutants that no test of `mutants.py` can notice, and why: what is changed makes no difference."""

_SIDE = "The side is +1 or -1: to divide by it is to multiply with it."
_SUMMED = (
    "Whether the gradient of a sum is computed once and repeated, or for all that is summed: the "
    "same numbers in more time."
)

EQUIVALENT: dict[str, dict[str, str]] = {
    "nit_snn.dynamics.firing": {
        "(1 - self.likelihood).mul_ -> (1 - self.likelihood).div_ in "
        "return (1 - self.likelihood).mul_(self.side)": _SIDE,
    },
    "nit_snn.gradients.synapses.few_outputs": {
        f"{change} in if cotangent.dim() > 2 and cotangent.stride(0) == 0:": _SUMMED
        for change in ("2 -> 3", "cotangent.dim() > 2 -> cotangent.dim() <= 2")
    },
}
