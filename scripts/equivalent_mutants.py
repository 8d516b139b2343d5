"""Mutants that no test of `mutants.py` can notice, and why: what is changed makes no difference."""

_SIDE = "The side is +1 or -1: to divide by it is to multiply with it."
_SUMMED = (
    "Whether the gradient of a sum is computed once and repeated, or for all that is summed: the "
    "same numbers in more time."
)

_ASSERTION = "An assertion of what its callers see to: it never fails, and neither does this."
_GROUPED = "How many steps are worked out at once: the same numbers in other pieces."
_THREADS = "Among how many threads the work is shared out: the same numbers."
_ROUND = "How often a row's parameters are written one after the other: the same numbers for each."
_CACHED = "How much is remembered, not to make it again: the same in more or less time."
_ALIKE = "All steps are alike here, and there are two at least."

EQUIVALENT: dict[str, dict[str, str]] = {
    "nit_snn.dynamics.firing": {
        "(1 - self.likelihood).mul_ -> (1 - self.likelihood).div_ in "
        "return (1 - self.likelihood).mul_(self.side)": _SIDE,
    },
    "nit_snn.dynamics.closed_form": {
        "reset == 'none' -> reset != 'none' in "
        'if fired is None or reset == "none":  # without a reset nobody asks': "The spikes are "
        "found again in the state, where they are known, and left as they are where nobody asks.",
    },
    "nit_snn.gradients.synapses.few_outputs": {
        f"{change} in if cotangent.dim() > 2 and cotangent.stride(0) == 0:": _SUMMED
        for change in ("2 -> 3", "cotangent.dim() > 2 -> cotangent.dim() <= 2")
    },
    "nit_snn.noise.layer_noise": {
        "dtype == torch.float32 -> dtype != torch.float32 in "
        "if isinstance(self.noise, TableNoise) and dtype == torch.float32:": "What a table holds "
        "is read where it is, or copied: the same numbers.",
    },
    "nit_snn.dynamics.conditioned": {
        f"{change} in self._steps, self._length = len(noise), "
        "max(1, _AT_ONCE // max(1, noise[0].numel()))": _GROUPED
        for change in (
            "_AT_ONCE // max(1, noise[0].numel()) -> _AT_ONCE * max(1, noise[0].numel())",
            "1 -> 2",
        )
    }
    | {f"{change} in _AT_ONCE = 2**18": _GROUPED for change in ("18 -> 19", "2 -> 3")}
    | {
        "1 -> 2 in signed = [x if sign == 1 else sign * x for x, sign in "
        "zip(noise, signs, strict=True)]": "To multiply with a sign of 1 changes nothing.",
        "0 -> 1 in found[name] = None if values[0] is None else torch.cat(values)": "There are two "
        "parts at least, and what one has the others have.",
    },
    "nit_snn.dynamics.pathwise": {
        "0.0 -> 1.0 in jump: float | Tensor = 0.0": "Where time is followed, each neuron says what "
        "a spike adds; elsewhere it is not read.",
    },
    "nit_snn.estimators.control_steps": {
        "7 -> 8 in return (None,) * 7": "torch takes one None too many for none.",
        "wants_membrane and link is not None -> wants_membrane or link is not None in "
        "drifts[0] * link.carry if wants_membrane and link is not None else None,": "What nobody "
        "wants is thrown away, and who wants it has a link.",
    },
    "nit_snn.gradients.accumulate": {
        "event.static or len(steps) == len(calls) -> event.static and len(steps) == len(calls) in "
        "whole = event.static or len(steps) == len(calls)": "A static sequence comes in one piece "
        "of all steps; and to name all steps is to name none.",
    },
    "nit_snn.dynamics.compiled.arguments": {
        "1 -> 2 in return neurons * max(1, _BLOCK // neurons)": _ROUND,
        "1024 -> 1025 in _BLOCK = 1024": _ROUND,
        "1 -> 2 in neurons = max(1, math.prod(inner))": _ROUND,
        "64 -> 65 in @lru_cache(maxsize=64)": _CACHED,
        "17 -> 18 in _ENOUGH = 2**17": _THREADS,
    },
    "nit_snn.dynamics.compiled.build": {
        "120.0 -> 121.0 in _PATIENCE = 120.0": "A compiler that hangs is given up a second later.",
        "16 -> 17 in return hashlib.sha256(whole.encode()).hexdigest()[:16]": "The file's name is "
        "longer by a digit.",
    },
    "nit_snn.dynamics.compiled.steps": {
        "count * steps -> count / steps in threads=threads(count * steps),": _THREADS,
        "0 -> 1 in slot: int = 0,": "Who wants bits names the slot; without them it is not read.",
        "len(current) in (1, steps) and state.shape == current.shape[1:] -> "
        "len(current) in (1, steps) or state.shape == current.shape[1:] in "
        "assert len(current) in (1, steps) and state.shape == current.shape[1:]": _ASSERTION,
        "fits(*noise) and all((eps.shape == state.shape for eps in noise)) -> "
        "fits(*noise) or all((eps.shape == state.shape for eps in noise)) in "
        "assert fits(*noise) and all(eps.shape == state.shape for eps in noise)": _ASSERTION,
    },
    "nit_snn.dynamics.compiled.layer": {
        "2 -> 3 in _AT_ONCE = 2**21": _GROUPED,
        "1 -> 2 in length = max(1, _AT_ONCE // max(1, state.numel()))": _GROUPED,
        "_AT_ONCE // max(1, state.numel()) -> _AT_ONCE * max(1, state.numel()) in "
        "length = max(1, _AT_ONCE // max(1, state.numel()))": _GROUPED,
        "residuals is None or densities is None or (not fits(residuals, densities)) -> "
        "residuals is None and densities is None and (not fits(residuals, densities)) in "
        "if residuals is None or densities is None or not fits(residuals, densities):": "What a "
        "recording watches with is of the currents' type, and these fit by then.",
    },
    "nit_snn.dynamics.compiled.settle": {
        "2 -> 3 in if replicas < 2 or not density.numel():": "With two replicas torch would do it: "
        "the same numbers in more time.",
        "0 -> 1 in if spikes.stride(0) == 0:  # the same at all steps": "They would be copied for "
        "each step: the same numbers in more memory.",
        "0 -> 1 in spikes, stride = spikes[0], 0": _ALIKE,
        "0 -> 1 in fall, jumps = repeated(jumps[0, 0], inner), None": "The second row instead of "
        "the first: they are alike, and there are two at least.",
    },
}
