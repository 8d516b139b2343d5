"""The network under audit: a copy of it, and the gradients it gives on one batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import AttachError, AuditError, LossError, UnreachedParameterWarning
from ...learner import NITLearner
from ...neurons.base import noise_off, noisy_neurons
from ...swap import swap_neurons
from ...validation.to_python_scalar import is_whole
from .surrogates import Candidate, switched

#: A flat gradient of each layer, (P,).
Gradient = dict[str, Tensor]
Loss = Callable[[Any, Tensor], Tensor]
Forward = Callable[[nn.Module, Tensor], Any]
Sigma = float | Tensor | Mapping[str, float | Tensor]


class Subject:
    """A copy of a network, and a batch.

    Args:
        net: The user's network; only a copy of it is run.
        loss: `loss(output, y)`, one number per row.
        x: The batch, with its rows along `dim`.
        y: The targets, with their rows along 0.
        forward: `forward(net, x)`, the output.
        sigma: Noise for a network that has none.
        dim: The batch dimension of x.

    Raises:
        AuditError: It has no noise, its batch or its loss are unfit.
        SwapError: A neuron of a network that has none has no noisy counterpart.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        x: Tensor,
        y: Tensor,
        *,
        forward: Forward | None = None,
        sigma: Sigma | None = None,
        dim: int = 0,
    ) -> None:
        _check_batch(x, y, dim)
        self.net = _noisy_copy(net, sigma)
        self.x, self.y, self.dim = x.detach(), y, dim
        self._loss, self._forward = loss, forward or _call
        self.neurons = noisy_neurons(self.net)
        self.parameters = {n: p for n, p in self.net.named_parameters() if p.requires_grad}
        self.left_out: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        """Rows of the batch."""
        return self.x.shape[self.dim]

    @property
    def devices(self) -> list[int]:
        """Numbers of the CUDA devices that hold some of it."""
        tensors = (*self.net.parameters(), *self.net.buffers(), self.x)
        return sorted({t.device.index for t in tensors if t.device.type == "cuda"})

    def yardstick(self, replicas: int, seed: int) -> NITLearner:
        """A learner for the unbiased gradient, with a credit where it can be had.

        Parameters that the noise does not reach are left out from now on.

        Raises:
            AuditError: The network cannot have a learner, the loss is unfit, or the noise reaches
                no parameter at all.
        """
        self._try(seed)
        plain = self._attached(replicas=replicas, seed=seed)
        self.estimate(plain, seed, differentiable=False)
        plain.close()
        reached = {n: p for n, p in self.parameters.items() if p.grad is not None}
        self.left_out = tuple(n for n in self.parameters if n not in reached)
        self.parameters = reached
        if not reached:
            raise AuditError("The noise reaches no parameter that asks for a gradient.")
        try:
            learner = NITLearner(
                self.net, replicas=replicas, seed=seed, credit="layers", residual=1
            )
        except AttachError:  # a neuron that does not fire just where it crosses its threshold
            return self._attached(replicas=replicas, seed=seed)
        try:
            self.estimate(learner, seed)
        except LossError:  # the loss reads no spike
            learner.close()
            return self._attached(replicas=replicas, seed=seed)
        return learner

    def _attached(self, **options: Any) -> NITLearner:
        try:
            return NITLearner(self.net, credit="none", **options)
        except AttachError as error:
            raise AuditError(f"No unbiased gradient to compare with: {error}") from error

    def estimate(self, learner: NITLearner, seed: int, differentiable: bool = True) -> Gradient:
        """A learner's estimate of the gradient of the mean loss, from one pass.

        Args:
            learner: Attached to `net`.
            seed: Of whatever is random beside the neurons' noise, such as dropout.
            differentiable: Whether the learner may see the loss's own graph.
        """
        self._prepare(seed)
        with learner.record():
            xr, yr = learner.expand(self.x, dim=self.dim), learner.expand(self.y)
            losses = self._loss(self._forward(self.net, xr), yr)
        learner.backward(losses if differentiable else losses.detach())
        return self._collected()

    def surrogate(
        self, candidates: Mapping[str, Candidate], seed: int, noise: bool
    ) -> dict[str, Gradient]:
        """STBP's gradient of the mean loss by each candidate, all from one forward pass."""
        self._prepare(seed)
        found = {}
        with switched(self.net) as choose, nullcontext() if noise else noise_off(self.net):
            mean = self._loss(self._forward(self.net, self.x), self.y).mean()
            for name, candidate in candidates.items():
                self._clear()
                choose(candidate)
                mean.backward(retain_graph=True)
                found[name] = self._collected()
        self._forget()
        return found

    def _try(self, seed: int) -> None:
        """Runs the network once as it will be run later.

        Raises:
            AuditError: The loss has another shape, or no graph.
        """
        self._prepare(seed)
        losses = self._loss(self._forward(self.net, self.x), self.y)
        expected = (self.samples,)
        if not isinstance(losses, Tensor) or tuple(losses.shape) != expected:
            got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise AuditError(
                f"loss(output, y) must give one number per row, {expected}, got {got}. "
                'The losses of torch do with reduction="none".'
            )
        if not losses.requires_grad:
            raise AuditError(
                "The loss has no graph: a surrogate gradient needs one to run through."
            )
        self._forget()

    def _prepare(self, seed: int) -> None:
        self._clear()
        self._forget()
        torch.default_generator.manual_seed(seed)
        for device in self.devices:
            torch.cuda.default_generators[device].manual_seed(seed)

    def _forget(self) -> None:
        """Sets all states to their initial ones, those of SpikingJelly's other modules too."""
        for neuron in self.neurons.values():
            neuron.reset_state()
        for module in self.net.modules():
            reset = getattr(module, "reset", None)
            if "_memories" in vars(module) and callable(reset):
                reset()

    def _clear(self) -> None:
        for parameter in self.net.parameters():
            parameter.grad = None

    def _collected(self) -> Gradient:
        """The gradients of all that is compared, layer by layer; one that is missing is zero."""
        parts: dict[str, list[Tensor]] = {}
        for name, parameter in self.parameters.items():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parts.setdefault(name.rpartition(".")[0] or "(root)", []).append(gradient.flatten())
        return {layer: torch.cat(tensors) for layer, tensors in parts.items()}

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Leaves torch's generators as they were, and keeps quiet of what will be left out."""
        with (
            torch.random.fork_rng(devices=self.devices),
            torch.enable_grad(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", UnreachedParameterWarning)
            yield


def _call(net: nn.Module, x: Tensor) -> Any:
    return net(x)


def _check_batch(x: Tensor, y: Tensor, dim: int) -> None:
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise AuditError("x and y must be tensors.")
    if not is_whole(dim):
        raise AuditError(f"dim must be an integer, got {dim!r}.")
    if not 0 <= dim < x.dim() or not y.dim() or x.shape[dim] != len(y) or not len(y):
        raise AuditError(
            f"x of shape {tuple(x.shape)} has its rows along dim={dim}, y of shape "
            f"{tuple(y.shape)} along 0, and there must be as many of both, at least one. "
            "Time-first input needs dim=1."
        )


def _noisy_copy(net: nn.Module, sigma: Sigma | None) -> nn.Module:
    neurons = noisy_neurons(net)
    if any(neuron._recorder is not None for neuron in neurons.values()):
        raise AuditError("A network cannot be audited while it is recorded or probed.")
    if sigma is None and not neurons:
        raise AuditError(
            "The network has no noisy neuron. Pass sigma=..., and a copy of it is made noisy, or "
            "call nit_snn.swap_neurons first."
        )
    if sigma is not None and neurons:
        raise AuditError(
            f"The network is noisy already ({', '.join(neurons)}); leave sigma out to audit it "
            "with its own noise."
        )
    copy = _copied(net)
    if sigma is not None:
        swap_neurons(copy, sigma)
    for neuron in noisy_neurons(copy).values():
        neuron.noise = True
    return copy


def _copied(net: nn.Module) -> nn.Module:
    """A deep copy, also of a network whose membranes still hold the graph of an earlier pass."""
    memo: dict[int, Any] = {
        id(tensor): tensor.detach().clone()
        for module in net.modules()
        for tensor in _tensors(vars(module))
        if not tensor.is_leaf
    }
    return deepcopy(net, memo)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
