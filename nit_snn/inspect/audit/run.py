"""`audit`: how far a network's surrogate gradient is from the unbiased one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ...errors import AuditError
from ...training.saved_state import is_seed
from ...validation.to_python_scalar import is_number, is_whole, to_python_scalar
from .estimators import compare
from .measurement import Case, Measurement
from .report import AuditReport, Closest, Row
from .statistics import UNRESOLVED, WHOLE, Products, t_quantile
from .subject import Forward, Loss, Sigma, Subject
from .surrogates import Surrogate, candidates


def audit(
    net: nn.Module,
    loss: Loss,
    x: Tensor,
    y: Tensor,
    *,
    forward: Forward | None = None,
    sigma: Sigma | None = None,
    dim: int = 0,
    surrogates: Mapping[str, Surrogate] | None = None,
    replicas: int = 32,
    estimates: int = 16,
    precision: float = 0.03,
    max_passes: int = 8,
    confidence: float = 0.95,
    credit_replicas: int = 0,
    seed: int = 0,
) -> AuditReport:
    """Compares surrogate gradients with the unbiased gradient of the expected loss.

    The yardstick is the mean of independent likelihood-ratio estimates (Eq. 8), so it knows no
    surrogate. Each surrogate's gradient through time (STBP) is taken twice: in the network
    with its noise, averaged over draws, and in the network without noise. What is compared is
    every layer whose parameters the noise reaches; a readout behind the last noisy neuron is
    left out, for autograd is exact there whatever the surrogate.

    The network is only copied: parameters, gradients, states, mode and surrogates stay as they
    are, and so do torch's global random generators. A learner may stay attached. Each pass
    starts from the initial states. Memory: a pass of the batch `replicas` times, and `estimates`
    gradients for each surrogate. BatchNorm belongs into eval mode: behind a noisy layer it would
    bias the yardstick (a `BiasWarning`).

    Args:
        net: A network with noisy neurons, or a plain one if `sigma` is given.
        loss: `loss(output, y)`, one number per row, (N,), with a graph.
        x: The batch, with N rows along `dim`.
        y: The targets, with N rows along 0.
        forward: `forward(net, x)`, the output, where `net(x)` is not all of it: a loop over time,
            say.
        sigma: Noise level for a plain network, as in `swap_neurons`; its copy is made noisy.
        dim: The batch dimension of x; 1 for SpikingJelly's time-first input (T, N, \\*).
        surrogates: Functions by name, each such as snnTorch's `spike_grad` or SpikingJelly's
            `surrogate_function`, compared with the network's own. None takes the framework's
            usual ones at their default slopes, and the density of the noise.
        replicas: Noisy copies of each row in one pass of the yardstick.
        estimates: Independent estimates of each gradient; they give the intervals.
        precision: Stop when the interval of every cosine of the whole network is narrower than
            +- this.
        max_passes: Stop when each estimate is the mean of so many passes.
        confidence: Of the intervals.
        credit_replicas: Replicas of a learner whose credits and residuals are to be compared: bias,
            variance and mean squared error of one pass, `report.credits`. From 2 on all can be,
            with 1 those without a residual. 0 leaves this out. It takes `estimates` passes of each,
            and 20 more of what learns from pass to pass.
        seed: Of all that is random; the same seed gives the same report.

    Returns:
        What was found; print it, or `plot` it.

    Raises:
        AuditError: The network has no noise, or none is given a level above zero; a loss
            without a graph or of another shape; an option out of its range.
        SwapError: `sigma` is given, and a neuron has no noisy counterpart.

    Example:
        >>> import torch, snntorch
        >>> from torch.nn.functional import cross_entropy
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 3), snntorch.Leaky(beta=0.9, init_hidden=True))
        >>> x, y = torch.rand(50, 4), torch.randint(3, (50,))
        >>> loss = lambda spikes, y: cross_entropy(spikes, y, reduction="none")
        >>> report = audit(net, loss, x, y, sigma=0.5, precision=0.5)
        >>> report.own, report.row("atan").layer, report.row("atan").cosine.value > 0.5
        ('atan', 'whole network', True)
    """
    _check_options(replicas, estimates, precision, max_passes, confidence, credit_replicas, seed)
    _check_functions(loss, forward, surrogates)
    replicas, estimates, max_passes, credit_replicas, seed = to_python_scalar(
        (replicas, estimates, max_passes, credit_replicas, seed)
    )
    precision, confidence = to_python_scalar((precision, confidence))
    started = time.perf_counter()
    subject = Subject(net, loss, x, y, forward=forward, sigma=sigma, dim=dim)
    with subject.undisturbed():
        learner = subject.yardstick(replicas, seed)
        compared, own = candidates(subject.net, surrogates)
        measured = Measurement(subject, learner, compared, estimates, seed)
        quantile = t_quantile(confidence, estimates - 1)
        for _ in _doubling(max_passes, measured):
            products = measured.products()
            if _reached(products, precision, quantile):
                break
        learner.close()
        credits = compare(measured, credit_replicas, confidence) if credit_replicas else None
    alone = t_quantile(1 - (1 - confidence) / max(len(compared) - 1, 1), estimates - 1)
    return AuditReport(
        rows=tuple(_rows(products, quantile)),
        norms={layer: next(iter(of.values())).norm(quantile) for layer, of in products.items()},
        closest_with_noise=_closest(products[WHOLE], True, quantile, alone),
        closest_without_noise=_closest(products[WHOLE], False, quantile, alone),
        own=own,
        left_out=subject.left_out,
        precise=_reached(products, precision, quantile),
        samples=subject.samples,
        replicas=replicas,
        estimates=estimates,
        passes=measured.passes,
        credit=learner.credit,
        confidence=confidence,
        precision=precision,
        seed=seed,
        seconds=time.perf_counter() - started,
        credits=credits,
    )


def _doubling(max_passes: int, measured: Measurement) -> Iterator[None]:
    """Measures 1, 2, 4, ... passes; few looks at the results, so that stopping does no harm."""
    goal = 1
    while measured.passes < max_passes:
        rounds = min(goal, max_passes) - measured.passes
        steps = (step for _ in range(rounds) for step in measured.one_round())
        for _ in _with_progress(steps, rounds * measured.estimates):
            pass
        goal *= 2
        yield


def _with_progress(steps: Iterable[None], total: int) -> Iterable[Any]:
    """A bar for work of more than two seconds in a terminal, if tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return steps
    return tqdm(steps, "audit", total, leave=False, delay=2, disable=None)


def _reached(products: dict[str, dict[Case, Products]], precision: float, quantile: float) -> bool:
    """Whether all cosines of the whole network that there can be are known well enough."""
    if any(p.obstacle(quantile) == UNRESOLVED for p in products[WHOLE].values()):
        return False
    cosines = [p.cosine(quantile) for p in products[WHOLE].values() if not p.hopeless]
    return all(c is not None and c.half_width <= precision for c in cosines)


def _rows(products: dict[str, dict[Case, Products]], quantile: float) -> Iterator[Row]:
    for name, noise in products[WHOLE]:
        for layer, of in products.items():
            p = of[name, noise]
            yield Row(
                layer,
                name,
                noise,
                p.cosine(quantile),
                p.norm_ratio(quantile),
                p.obstacle(quantile),
            )


def _closest(
    whole: dict[Case, Products], noise: bool, quantile: float, alone: float
) -> Closest | None:
    """The surrogate with the highest cosine, and those that it cannot be separated from.

    Args:
        whole: Of the whole network.
        noise: Among the gradients of the network with noise, or without.
        quantile: For its cosine.
        alone: For each of its leads, so that all hold at once (Bonferroni).
    """
    cosines = {
        name: cosine
        for (name, with_noise), p in whole.items()
        if with_noise == noise and (cosine := p.cosine(quantile)) is not None
    }
    if not cosines:
        return None
    first = max(cosines, key=lambda name: cosines[name].value)
    leads = {
        name: lead
        for name in cosines
        if name != first and (lead := whole[first, noise].lead(whole[name, noise], alone))
    }
    return Closest(first, noise, cosines[first], leads)


def _check_options(
    replicas: int,
    estimates: int,
    precision: float,
    max_passes: int,
    confidence: float,
    credit_replicas: int,
    seed: int,
) -> None:
    for name, count in (
        ("replicas", replicas),
        ("estimates", estimates),
        ("max_passes", max_passes),
        ("credit_replicas", credit_replicas),
    ):
        if not is_whole(count):
            raise AuditError(f"{name} must be an integer, got {count!r}.")
    for name, number in (("precision", precision), ("confidence", confidence)):
        if not is_number(number):
            raise AuditError(f"{name} must be a number, got {number!r}.")
    if estimates < 4:
        raise AuditError(f"estimates must be at least 4 for an interval, got {estimates}.")
    if not precision > 0:
        raise AuditError(f"precision must be positive, got {precision}.")
    if credit_replicas < 0:
        raise AuditError(f"credit_replicas must not be negative, got {credit_replicas}.")
    if max_passes < 1:
        raise AuditError(f"max_passes must be at least 1, got {max_passes}.")
    if not 0 < confidence < 1:
        raise AuditError(f"confidence must lie between 0 and 1, got {confidence}.")
    if not is_seed(to_python_scalar(seed)):
        raise AuditError(f"seed must be an integer of 64 bits, got {seed!r}.")


def _check_functions(loss: Any, forward: Any, surrogates: Any) -> None:
    if not callable(loss):
        raise AuditError(
            "loss must be a function of the output and y, with one number per row, got "
            f"{type(loss).__name__}."
        )
    if forward is not None and not callable(forward):
        raise AuditError(
            "forward must be a function of the network and x, or None, got "
            f"{type(forward).__name__}."
        )
    if not isinstance(surrogates, Mapping | None):
        raise AuditError(
            f"surrogates must be a dict of functions by name, got {type(surrogates).__name__}."
        )
    strange = [str(name) for name, s in (surrogates or {}).items() if not callable(s)]
    if strange:
        raise AuditError(f"These surrogates are no functions: {', '.join(strange)}.")
