"""NITLearner: attaches the likelihood-ratio learning rule to a network of noisy neurons."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .errors import (
    AttachError,
    LossError,
    NonFiniteGradientError,
    NonFiniteLossError,
    RecordingError,
)
from .estimators import baselines
from .estimators import scores as rules
from .estimators.advantages import Credit
from .estimators.baselines import INDEPENDENT
from .estimators.control import settle_all
from .gradients import nonfinite
from .gradients.accumulate import Gathering
from .gradients.atomic_update import all_or_nothing
from .gradients.synapses import gradient_function
from .neurons.base import NoisyNeuron, check_module, noisy_neurons
from .noise.source import NoiseSource
from .noise.streams import Noise
from .recording.attachment import attach, check_free, detach
from .recording.eager import eager
from .recording.expansion import Expansion, check_batch
from .recording.memory import CONTROL, MODES, PATHWISE, Footprint
from .recording.planning import Plan, Planner
from .recording.recorder import Recording
from .recording.shares import Shares
from .recording.stale_state import Leftovers
from .recording.synapse_taps import Tap
from .recording.trace import Estimate
from .recording.two_passes import cuda_devices, in_two_passes
from .training import projection, saved_state
from .training.distributed import Ranks, check_wrapper
from .training.replicas import ReplicaController, snr
from .validation import diagnosis
from .validation import losses as loss_checks
from .validation import network as checks
from .validation import options as option_checks
from .validation.passes import check_steps
from .validation.to_python_scalar import plain
from .validation.warn_once import Told


class NITLearner:
    """Learns from noise: writes the likelihood-ratio gradient of the mean loss into `.grad`.

    A pass is recorded with C replicas of each sample, each with noise of its own. `backward` turns
    the losses and the noise into the paper's Eq. 8, `E[A * sum_t eps_t / sigma * dm_t / dtheta]`,
    for every parameter that enters the drift `m_t` of a noisy neuron; what lies behind the last
    noisy neuron is trained by autograd if the loss is differentiable. No gradient runs
    through a spike or through time.

    Args:
        net: A network whose spiking neurons are all noisy (see `nit_snn.swap_neurons`).
        replicas: C, how often each sample is put through the network with different noise; or
            "auto": chosen for each batch from the signal-to-noise ratio of those before.
        replica_bounds: (fewest, most) replicas for "auto", powers of two.
        target_snr: The ratio that "auto" aims at (see `nit_snn.training.replicas`).
        rule: "nit", the unbiased estimator of Eq. 8, or "nit-s", the sign direction of Eq. 3
            for the weights. It can be changed at any time: `learner.rule = "nit"`. Conditioning
            is for "nit", and rests under "nit-s".
        baseline: "leave-one-out" (the mean loss of the other replicas of the same sample),
            "batch-mean" (the mean loss of all other rows) or "none".
        antithetic: Replica c + C/2 gets minus the noise of replica c.
        conditional: Replace the noise by its mean given the spike (Rao-Blackwell): less variance,
            no bias, but only for neurons that a spike resets to a constant, and for losses
            that read no membrane. Anything else is refused. "pathwise" conditions on the spike
            whatever it was, and follows what the membrane carries on by its derivative (see
            `nit_snn.dynamics.pathwise`): far less variance where neurons are mostly silent or
            mostly firing, and for any reset.
        control: Subtract what the loss's derivative in the spikes already explains (see
            `nit_snn.estimators.control`): much less variance, no bias, for losses that are
            differentiable in the spikes that they read. "readout" does so for the layers that the
            loss reads, "network" for all layers, with coefficients that are followed from layer to
            layer within each time step; "time", for conditional="pathwise", follows them through
            the membranes as well; "none" not at all. Needs the leave-one-out baseline.
        sobol: Scrambled Sobol points instead of independent noise, in two sets under the
            leave-one-out baseline and in one otherwise. The replicas of a set depend on
            each other, so a baseline leaves out all of them.
        layerwise: Noise in one layer at a time, the replicas shared out over the layers. Then
            each layer follows the gradient of the loss with noise in that layer alone, which is
            another objective than that of the network with all its noise.
        causal: Losses per time step, (T, rows); the noise of a step is charged only with the
            losses of that step and later ones. Every noisy layer must make one step for each.
        learn_sigma: Learn the noise level of every neuron, or every channel behind a convolution,
            by the second line of Eq. 8; `sigma` becomes a parameter of the neurons. "shared"
            learns one for each layer.
        sigma_bounds: (smallest, largest) noise level; learned ones are put back between them
            after each step of an optimizer that holds them; see `project`.
        weight_bounds: (smallest, largest) value of every other trainable parameter, likewise
            (the paper's projection on Omega); None leaves them free.
        noise: "fresh" for each pass, or "table": read from a table that all passes share, which
            costs a CPU next to nothing (see `nit_snn.noise.streams.TableNoise`). Within a pass the
            noise is as independent as ever, and the gradient as unbiased over the tables.
        distributed: Share out each sample's "replicas" over the processes of torch.distributed, all
            of which see the same batch, or "samples", a batch for each (see
            `nit_snn.training.distributed`); None for this process alone. The gradient that lands in
            `.grad` is that of all.
        seed: Names the noise of all passes; None takes one from torch's global generator.
        memory: What a pass keeps until its losses are known; all give the same gradient. "scores":
            the noise of every draw, the fastest. "bits": spikes as bits, and the noise is drawn
            again from its seed. "replay", with `learn`: nothing that grows with time; the pass is
            run twice. "auto": noise as long as there is room, then bits; `learn` goes on to a
            replay, and to one share of the replicas after the other.
        memory_limit: Bytes that a pass may take, beyond the network and the batch; None for half
            of what the device has left when the pass begins.
        route: "auto" takes registered synapses (`nit_snn.gradients.synapses`) on the fast route and
            everything else through the local autograd graph; "general" takes the graph always.
        nonfinite: What a batch does whose losses or gradient are NaN or infinite. "raise": raise an
            error. "skip": nothing but to count in `skipped`; membranes that are not finite are
            reset. Either way `.grad` stays as it was, with the batches accumulated so far, in all
            processes alike. "write": nothing is looked at, for `torch.amp.GradScaler`, which has
            to find the infinities itself.

    Attributes:
        skipped: How many batches were left out because of NaN or infinity.
        measure_snr: Whether `backward` fills in `snr`, which takes a little time; off at first.
        snr: The signal-to-noise ratio of each layer's gradient in the last batch that was measured,
            by name (see `nit_snn.training.replicas.snr`).

    Raises:
        AttachError: The network has no noisy neuron, a spiking neuron that is not noisy, a sigma
            that is not positive, lazy modules, or another learner, or a neuron's estimate would be
            biased: all that is wrong with the network is listed at once. Or the options
            contradict each other.

    Example:
        >>> import torch, snntorch
        >>> from nit_snn import NITLearner, swap_neurons
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 3), swap_neurons(snntorch.Leaky(beta=0.9, init_hidden=True)))
        >>> learner = NITLearner(net, replicas=8, seed=0)
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
        replicas: int | str,
        replica_bounds: tuple[int, int] = (4, 64),
        target_snr: float = 1.0,
        rule: str = "nit",
        baseline: str = "leave-one-out",
        antithetic: bool = False,
        conditional: bool | str = False,
        control: str = "none",
        sobol: bool = False,
        layerwise: bool = False,
        causal: bool = False,
        learn_sigma: bool | str = False,
        sigma_bounds: tuple[float, float] = (0.05, 5.0),
        weight_bounds: tuple[float, float] | None = None,
        noise: str = "fresh",
        distributed: str | None = None,
        seed: int | None = None,
        memory: str = "auto",
        memory_limit: int | None = None,
        route: str = "auto",
        nonfinite: str = "raise",
    ) -> None:
        self._arguments = {k: plain(v) for k, v in locals().items() if k not in ("self", "net")}
        check_module(net)
        self._neurons = noisy_neurons(net)
        option_checks.check_all(self._arguments, len(self._neurons))
        replicas, seed, target_snr = plain((replicas, seed, target_snr))
        replica_bounds, sigma_bounds = plain(replica_bounds), plain(sigma_bounds)
        weight_bounds, memory_limit = plain(weight_bounds), plain(memory_limit)
        self._controller: ReplicaController | None = None
        if replicas == "auto":
            self._controller = ReplicaController(replica_bounds, target_snr)
        self._ranks = Ranks.of(distributed)
        levels = sigma_bounds if learn_sigma else None
        diagnosis.raise_all(
            lambda: check_wrapper(net),
            lambda: diagnosis.check_materialised(net),
            lambda: checks.check_neurons(net, self._neurons),
            lambda: checks.check_unbiased(self._neurons),
            lambda: checks.check_levels(self._neurons, levels),
            lambda: checks.check_kinds(self._neurons, conditional, control),
            lambda: check_free(self._neurons),
        )
        self.net = net
        self.nonfinite = nonfinite
        self.skipped = 0
        self.replica_bounds = replica_bounds
        self.target_snr = target_snr
        unit = (2 if antithetic else 1) * (len(self._neurons) if layerwise else 1)
        self._replicas = 0 if isinstance(replicas, str) else self._ranks.share(replicas, unit)
        self.conditional = conditional
        self.control = control
        self.rule = rule
        self.baseline = baseline
        self.antithetic = antithetic
        self.sobol = sobol
        self.layerwise = layerwise
        self.causal = causal
        self.learn_sigma = learn_sigma
        self.sigma_bounds = sigma_bounds
        self.weight_bounds = weight_bounds
        self.memory = memory
        apart = conditional != "pathwise" and control == "none" and self._controller is None
        frugal = ([] if conditional else ["bits"]) + (["replay"] if apart else [])
        splits = control == "none" and not sobol and self._controller is None
        self._planner = Planner(memory, memory_limit, frugal, unit if splits else None)
        self.noise = noise
        seed = int(torch.randint(2**62, ()).item()) if seed is None else seed
        point_sets = (2 if baseline == "leave-one-out" else 1) if sobol else None
        self._credit = Credit(
            baseline,
            baselines.Sharing(antithetic, point_sets),
            self._ranks,
            len(self._neurons) if layerwise else 1,
            causal,
        )
        self._source = NoiseSource(
            self._ranks.same_everywhere(seed, net),
            self._ranks,
            table=noise == "table",
            point_sets=point_sets,
            antithetic=antithetic,
            layerwise=layerwise,
        )
        self._controlled: set[str] = set(self._neurons)
        self._binary = _binary(self._neurons)
        self._decisive = checks.decisive(self._neurons)
        self._taps = [] if route == "general" else _make_taps(net)
        self.measure_snr = False
        self.snr: dict[str, float] = {}
        self._recording: Recording | None = None
        self._running = False
        self._enabled = True
        self._closed = False
        for neuron in self._neurons.values():
            attach(self, neuron)
            if learn_sigma or neuron.sigma.requires_grad:
                neuron.set_sigma_learnable(bool(learn_sigma), shared=learn_sigma == "shared")
        boxed = bool(learn_sigma) or weight_bounds is not None
        self._projection = projection.after_each_step(self._boxes) if boxed else None
        self._told = Told(net, self._neurons)
        self._left = Leftovers()
        self._expansions: set[int] = set()
        self._expansions_used = False

    def __setattr__(self, name: str, value: Any) -> None:
        attached = "_told" in vars(self)
        unboxed = attached and self._projection is None  # no optimizer's step would be followed
        if attached and (name in option_checks.FIXED or (name == "weight_bounds" and unboxed)):
            raise AttributeError(
                f"{name} was checked against the network when the learner was attached. Close it, "
                f"and attach another with {name}={value!r}."
            )
        if attached and name in option_checks.CHANGEABLE:
            option_checks.CHANGEABLE[name](value)
            value = plain(value)
        super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and files hold the network, the options and the state; attached when made."""
        self._check_open()
        attributes = {"measure_snr": self.measure_snr, "enabled": self._enabled}
        return _attach_again, (self.net, self._arguments, self.state_dict(), attributes)

    @property
    def rule(self) -> str:
        """The learning rule; it can be set at any time, for the passes recorded from then on."""
        return self._rule

    @rule.setter
    def rule(self, rule: str) -> None:
        if rule not in rules.NAMES:
            raise AttachError(f"rule must be one of {rules.NAMES}, got {rule!r}.")
        self._rule = rule

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
        if not saved_state.count(plain(passes)):
            raise ValueError(f"passes must be an integer from 0 on, got {passes!r}.")
        self._source.passes = plain(passes)

    @property
    def replicas(self) -> int:
        """C, the number of replicas of the next batch; of them, those of this process."""
        return self._replicas if self._controller is None else self._controller.current

    def project(self) -> None:
        """Puts learned noise levels, and boxed weights, back between their bounds.

        The paper's projection on Omega. After each step of a torch optimizer it is done for what
        that optimizer holds. An update of another kind, or an optimizer of copies that are written
        back, such as masters of half-precision weights, has to be followed by a call.
        """
        for tensors, bounds in self._boxes():
            projection.clamp(tensors, bounds)

    def _boxes(self) -> list[projection.Box]:
        """What has bounds, and which."""
        boxes: list[projection.Box] = []
        levels = [neuron.sigma for neuron in self._neurons.values()]
        if self.learn_sigma:
            boxes.append((levels, self.sigma_bounds))
        if self.weight_bounds is not None:
            own = {id(level) for level in levels}
            weights = [p for p in self.parameters() if id(p) not in own]
            boxes.append((weights, self.weight_bounds))
        return boxes

    def notes(self) -> list[str]:
        """What is worth knowing of the network, a sentence each, by qualified name.

        Layers that take the general route, parameters that several layers share, modules that write
        in place: all are learned right as they are.

        Example:
            >>> import torch, snntorch
            >>> from nit_snn import NITLearner, swap_neurons
            >>> net = torch.nn.Sequential(
            ...     torch.nn.Linear(4, 3), torch.nn.LayerNorm(3), snntorch.Leaky(beta=0.9))
            >>> NITLearner(swap_neurons(net), replicas=2).notes()
            ['1 (LayerNorm) has no gradient rule: it takes the general route.']
        """
        return diagnosis.notes(self.net, self._neurons)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(replicas={self.replicas}, rule={self.rule!r}, "
            f"baseline={self.baseline!r}, antithetic={self.antithetic}, "
            f"conditional={self.conditional!r}, control={self.control!r}, "
            f"learn_sigma={self.learn_sigma}, seed={self.seed}, memory={self.memory!r} "
            f"({self._planner.describe(self.replicas, self._device)}), "
            f"layers=[{', '.join(self._neurons)}])"
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
        if self.memory == "replay":
            raise RecordingError(
                "memory='replay' runs the forward pass twice, so it has to be able to: call "
                "learner.learn(losses_of, x, y) instead of record() and backward()."
            )
        noise, index = self._source.next(self.replicas, self._devices)
        recording = self._new_recording(noise, index, self._planner.room(self._device))
        with self._running_in(recording):
            yield self
        self._remember_footprint(recording)
        self._recording = recording
        self._told.after_pass(recording, self.replicas, self._expansions)

    def _prepare(self) -> None:
        """Before a pass: nothing is left of earlier ones, and the network is as it has to be."""
        self._check_open()
        if self._running:
            raise RecordingError("learner.record() is already running; it cannot be nested.")
        self._drop()
        checks.check_neurons(self.net, self._neurons)
        checks.check_still_there(self.net, self._neurons)
        checks.check_levels(self._neurons)
        self._check_unchanged()
        self._told.before_pass(self.net)
        if not self._enabled:
            return
        for neuron in self._neurons.values():
            neuron.detach_state()  # what an unrecorded pass left may hold a surrogate's graph

    def _check_unchanged(self) -> None:
        """Neurons whose reset, say, was changed since are looked at anew."""
        decisive = checks.decisive(self._neurons)
        if all(now is then for now, then in zip(decisive, self._decisive, strict=True)):
            return  # the same objects; equal ones are looked at anew, which costs little
        checks.check_unbiased(self._neurons)
        checks.check_kinds(self._neurons, self.conditional, self.control)
        self._binary = _binary(self._neurons)
        self._decisive = decisive

    @property
    def _devices(self) -> set[torch.device]:
        return {neuron.sigma.device for neuron in self._neurons.values()}

    @property
    def _device(self) -> torch.device:
        """That of the first noisy neuron, whose memory counts."""
        return next(iter(self._neurons.values())).sigma.device

    def _new_recording(
        self,
        noise: Noise,
        index: int,
        room: float,
        *,
        frugal: bool = False,
        rehearsal: bool = False,
    ) -> Recording:
        return Recording(
            self._neurons,
            noise,
            index,
            rule=self.rule,
            conditional=self.conditional if self.rule == "nit" else False,
            controlled=self._controlled if self.control != "none" and not rehearsal else (),
            follows=self.control in ("network", "time"),
            independent=self._credit.sharing == INDEPENDENT,
            through_time=self.control == "time",
            layerwise=self.layerwise,
            causal=self.causal,
            binary=self._binary,
            room=room,
            frugal=frugal,
            rehearsal=rehearsal,
            expanded=self._expansions,
            left=self._left,
        )

    @contextmanager
    def _running_in(self, recording: Recording) -> Iterator[None]:
        """Inside, the network's pass is recorded; if it raises, nothing is kept."""
        self._running = True
        try:
            with (
                eager(),
                checks.coupled_batch_norms(self.net, lambda: recording.begun) as coupled,
                recording.running(self._taps),
            ):
                yield
            recording.coupled = coupled
        except BaseException:
            recording.release()
            self._left = Leftovers(self._neurons.values())
            raise
        finally:
            self._running = False
            self._expansions_used = True

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
        expanded = self._expanded(tensors, dim, self.replicas)
        return expanded[0] if len(expanded) == 1 else expanded

    def _expanded(self, tensors: Sequence[Tensor], dim: int, replicas: int) -> tuple[Tensor, ...]:
        if self._expansions_used:
            self._expansions.clear()
            self._expansions_used = False
        self._expansions.add(replicas * tensors[0].shape[dim])
        self._planner.batch = sum(x.nbytes / max(1, x.shape[dim]) for x in tensors)
        return tuple(Expansion(replicas, dim).make(x) for x in tensors)

    def backward(self, losses: Any) -> Tensor:
        """Adds the gradient of the mean loss to `.grad` of every parameter it can reach.

        Args:
            losses: (C * B,), one number per row of the recorded batch: a tensor with or without
                a graph, a NumPy array or a list. Row r's loss must depend on no other row's noise.
                With `causal`, (T, C * B): the loss of each time step, which must depend on nothing
                that comes later.

        Returns:
            The mean loss, with `causal` that of the sums over time; a detached scalar.

        Raises:
            RecordingError: Nothing was recorded since the last call.
            LossError: The losses do not have one number per row. The recording is kept.
            NonFiniteLossError: A loss is NaN or infinite. Nothing was written.
            NonFiniteGradientError: The gradient is, though the losses are not. Nothing was written.
            NonFiniteWeightError: A parameter is, whatever `nonfinite` says. Nothing was written.
        """
        self._check_open()
        if not self._enabled:
            return loss_checks.numbers(losses).detach().float().mean()
        if self._running:
            raise RecordingError("Call backward() after the record() block, not inside it.")
        recording = self._recording
        if recording is None or recording.rows is None:
            raise RecordingError(
                "Nothing was recorded. Run the network once inside `with learner.record():` "
                "before each learner.backward(losses)."
            )
        try:
            values = self._checked(losses, recording)
        except NonFiniteLossError as error:
            if self.nonfinite != "skip":
                raise
            self._drop()
            return self._skip(self._ranks.sum(error.mean))
        self._recording = None
        try:
            return self._learn(recording, values)
        finally:
            recording.release()
            for neuron in self._neurons.values():
                neuron.detach_state()  # what it carries on may hold the pass's graph
            self._left = Leftovers(self._neurons.values())

    def _skip(self, mean: Tensor) -> Tensor:
        """Leaves a bad batch out; returns its mean loss, that of all processes."""
        self.skipped += 1
        nonfinite.recover(self._neurons.values())
        self._left = Leftovers(self._neurons.values())
        return mean

    def learn(self, losses_of: Callable[..., Any], *batch: Tensor, dim: int = 0) -> Tensor:
        """Puts a batch through and learns from it, within the memory that there is.

        The same as `record`, `expand` and `backward`, but where a pass does not fit, its
        replicas go through share by share, and each share twice: once for its losses, and with
        the same noise once more for the gradient.

        Args:
            losses_of: From the expanded tensors to the losses, as `backward` takes them. It may be
                called several times, with some of the replicas. Each time the noisy neurons
                are reset, and torch's random numbers are the same in both passes; whatever
                else has a state it has to reset itself.
            *batch: Tensors with the batch of size B along `dim`.
            dim: The batch dimension.

        Returns:
            The mean loss, as from `backward`.

        Raises:
            RecordingError: The losses were others the second time, or BatchNorm in training mode
                would follow the statistics of each pass. No gradient was written.

        Example:
            >>> import torch, snntorch
            >>> from nit_snn import NITLearner, swap_neurons
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), swap_neurons(snntorch.Lapicque(
            ...     beta=0.9, init_hidden=True)))
            >>> learner = NITLearner(net, replicas=8, memory="replay", seed=0)
            >>> def losses_of(x, y):
            ...     return (sum(net(x) for _ in range(50)).argmax(1) != y).float()
            >>> loss = learner.learn(losses_of, torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1]))
            >>> net[0].weight.grad.shape
            torch.Size([3, 4])
        """
        self._check_call(losses_of, batch, dim)
        self._prepare()
        if not self._enabled:
            found = self._run(losses_of, batch, dim, self.replicas)
            return loss_checks.numbers(found).detach().float().mean()
        way = self._plan(losses_of, batch, dim)
        if way.twice:
            return self._learn_twice(losses_of, batch, dim, way)
        noise, index = self._source.next(self.replicas, self._devices)
        room = math.inf if way.mode == "scores" else 0.0
        recording = self._new_recording(noise, index, room)
        with self._running_in(recording):
            losses = self._run(losses_of, batch, dim, self.replicas)
        self._remember_footprint(recording)
        self._recording = recording
        self._told.after_own_pass(recording)
        return self.backward(losses)

    def peak_memory(
        self, losses_of: Callable[..., Any], *batch: Tensor, dim: int = 0
    ) -> dict[str, int]:
        """Bytes that a pass over a batch takes at its peak, by mode, without running it.

        One sample is put through, and what it takes is scaled up; see `learn` for the arguments.
        It is a forecast of the tensors alone, beyond the network, its gradients and the batch.

        Example:
            >>> import torch, snntorch
            >>> from nit_snn import NITLearner, swap_neurons
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), swap_neurons(snntorch.Leaky(
            ...     beta=0.9, init_hidden=True)))
            >>> learner = NITLearner(net, replicas=8)
            >>> def losses_of(x):
            ...     return sum(net(x + 0.1 * t) for t in range(1000)).sum(1)
            >>> peak = learner.peak_memory(losses_of, torch.rand(64, 4))
            >>> peak["scores"] > peak["bits"]
            True
        """
        self._check_call(losses_of, batch, dim)
        self._prepare()
        self._measure(losses_of, batch, dim)
        footprint, rows = self._planner.footprint, self._planner.rows
        assert footprint is not None
        return {mode: footprint.of(mode, rows) for mode in ("scores", *self._planner.frugal)}

    def _check_call(self, losses_of: Callable[..., Any], batch: Sequence[Tensor], dim: int) -> None:
        if not callable(losses_of):
            raise TypeError(
                "learn() takes a function from the expanded tensors to their losses first, got "
                f"{type(losses_of).__name__}."
            )
        check_batch(batch, dim)

    def _run(
        self, losses_of: Callable[..., Any], batch: Sequence[Tensor], dim: int, replicas: int
    ) -> Any:
        """The losses of so many replicas, from reset neurons."""
        for neuron in self._neurons.values():
            neuron.reset_state()
        return losses_of(*self._expanded(batch, dim, replicas))

    def _measure(self, losses_of: Callable[..., Any], batch: Sequence[Tensor], dim: int) -> None:
        """Finds out what a pass takes, from one of a single sample that teaches nothing."""
        noise = self._source.spare(self.replicas, self._devices)
        recording = self._new_recording(noise, 0, 0.0, rehearsal=True)
        sample = [x.narrow(dim, 0, 1) for x in batch]
        with (
            torch.random.fork_rng(cuda_devices()),
            checks.resting(checks.training_batch_norms(self.net).values()),
            self._running_in(recording),
        ):
            self._run(losses_of, sample, dim, self.replicas)
        self._remember_footprint(recording)
        recording.release()
        self._planner.rows = self.replicas * batch[0].shape[dim]

    def _remember_footprint(self, recording: Recording) -> None:
        self._planner.rows = recording.rows or 0
        self._planner.footprint = Footprint(
            [trace.size.done() for trace in recording.traces.values()],
            sum(p.nbytes for p in self.parameters()),
            self._planner.batch,
            any(neuron.sigma.requires_grad for neuron in self._neurons.values()),
            [
                (PATHWISE if self.conditional == "pathwise" else 0)
                + (CONTROL[self.control] if name in self._controlled else 0)
                for name in self._neurons
            ],
            recording.room.unread / max(1, recording.rows or 0),
        )

    def _plan(self, losses_of: Callable[..., Any], batch: Sequence[Tensor], dim: int) -> Plan:
        """How a batch is put through; the same in all processes."""
        norms = list(checks.training_batch_norms(self.net))
        if norms and self.memory == "replay":
            raise RecordingError(
                "BatchNorm in training mode follows the statistics of each pass, and "
                f"memory='replay' makes two: {', '.join(norms)}. Put it in eval mode, or take "
                "memory='bits'."
            )
        if self._planner.footprint is None and batch[0].shape[dim]:
            self._measure(losses_of, batch, dim)
        self._planner.rows = self.replicas * batch[0].shape[dim]
        found = self._planner.plan(self.replicas, self._device, once=bool(norms))
        mode, parts = self._ranks.largest(MODES.index(found.mode), found.parts)
        return Plan(MODES[mode], parts, found.bytes)

    def _learn_twice(
        self, losses_of: Callable[..., Any], batch: Sequence[Tensor], dim: int, way: Plan
    ) -> Tensor:
        """In shares of the replicas, each of which goes through twice."""
        noise, index = self._source.next(self.replicas, self._devices)
        shares = Shares(self.replicas, way.parts, self.antithetic)
        room = 0.0 if way.mode == "bits" else math.inf

        def run(
            part: int, rehearsal: bool, begin: Callable[[Recording], None]
        ) -> tuple[Recording, Tensor]:
            share = noise.part(part, way.parts)
            recording = self._new_recording(share, index, room, frugal=True, rehearsal=rehearsal)
            begin(recording)
            with self._running_in(recording):
                losses = self._run(losses_of, batch, dim, self.replicas // way.parts)
                return recording, self._checked(losses, recording)

        def weigh(losses: Tensor) -> Tensor:
            return self._credit.weights(losses, self.replicas)

        parameters = list(self.parameters())
        rows = self._planner.rows * self._ranks.size
        total = torch.zeros(())
        try:
            with (
                nonfinite.kept_out(self.net, self._neurons, self.nonfinite),
                all_or_nothing(parameters),
                self._ranks.summing(parameters),
            ):
                mean, estimate = in_two_passes(
                    run, shares, weigh, rows, as_it_goes=way.mode == "replay"
                )
                total = self._ranks.sum(mean.detach())
                outputs, cotangents = estimate.outputs()
                if outputs:
                    torch.autograd.backward(outputs, cotangents)
        except NonFiniteLossError as error:
            if self.nonfinite != "skip":
                raise
            return self._skip(self._ranks.sum(error.mean))
        except NonFiniteGradientError:
            if self.nonfinite != "skip":
                raise
            return self._skip(total)
        finally:
            for neuron in self._neurons.values():
                neuron.detach_state()
        self._told.after_learning(self.net)
        return total

    def _checked(self, losses: Any, recording: Recording) -> Tensor:
        """The losses as a tensor; if they are bad in one process, all of them raise."""
        error: LossError | None = None
        values = torch.zeros((), device=self._device)
        replicas = recording.noise.replicas
        try:
            values = loss_checks.checked_losses(losses, recording.rows or 0, replicas, self.causal)
            values = values.to(self._device)
            if self.causal:
                check_steps(recording.traces.values(), len(values))
            if self.nonfinite != "write":
                values = loss_checks.finite_losses(values, lambda: self._suspects(recording))
        except LossError as found:
            error = found
        try:
            loss_checks.all_usable(error, values, self._ranks)
        except NonFiniteLossError:
            nonfinite.check_weights(self.net)  # no batch will ever be better then
            raise
        return values

    def _suspects(self, recording: Recording) -> str:
        """What may have made the losses bad, as a sentence."""
        ran = {n: m for n, m in self._neurons.items() if recording.traces[m].calls}
        return nonfinite.suspects(ran)

    def _learn(self, recording: Recording, values: Tensor) -> Tensor:
        """Writes the gradient, and returns the mean loss."""
        recording.pending = False
        weight = self._credit.weights(values.detach(), self.replicas)
        control: dict[NoisyNeuron, list[Tensor]] = {}
        if recording.firing:
            control, explained = self._control(recording, values)
            for found in explained:
                weight = weight - found.to(weight)
        gathering = Gathering(recording)
        estimate = Estimate()
        measure = self._controller is not None or self.measure_snr
        gathering.gather(weight, estimate, control, measure=measure)
        # This process's part of the mean over all rows.
        mean = values.sum() / max(1, values.shape[-1] * self._ranks.size)
        total = self._ranks.sum(mean.detach())  # no exchange may fail once `.grad` is written
        gathering.follow(estimate, mean)
        outputs, cotangents = estimate.outputs()
        # Whatever comes through a graph, or from other processes, is known only afterwards.
        whole = not (estimate.drifts or mean.requires_grad or self._ranks.shares)
        known = dict(zip(outputs, cotangents, strict=True)) if whole else None
        if mean.requires_grad:
            outputs.append(mean)
            cotangents.append(torch.ones_like(mean))
        try:
            with (
                nonfinite.kept_out(self.net, self._neurons, self.nonfinite, known),
                self._ranks.summing(list(self.parameters())),
            ):
                if outputs:
                    torch.autograd.backward(outputs, cotangents)
        except NonFiniteGradientError:
            if self.nonfinite != "skip":
                raise
            return self._skip(total)
        if measure:
            self._measure_signal(recording, estimate)
        self._told.after_learning(self.net)
        return total

    def _measure_signal(self, recording: Recording, estimate: Estimate) -> None:
        """The signal-to-noise ratio of each layer, and the number of replicas that follows."""
        replicas = self.replicas

        def split(layer: list[Tensor]) -> Iterator[Tensor]:
            return (recording.rows * share.unflatten(0, (replicas, -1)) for share in layer)

        if self.measure_snr:
            ratios = {name: snr(split(layer), replicas) for name, layer in estimate.shares.items()}
            self.snr = {name: ratio for name, ratio in ratios.items() if ratio is not None}
        if self._controller is not None:
            layers = estimate.shares.values()
            self._controller.update(share for layer in layers for share in split(layer))

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
        """What a resumed run needs to draw the same noise: seed, passes so far, rule, options."""
        state = {**self._source.state_dict(), "rule": self.rule, **self._options()}
        if self._controller is not None:
            state["controller"] = self._controller.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the learner that gave `state` stopped.

        Raises:
            CheckpointError: An entry is missing or no such thing, or its options differ from
                this learner's. Nothing was changed.
            RecordingError: It is called inside `record()`.
        """
        self._check_not_running("load_state_dict")
        options = self._options()
        entries: dict[str, Any] = {
            "rule": lambda rule: type(rule) is str and rule in rules.NAMES,
            **self._source.entries,
            **dict.fromkeys(options, saved_state.anything),
        }
        if self._controller is not None:
            entries["controller"] = saved_state.anything
        saved_state.check(state, "learner", entries)
        if self._controller is not None:
            saved_state.check(state["controller"], "learner's controller", self._controller.entries)
        saved_state.check_options(state, options)
        self._source.load_state_dict(state)
        self.rule = state["rule"]
        if self._controller is not None:
            self._controller.load_state_dict(state["controller"])
        self._drop()

    def _drop(self) -> None:
        if self._recording is not None:
            self._recording.release()
        self._recording = None

    def _options(self) -> dict[str, Any]:
        return {
            "replicas": self._replicas * self._ranks.sharers or "auto",
            "baseline": self.baseline,
            "antithetic": self.antithetic,
            "sobol": self.sobol,
            "layerwise": self.layerwise,
            "causal": self.causal,
            "conditional": self.conditional,
            "control": self.control,
            "learn_sigma": self.learn_sigma,
            "noise": self.noise,
        }

    def _control(
        self, recording: Recording, losses: Tensor
    ) -> tuple[dict[NoisyNeuron, list[Tensor]], list[Tensor]]:
        """See `nit_snn.estimators.control.settle_all`.

        The first pass offers the spikes of all layers; from then on only those that were read.
        """
        control, explained = settle_all(
            recording.firing,
            losses,
            recording.anchor,
            self.replicas,
            self._credit.sharing,
            losses.numel() * self._ranks.size,
        )
        if losses.numel() and not control:
            self._controlled = set(self._neurons)  # another loss may read another layer
            raise LossError(
                f"control={self.control!r} needs a loss with a derivative in the spikes of a noisy "
                "layer; this one has none. Attach the learner with control='none'."
            )
        if control:
            self._controlled = {n for n, m in self._neurons.items() if m in control}
        return control, explained

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
    net: nn.Module, arguments: dict[str, Any], state: dict[str, Any], attributes: dict[str, bool]
) -> NITLearner:
    learner = NITLearner(net, **arguments)
    learner.load_state_dict(state)
    learner.measure_snr = attributes["measure_snr"]
    if not attributes["enabled"]:
        learner.disable()
    return learner


def _binary(neurons: Mapping[str, NoisyNeuron]) -> set[NoisyNeuron]:
    """Those whose spikes are the membrane above its threshold, and nothing else."""
    return {neuron for neuron in neurons.values() if neuron.why_no_firing_probability() is None}


def _make_taps(net: nn.Module) -> list[Tap]:
    return [
        Tap(name, module)
        for name, module in net.named_modules()
        if gradient_function(module) is not None
    ]
