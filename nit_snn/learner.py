"""NITLearner: attaches the learning rule to a network of noisy neurons."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .errors import LossError, NonFiniteGradientError, NonFiniteLossError, RecordingError
from .estimators.choose import Choice
from .gradients import nonfinite
from .gradients.update import Update
from .neurons.base import check_module, noisy_neurons
from .noise.source import NoiseSource
from .recording.attachment import attach, detach
from .recording.eager import eager
from .recording.expansion import Expansion, check_batch
from .recording.memory_budget import budget_of
from .recording.recorder import Recorder
from .recording.stale_state import StaleState
from .recording.synapse_taps import make_taps
from .recording.trace import PassTrace
from .training import projection, saved_state
from .training.distributed import Ranks
from .validation import diagnosis, network, options
from .validation import losses as loss_checks
from .validation.to_python_scalar import to_python_scalar
from .validation.warn_once import WarnOnce


class NITLearner:
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
            "layers": from layer to layer within a time step. "time": through time as well. "auto":
            "layers", or "none" for a loss that has no derivative in the spikes.
        residual: lambda, 0 to 1; or "auto": for each layer the weight that minimises the mean
            squared error (see `nit_snn.estimators.residual`), 0 with a single replica.
        forward_only: Choose among the estimates without a backward pass through the neurons.
        rule: "nit", or "nit-s", the sign direction of Eq. 3. It can be changed at any time.
        baseline: "leave-one-out" (the mean loss of the other replicas of the same sample),
            "batch-mean" (the mean loss of all other rows) or "none".
        antithetic: Replica c + C/2 gets minus the noise of replica c.
        conditional: Condition the scores on the spikes: less variance, no bias, for losses that
            read no membrane. "auto" does not.
        per_step_losses: Losses come per time step, (T, rows); the noise of a step is charged with
            the losses of that step and later ones. Every noisy layer makes one step for each.
        learn_sigma: Learn the noise level of every neuron, or every channel behind a convolution;
            "shared" learns one for each layer.
        sigma_bounds: (smallest, largest) learned noise level.
        weight_bounds: (smallest, largest) value of every other trainable parameter, or None.
        noise_reuse: Read the noise from a table that all passes share (see
            `nit_snn.noise.table`): cheap on a CPU, and as independent as ever within a pass.
        shard: Share out each sample's "replicas" over the processes of torch.distributed, or
            "samples", a batch for each; None for this process alone.
        seed: Names the noise of all passes; None takes one from torch's global generator.
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
        replicas: int | str = "auto",
        credit: str = "auto",
        residual: float | str = "auto",
        forward_only: bool = False,
        rule: str = "nit",
        baseline: str = "leave-one-out",
        antithetic: bool = False,
        conditional: bool | str = "auto",
        per_step_losses: bool = False,
        learn_sigma: bool | str = False,
        sigma_bounds: tuple[float, float] = (0.05, 5.0),
        weight_bounds: tuple[float, float] | None = None,
        noise_reuse: bool = False,
        shard: str | None = None,
        seed: int | None = None,
        recompute: bool | str = "auto",
        memory_budget: int | None = None,
        route: str = "auto",
        on_nonfinite: str = "raise",
    ) -> None:
        given = {k: to_python_scalar(v) for k, v in locals().items() if k not in ("self", "net")}
        check_module(net)
        neurons = noisy_neurons(net)
        options.check_all(given)
        ranks = Ranks.of(shard)
        network.check_attachable(net, neurons, given)
        self.net, self.skipped = net, 0
        self._neurons, self._ranks = neurons, ranks
        self._choice = Choice.of(given, neurons.values(), ranks)
        ranks.share(self._choice.replicas, 2 if antithetic else 1)
        seed = int(torch.randint(2**62, ()).item()) if seed is None else given["seed"]
        seed = ranks.same_everywhere(seed, net)
        self._source = NoiseSource(seed, ranks, table=noise_reuse, antithetic=antithetic)
        self._taps = [] if route == "general" else make_taps(net)
        self._watch = network.Watch(neurons, self._choice.estimator)
        for neuron in neurons.values():
            attach(self, neuron)
            if learn_sigma or neuron.sigma.requires_grad:
                neuron.set_sigma_learnable(bool(learn_sigma), shared=learn_sigma == "shared")
        boxed = bool(learn_sigma) or weight_bounds is not None
        self._projection = projection.after_each_step(self._boxes) if boxed else None
        self._warn, self._stale = WarnOnce(net, neurons), StaleState()
        self._recorder: Recorder | None = None
        self._running, self._enabled, self._closed = False, True, False
        self._expanded: set[int] = set()
        self._expansions_used = False
        self._options = given

    def __getattr__(self, name: str) -> Any:
        """The options, as they were given or set since."""
        given = vars(self).get("_options", {})
        if name in given:
            return given[name]
        raise AttributeError(f"NITLearner has no attribute {name!r}.")

    def __setattr__(self, name: str, value: Any) -> None:
        given = vars(self).get("_options", {})
        if name not in given:
            super().__setattr__(name, value)
            return
        options.check_change(name, value, boxed=self._projection is not None)
        given[name] = to_python_scalar(value)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and files hold the network, the options and the state; attached when made."""
        self._check_open()
        return _attach_again, (self.net, dict(self._options), self.state_dict(), self._enabled)

    @property
    def seed(self) -> int:
        """Names the noise of all passes."""
        return self._source.seed

    @property
    def passes(self) -> int:
        """How many passes were recorded; the number of the next one, which names its noise."""
        return self._source.passes

    @passes.setter
    def passes(self, passes: int) -> None:
        number = to_python_scalar(passes)
        if not saved_state.count(number):
            raise ValueError(f"passes must be an integer from 0 on, got {passes!r}.")
        self._source.passes = number

    @property
    def replicas(self) -> int:
        """C, the number of replicas of the next batch; of them, those of this process."""
        return self._ranks.share(self._choice.replicas, 2 if self.antithetic else 1)

    @property
    def residual_weights(self) -> dict[str, float]:
        """lambda of each noisy layer in the next pass, by name."""
        residual = self._choice.residual
        return {name: residual.weight(name) for name in self._neurons}

    def project(self) -> None:
        """Puts learned noise levels, and bounded weights, back between their bounds.

        The paper's projection on Omega. After each step of a torch optimizer it is done for what
        that optimizer holds. An update of another kind, or an optimizer of copies that are written
        back, such as masters of half-precision weights, has to be followed by a call.
        """
        for tensors, bounds in self._boxes():
            projection.clamp(tensors, bounds)

    def _boxes(self) -> list[projection.Box]:
        """What has bounds, and which."""
        levels = [neuron.sigma for neuron in self._neurons.values()]
        boxes: list[projection.Box] = [(levels, self.sigma_bounds)] if self.learn_sigma else []
        if self.weight_bounds is not None:
            own = {id(level) for level in levels}
            boxes.append(([p for p in self.parameters() if id(p) not in own], self.weight_bounds))
        return boxes

    def notes(self) -> list[str]:
        """What is worth knowing of the network, a sentence each, by qualified name.

        Layers that take the general route, parameters that several layers share, modules that write
        in place: all are learned right as they are.
        """
        return diagnosis.notes(self.net, self._neurons)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self._choice.describe()}, rule={self.rule!r}, "
            f"baseline={self.baseline!r}, antithetic={self.antithetic}, "
            f"conditional={self.conditional!r}, learn_sigma={self.learn_sigma!r}, "
            f"seed={self.seed}, layers=[{', '.join(self._neurons)}])"
        )

    @contextmanager
    def record(self) -> Iterator[NITLearner]:
        """Records the forward pass of one expanded batch that runs inside it.

        What an earlier `record` left behind is dropped. If the forward pass raises, nothing
        is kept.

        Raises:
            RecordingError: The learner is closed or already recording.
        """
        self._prepare()
        if not self._enabled:
            yield self
            return
        choice, estimator = self._choice, self._choice.estimator
        noise, index = self._source.next(self.replicas, self._devices)
        recorder = Recorder(
            self._neurons,
            noise,
            index,
            estimator.needs(estimator.score.conditioned, choice.wants_scores),
            binary=self._watch.binary,
            budget=budget_of(self.recompute, self.memory_budget, self._device),
            expanded=self._expanded,
            stale=self._stale,
        )
        self._running = True
        try:
            with (
                eager(),
                network.coupled_batch_norms(self.net, lambda: recorder.trace.begun) as coupled,
                recorder.running(self._taps),
            ):
                yield self
        except BaseException:
            recorder.release()
            self._stale = StaleState(self._neurons.values())
            raise
        finally:
            self._running, self._expansions_used = False, True
        recorder.trace.coupled = coupled
        self._recorder = recorder
        self._warn.after_pass(recorder.trace, self._expanded)

    def _prepare(self) -> None:
        """Before a pass: nothing is left of earlier ones, and the network is as it has to be."""
        self._check_open()
        if self._running:
            raise RecordingError("learner.record() is already running; it cannot be nested.")
        self._drop()
        self._watch.check(self.net, self._choice.estimator)
        self._warn.before_pass(self.net)
        if self._enabled:
            for neuron in self._neurons.values():
                neuron.detach_state()  # what an unrecorded pass left may hold a surrogate's graph

    @property
    def _devices(self) -> set[torch.device]:
        return {neuron.sigma.device for neuron in self._neurons.values()}

    @property
    def _device(self) -> torch.device:
        """That of the first noisy neuron, whose memory counts."""
        return next(iter(self._neurons.values())).sigma.device

    def expand(self, *tensors: Tensor, dim: int = 0) -> Any:
        """Repeats each sample C times, replica-major: row `c * B + b` is replica c of sample b.

        Args:
            *tensors: Tensors with the batch of size B along `dim`.
            dim: The batch dimension; 1 for SpikingJelly's time-first input (T, B, \\*).

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
        check_batch(tensors, dim)
        if self._expansions_used:
            self._expanded, self._expansions_used = set(), False
        self._expanded.add(self.replicas * tensors[0].shape[dim])
        expanded = tuple(Expansion(self.replicas, dim).make(x) for x in tensors)
        return expanded[0] if len(expanded) == 1 else expanded

    def backward(self, losses: Any) -> Tensor:
        """Adds the gradient of the mean loss to `.grad` of every parameter it can reach.

        Args:
            losses: (C * B,), one number per row of the recorded batch: a tensor with or without
                a graph, a NumPy array or a list. Row r's loss must depend on no other row's noise.
                With `per_step_losses`, (T, C * B): the loss of each time step, which must depend
                on nothing that comes later.

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
            return loss_checks.numbers(losses).detach().float().mean()
        if self._running:
            raise RecordingError("Call backward() after the record() block, not inside it.")
        recorder = self._recorder
        if recorder is None or recorder.trace.rows is None:
            raise RecordingError(
                "Nothing was recorded. Run the network once inside `with learner.record():` "
                "before each learner.backward(losses)."
            )
        trace, update = (
            recorder.trace,
            Update(self.net, self._neurons, self._choice.estimator, self.on_nonfinite),
        )
        try:
            values = loss_checks.checked_losses(losses, trace, update)
        except NonFiniteLossError as error:
            if self.on_nonfinite != "skip":
                raise
            self._drop()
            return self._skip(self._ranks.sum(error.mean))
        self._recorder, recorder.pending = None, False
        try:
            return self._learn(update, trace, values)
        finally:
            recorder.release()
            for neuron in self._neurons.values():
                neuron.detach_state()  # what it carries on may hold the pass's graph
            self._stale = StaleState(self._neurons.values())

    def _learn(self, update: Update, trace: PassTrace, values: Tensor) -> Tensor:
        if self._choice.rules_out(trace, values):
            raise LossError(
                f"credit={self.credit!r} needs a loss with a derivative in the spikes of a noisy "
                "layer; this one has none. Leave credit='auto', or attach the learner with 'none'."
            )
        try:
            total, found = update.write(trace, values)
        except NonFiniteGradientError as error:
            if self.on_nonfinite != "skip":
                raise
            return self._skip(error.mean)
        if self._choice.learn_from(found):
            print(f"nit_snn: {self._choice.describe()}", file=sys.stderr)
        self._warn.after_learning(self.net)
        return total

    def _skip(self, mean: Tensor) -> Tensor:
        """Leaves a bad batch out; returns its mean loss, that of all processes."""
        self.skipped += 1
        nonfinite.recover(self._neurons.values())
        self._stale = StaleState(self._neurons.values())
        return mean

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the network that ask for a gradient, for an optimizer."""
        return (p for p in self.net.parameters() if p.requires_grad)

    def enable(self) -> None:
        """Records and learns again after `disable`."""
        self._check_open()
        self._enabled = True

    def disable(self) -> None:
        """Makes `record` and `backward` do nothing but run the network and average the loss.

        Raises:
            RecordingError: It is called inside `record()`.
        """
        self._check_not_running("disable")
        self._enabled = False
        self._drop()

    def reset(self) -> None:
        """Drops what was recorded and sets every noisy neuron's membrane to its initial state.

        Unlike the frameworks' own functions it walks the whole network, and only this one.
        """
        self._drop()
        for neuron in self._neurons.values():
            neuron.reset_state()

    def close(self) -> None:
        """Detaches the learner; the network stays as it is, and can get another one.

        Raises:
            RecordingError: It is called inside `record()`.
        """
        self._check_not_running("close")
        self._drop()
        self._closed = True
        if self._projection is not None:
            self._projection()
        for neuron in self._neurons.values():
            detach(self, neuron)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to draw the same noise and to weigh it alike."""
        return {
            **self._source.state_dict(),
            "choice": self._choice.state_dict(),
            **{name: self._options[name] for name in options.SAVED},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the learner that gave `state` stopped.

        Raises:
            CheckpointError: An entry is missing or no such thing, or its options differ from
                this learner's. Nothing was changed.
            RecordingError: It is called inside `record()`.
        """
        self._check_not_running("load_state_dict")
        own = {name: self._options[name] for name in options.SAVED if name != "rule"}
        entries: dict[str, Any] = {
            "rule": lambda rule: type(rule) is str and rule in options.RULES,
            **self._source.entries,
            "choice": self._choice.fits,
            **dict.fromkeys(own, saved_state.anything),
        }
        saved_state.check(state, "learner", entries)
        saved_state.check_options(state, own)
        self._source.load_state_dict(state)
        self.rule = state["rule"]
        self._choice.load_state_dict(state["choice"])
        self._drop()

    def _drop(self) -> None:
        if self._recorder is not None:
            self._recorder.release()
        self._recorder = None

    def _check_not_running(self, name: str) -> None:
        if self._running:
            raise RecordingError(
                f"{name}() inside a recorded pass would take what it records away. Call it before "
                "the pass, or after it."
            )

    def _check_open(self) -> None:
        if self._closed:
            raise RecordingError("This NITLearner is closed; attach a new one.")


def _attach_again(
    net: nn.Module, arguments: dict[str, Any], state: dict[str, Any], enabled: bool
) -> NITLearner:
    learner = NITLearner(net, **arguments)
    learner.load_state_dict(state)
    if not enabled:
        learner.disable()
    return learner
