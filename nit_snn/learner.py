"""NITLearner: attaches the learning rule to a network of noisy neurons."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .errors import NonFiniteGradientError, NonFiniteLossError, RecordingError
from .estimators.choose import Choice
from .gradients import nonfinite
from .gradients.update import Update
from .neurons.base import NoisyNeuron, check_module, noisy_neurons
from .noise.source import NoiseSource
from .recording.attachment import attach, detach
from .recording.memory_budget import budget_of
from .recording.session import Session
from .recording.synapse_taps import make_taps
from .recording.trace import PassTrace
from .swap.states import reset_states
from .training import projection
from .training.distributed import Ranks
from .training.learner_state import LearnerState
from .validation import losses as loss_checks
from .validation import network, options
from .validation.warn_once import WarnOnce


class NITLearner(LearnerState):
    """Learns from noise: writes an estimate of the gradient of the mean loss into `.grad`.

    Per noisy layer, replica and time step, with the drift m and `a = (threshold - m) / sigma`:

        g = sum_t [ c_t phi(a_t) / sigma + lambda (A - explained) score_t ] * dm_t / dtheta

    A is the loss less a baseline, `score` that of the noise (Eq. 8 of the paper), c the credit of
    a spike and lambda the weight of the residual. With `lambda = 1` the estimate is unbiased
    whatever c is; with `lambda = 0` it is cheap, biased, and has hardly any variance. What lies
    behind the last noisy neuron is trained by autograd if the loss is differentiable.

    Args:
        net: A network whose spiking neurons are all noisy (see `nit_snn.swap_neurons`).
        replicas: C, how often each sample is put through the network with different noise. "auto":
            16 for a likelihood ratio alone, else 1.
        credit: "none": the paper's NIT. "readout": from the spikes that the loss reads itself.
            "feedback": each layer's own readout predicts the error. "layers": from layer to layer
            within a time step. "time": through time as well. "auto": "layers", or "none" for a
            loss of which a part has no derivative in the spikes.
        residual: lambda, 0 to 1; or "auto": for each layer the weight that minimises the mean
            squared error (see `nit_snn.estimators.residual`), 0 with a single replica.
        forward_only: No backward pass through the neurons: "feedback" in the place of "layers".
        rule: "nit", or "nit-s", the sign direction of Eq. 3. It can be changed at any time.
        baseline: "leave-one-out" (the mean loss of the other replicas of the same sample),
            "batch-mean" (the mean loss of all other rows) or "none".
        antithetic: Replica c + C/2 gets minus the noise of replica c.
        conditional: Condition the scores on the spikes: less variance, no bias, for losses that
            read no membrane. "auto" does not.
        learn_sigma: Learn the noise level of every neuron, or every channel behind a convolution;
            "shared" learns one for each layer.
        seed: Names the noise of all passes; None takes one from torch's global generator.

    Advanced:
        per_step_losses: Losses are (T, rows): the noise of a step counts for those from then on.
        sigma_bounds: (smallest, largest) learned noise level.
        weight_bounds: (smallest, largest) value of every other trainable parameter, or None.
        noise_reuse: Read the noise from a table that all passes share: cheap on a CPU.
        shard: Share out each sample's "replicas" over the processes of torch.distributed, or
            "samples", a batch for each; None for this process alone.
        recompute: Draw the noise again in `backward` instead of keeping it; "auto" keeps what fits.
        memory_budget: Bytes that a pass may take; None for half of what the device has left.
        route: "auto" takes registered synapses on the fast route and everything else through the
            local autograd graph; "general" takes the graph always.
        on_nonfinite: What a batch does whose losses or gradient are NaN or infinite: "raise";
            "skip", and count it in `skipped`; or "write", for `torch.amp.GradScaler`.

    Attributes:
        skipped: How many batches were left out because of NaN or infinity.

    Raises:
        AttachError: The network has no noisy neuron, a spiking neuron that is not noisy, a sigma
            that is not positive, lazy modules, or another learner; or the options contradict each
            other. All that is wrong with the network is listed at once.

    Example:
        >>> import torch, snntorch
        >>> from nit_snn import NITLearner, swap_neurons
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 3), swap_neurons(snntorch.Leaky(beta=0.9, init_hidden=True)))
        >>> learner = NITLearner(net, replicas=8, credit="none", seed=0)
        >>> x, y = torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1])
        >>> with learner.record():
        ...     xr, yr = learner.expand(x, y)
        ...     wrong = (net(xr).argmax(1) != yr).float()       # a loss without a gradient
        >>> loss = learner.backward(wrong)
        >>> net[0].weight.grad.shape
        torch.Size([3, 4])
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        replicas: int | Literal["auto"] = "auto",
        credit: Literal["auto", "none", "readout", "feedback", "layers", "time"] = "auto",
        residual: float | Literal["auto"] = "auto",
        forward_only: bool = False,
        rule: Literal["nit", "nit-s"] = "nit",
        baseline: Literal["leave-one-out", "batch-mean", "none"] = "leave-one-out",
        antithetic: bool = False,
        conditional: bool | Literal["auto"] = "auto",
        learn_sigma: bool | Literal["shared"] = False,
        seed: int | None = None,
        per_step_losses: bool = False,
        sigma_bounds: tuple[float, float] = (0.05, 5.0),
        weight_bounds: tuple[float, float] | None = None,
        noise_reuse: bool = False,
        shard: Literal["replicas", "samples"] | None = None,
        recompute: bool | Literal["auto"] = "auto",
        memory_budget: int | None = None,
        route: Literal["auto", "general"] = "auto",
        on_nonfinite: Literal["raise", "skip", "write"] = "raise",
        **unknown: Any,
    ) -> None:
        given = options.named(locals())
        check_module(net)
        neurons = noisy_neurons(net)
        options.check_all(given)
        ranks = Ranks.of(shard)
        network.check_attachable(net, neurons, given)
        self.net, self.skipped = net, 0
        self._choice = Choice.of(given, neurons.values(), ranks)
        ranks.share(self._choice.replicas, 2 if antithetic else 1)
        seed = int(torch.randint(2**62, ()).item()) if seed is None else given["seed"]
        seed = ranks.same_everywhere(seed, net)
        watch = network.Watch(neurons, self._choice.estimator)
        for neuron in neurons.values():
            attach(self, neuron)
            if learn_sigma or neuron.sigma.requires_grad:
                neuron.set_sigma_learnable(bool(learn_sigma), shared=learn_sigma == "shared")
        self._session = Session(
            net,
            neurons,
            NoiseSource(seed, ranks, table=noise_reuse, antithetic=antithetic),
            [] if route == "general" else make_taps(net),
            watch,
            WarnOnce(net, neurons),
        )
        boxed = bool(learn_sigma) or weight_bounds is not None
        self._projection = projection.after_each_step(self._boxes) if boxed else None
        self._enabled, self._closed = True, False
        self._options = given

    @property
    def replicas(self) -> int:
        """C, the number of replicas of the next batch; of them, those of this process."""
        choice = self._choice
        return choice.ranks.share(choice.replicas, 2 if self.antithetic else 1)

    @property
    def residual_weights(self) -> dict[str, float]:
        """lambda of each noisy layer in the next pass, by name."""
        residual = self._choice.residual
        return {name: residual.weight(name) for name in self._neurons}

    @property
    def _neurons(self) -> dict[str, NoisyNeuron]:
        return self._session.neurons

    @contextmanager
    def record(self) -> Iterator[NITLearner]:
        """Records the forward pass of one expanded batch that runs inside it.

        What an earlier `record` left behind is dropped. If the forward pass raises, nothing
        is kept.

        Raises:
            RecordingError: The learner is closed or already recording.
        """
        self._check_open()
        session, estimator = self._session, self._choice.estimator
        if session.running:
            raise RecordingError("learner.record() is already running; it cannot be nested.")
        session.drop()
        session.watch.check(self.net, estimator)
        session.warn.before_pass(self.net)
        if not self._enabled:
            yield self
            return
        needs = self._choice.needs(self.replicas)
        budget = budget_of(self.recompute, self.memory_budget, session.device)
        with session.record(needs, self.replicas, budget):
            yield self

    def expand(self, *tensors: Any, dim: int = 0) -> Any:
        """Repeats each sample C times, replica-major: row `c * B + b` is replica c of sample b.

        Args:
            *tensors: Tensors with the batch of size B along `dim`; or dicts, lists, tuples of them.
            dim: The batch dimension; 1 for time-first input (T, B, \\*), found beside labels (B,).

        Returns:
            One tensor for one argument, a tuple for several, with C * B along `dim`.

        Raises:
            TypeError: Nothing to expand, or not a tensor.
            ValueError: A tensor has no dimension `dim`, or batch sizes differ.

        Example:
            >>> import torch, snntorch
            >>> from nit_snn import NITLearner, swap_neurons
            >>> learner = NITLearner(swap_neurons(snntorch.Leaky(beta=0.9)), replicas=2)
            >>> learner.expand(torch.tensor([7, 8]))
            tensor([7, 8, 7, 8])
        """
        expanded = self._session.expand(tensors, dim, self.replicas)
        return expanded[0] if len(expanded) == 1 else expanded

    def backward(self, losses: Any, shared: Any = None) -> Tensor:
        """Adds the gradient of the mean loss to `.grad` of every parameter it can reach.

        Args:
            losses: (C * B,), one number per row that `expand` has made: a tensor with or without
                a graph, a NumPy array or a list. It must depend on no other row's noise. A loss
                that couples samples is (C,), a number for each replica. With `per_step_losses`,
                (T, C * B): that of each step, which must depend on nothing that comes later.
            shared: (C,), what each replica adds to its mean loss, such as a penalty on all rows.

        Returns:
            The mean loss, with `per_step_losses` that of the sums over time; a detached scalar.

        Raises:
            RecordingError: Nothing was recorded since the last call.
            LossError: The losses do not have one number per row. The recording is kept.
            NonFiniteLossError: A loss is NaN or infinite. Nothing was written.
            NonFiniteGradientError: The gradient is, though the losses are not. Nothing was written.
            NonFiniteWeightError: A parameter is, whatever `on_nonfinite` says.
        """
        self._check_open()
        if not self._enabled:
            return loss_checks.mean_of(losses, shared)
        recorder, rows = self._session.pending(), self._session.rows
        estimator = self._choice.estimator
        strict = self.credit not in ("auto", "none")
        update = Update(self.net, self._neurons, estimator, self.on_nonfinite, strict)
        try:
            values = loss_checks.checked_losses(losses, shared, recorder.trace, update, rows)
        except NonFiniteLossError as error:
            if self.on_nonfinite != "skip":
                raise
            self._session.drop()
            return self._skip(self._choice.ranks.sum(error.mean))
        with self._session.using_up(recorder):
            return self._learn(update, recorder.trace, *values)

    def _learn(self, update: Update, trace: PassTrace, values: Tensor, shared: Any) -> Tensor:
        try:
            total, found = update.write(trace, values, shared)
        except NonFiniteGradientError as error:
            if self.on_nonfinite != "skip":
                raise
            return self._skip(error.mean)
        if values.numel() and self._choice.learn_from(found):
            print(f"nit_snn: {self._choice.describe()}", file=sys.stderr)
        self._session.warn.after_learning(self.net, trace, found, values)
        return total

    def _skip(self, mean: Tensor) -> Tensor:
        """Leaves a bad batch out; returns its mean loss, that of all processes."""
        self.skipped += 1
        nonfinite.recover(self._neurons.values())
        self._session.left_behind()
        return mean

    def reset(self) -> None:
        """Drops what was recorded and sets all that the network remembers to its initial state.

        Noisy neurons and plain ones, and whatever else remembers in SpikingJelly's way, a dropout
        its mask. Unlike the frameworks' own functions it walks the whole network, and only this
        one; `notes` names what has a `reset` of another kind.
        """
        self._session.drop()
        reset_states(self.net)

    def close(self) -> None:
        """Detaches the learner; the network stays as it is, and can get another one.

        Raises:
            RecordingError: It is called inside `record()`.
        """
        self._session.check_not_running("close")
        self._session.end()
        self._closed = True
        if self._projection is not None:
            self._projection()
        for neuron in self._neurons.values():
            detach(self, neuron)
