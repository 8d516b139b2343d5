"""A spiking network, noisy or plain, as an ordinary module from images to logits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..dynamics.needs import Needs
from ..errors import AttachError, BiasWarning, ClassifierError
from ..inspect.audit.surrogates import Surrogate, switched
from ..neurons.base import check_module, noise_off, noisy_neurons
from ..noise.streams import ReplicaNoise
from ..recording.recorder import Recorder
from ..validation import network
from ..validation.to_python_scalar import is_whole
from .check_gradient import check_lr, check_surrogate, neurons_with_surrogate
from .front import once
from .neuron_states import check_idle, reset_states
from .pullback import AVERAGES, Averaged, LikelihoodRatio, Pass, frozen, lr_estimator

GRADIENTS = ("surrogate", "lr")


class NoisyClassifier(nn.Module):
    """A spiking network as an `nn.Module` from images to logits, with a gradient of choice.

    Attack libraries take it as it is: `torchattacks.PGD(classifier)`, foolbox's
    `PyTorchModel(classifier, bounds=(0, 1))`, ART's `PyTorchClassifier(classifier, ...)`,
    `AutoAttack(classifier, version="rand")`. In each call every image is put through the network
    `draws` times, each time with noise of its own, and the outputs are averaged. All neurons are
    reset before and after, so that no call knows of another, whether or not the network's own
    forward resets them.

    The gradient with respect to the images is either

    - "surrogate": autograd through the spikes, by the network's own surrogate derivatives or by
      others, averaged over the draws (EOT); or
    - "lr": the unbiased likelihood-ratio estimate of the derivative of the expected outputs, which
      goes through no spike and needs no surrogate (see `nit_snn.robustness.pullback`). With it
      any gradient attack becomes an attack by the true gradient, up to noise. It says nothing
      about the network's parameters, and cannot be differentiated again.

    Several classifiers may share one network: one to attack, with few draws, and one to judge, with
    many and other options.

    Args:
        net: A network with neurons of snnTorch or SpikingJelly, noisy (see
            `nit_snn.swap_neurons`) or plain. It is used, not copied.
        draws: C, how often each image is put through the network. "lr" compares draws with each
            other and needs at least 2. All draws are made at once. What a gradient needs is kept
            until then: "lr", plain, keeps a number for each draw, image, step and neuron of those
            layers that the images enter; "surrogate" several for those of all layers.
        noise: False switches the noise off in these calls, and leaves the network's own switch
            alone. One draw is enough then, unless something else in the network is random.
        gradient: "surrogate" or "lr".
        average: What is averaged over the draws. "logits": their mean, which leaves losses on
            differences of logits (CW, DLR) their meaning. "probabilities": log of the mean of their
            softmax, the prediction of a defender who averages probabilities or lets each draw vote
            softly; it is a set of logits, too, whose softmax is that mean. Attack the one that
            the defender decides by.
        surrogate: With gradient="surrogate" the derivative of every spike: any surrogate of either
            framework in either network, such as `snntorch.surrogate.atan(alpha=2.0)` or
            `surrogate.Sigmoid(alpha=4.0)` of SpikingJelly, or
            `nit_snn.inspect.audit.noise_density`; or one for each neuron by its qualified name.
            None: the network's own. Spikes remain what they are.
        conditional: With gradient="lr", as in `nit_snn.NITLearner`: conditions on the spikes, for
            less variance; for outputs that are made of spikes and not of membranes.
        credit: With gradient="lr", as in `nit_snn.NITLearner`: a control variate, for outputs that
            are differentiable in spikes. Take "time" with conditional=True wherever the network
            allows: it has far less variance. The plain estimate from 20 draws is mostly noise, and
            an attack by it weaker than the network deserves.
        encode: From images (N, \\*) to what the network takes, run once per image before it is
            repeated, with a gradient. None: images go in as they are. Something random (a spike
            encoder) belongs in the network, where each draw has its own.
        dim: The batch dimension of what `encode` returns: 1 for time-first input.
        readout: From what the network returns to logits (C * N, K), such as
            `lambda output: output[0].sum(0)` where it returns spikes over time and membranes.
            None: it returns logits.
        seed: None draws fresh noise from torch's global generator in each call, which is what an
            attack that averages (EOT) and an honest evaluation want. A number draws the
            same noise in each call, and leaves the global generator alone: the classifier is then a
            deterministic function, which a defender must not be judged by.

    Shape:
        Images (N, \\*), output (N, K).

    Raises:
        TypeError: `net` is no module.
        ClassifierError: Options contradict each other or the network, or the network's output is no
            logits.
        RecordingError: It is called while a learner records the network.

    Example:
        >>> import torch, snntorch
        >>> from nit_snn import swap_neurons
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Flatten(), torch.nn.Linear(4, 8),
        ...     snntorch.Leaky(beta=0.5, init_hidden=True), torch.nn.Linear(8, 3))
        >>> classifier = NoisyClassifier(swap_neurons(net), draws=16, gradient="lr")
        >>> images = torch.rand(5, 1, 2, 2, requires_grad=True)
        >>> labels = torch.tensor([0, 1, 2, 0, 1])
        >>> cost = torch.nn.functional.cross_entropy(classifier(images), labels)
        >>> torch.autograd.grad(cost, images)[0].shape
        torch.Size([5, 1, 2, 2])
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        draws: int = 1,
        noise: bool = True,
        gradient: str = "surrogate",
        average: str = "logits",
        surrogate: Surrogate | Mapping[str, Surrogate] | None = None,
        conditional: bool = False,
        credit: str = "none",
        encode: Callable[[Tensor], Tensor] | None = None,
        dim: int = 0,
        readout: Callable[[Any], Tensor] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_module(net)
        if seed is not None and not is_whole(seed):
            raise ClassifierError(f"seed must be an integer or None, got {seed!r}.")
        if not is_whole(draws) or draws < 1:
            raise ClassifierError(f"draws must be a positive integer, got {draws!r}.")
        for option, value, allowed in (
            ("gradient", gradient, GRADIENTS),
            ("average", average, AVERAGES),
        ):
            if value not in allowed:
                raise ClassifierError(f"{option} must be one of {allowed}, got {value!r}.")
        if gradient == "lr":
            check_lr(net, draws, noise, surrogate, conditional, credit)
        elif conditional or credit != "none":
            raise ClassifierError("conditional and credit belong to gradient='lr'.")
        if surrogate is not None:
            check_surrogate(net, surrogate)
        self.net = net
        self.training = net.training  # attack libraries put the net back to what this says
        self.draws = int(draws)
        self.noise = noise
        self.gradient = gradient
        self.average = average
        vars(self)["surrogate"] = surrogate  # not a module of this one, though it may be a module
        self.surrogate: Surrogate | Mapping[str, Surrogate] | None
        self.conditional = conditional
        self.credit = credit
        self.encode = encode
        self.dim = dim
        self.readout = readout
        self.seed = None if seed is None else int(seed)

    def extra_repr(self) -> str:
        return (
            f"draws={self.draws}, noise={self.noise}, gradient={self.gradient!r}, "
            f"average={self.average!r}, seed={self.seed}"
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of images (N, \\*)."""
        if not isinstance(images, Tensor) or not images.dim():
            got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ClassifierError(f"Images must be a tensor (N, *), got {got}.")
        if torch.is_inference_mode_enabled():
            # Tensors made in it do not tell when they are written to.
            with torch.inference_mode(False), torch.no_grad():
                return self.forward(images.clone())
        check_idle(noisy_neurons(self.net))
        reset_states(self.net)
        try:
            with self._randomness(images.device):
                if self.gradient == "surrogate":
                    return self._by_autograd(images)
                if torch.is_grad_enabled() and images.requires_grad:
                    logits: Tensor = LikelihoodRatio.apply(images, self._recorded)
                    return logits
                return self._recorded(images.detach()).averaged.mean.detach()
        finally:
            reset_states(self.net)  # what is left may hold the graph of this call

    def _by_autograd(self, images: Tensor) -> Tensor:
        encoded = self._encoded(images)
        with (
            noise_off(self.net) if not self.noise else nullcontext(),
            self._surrogates(),
            once(self.net, encoded, self.draws, self.dim) as repeated,
        ):
            logits = self._logits(self.net(repeated), encoded.shape[self.dim])
        return Averaged.of(logits, self.average).mean

    def _recorded(self, images: Tensor) -> Pass:
        """One pass whose gradient can be estimated, if the images ask for one."""
        neurons = noisy_neurons(self.net)
        try:
            network.check_neurons(self.net, neurons)
            network.check_levels(neurons)
        except AttachError as error:
            raise ClassifierError(f"gradient='lr' is not for this network now: {error}") from error
        wanted = images.requires_grad
        estimator = lr_estimator(self.conditional, self.credit)
        with torch.enable_grad(), frozen(self):
            encoded = self._encoded(images)
            recorder = Recorder(
                neurons,
                ReplicaNoise(int(torch.randint(2**62, ()).item()), self.draws),
                0,
                estimator.needs(self.conditional) if wanted else Needs(),
                binary={n for n in neurons.values() if n.why_no_firing_probability() is None},
            )
            with (
                network.coupled_batch_norms(self.net, lambda: recorder.trace.begun) as coupled,
                recorder.running([]),
                once(self.net, encoded, self.draws, self.dim) as repeated,
            ):
                logits = self._logits(self.net(repeated), encoded.shape[self.dim])
            averaged = Averaged.of(logits, self.average)
        if coupled and wanted:
            warnings.warn(
                f"BatchNorm in training mode behind a noisy layer: {', '.join(coupled)}. The "
                "likelihood-ratio gradient leaves out what reaches one image through another's "
                "statistics. Call eval() first.",
                BiasWarning,
                stacklevel=5,
            )
        recorder.pending = False
        return Pass(self.net, recorder.trace, estimator, images, averaged)

    def _encoded(self, images: Tensor) -> Tensor:
        encoded = images if self.encode is None else self.encode(images)
        if not isinstance(encoded, Tensor) or not 0 <= self.dim < encoded.dim():
            got = tuple(encoded.shape) if isinstance(encoded, Tensor) else type(encoded).__name__
            raise ClassifierError(
                f"The network's input must be a tensor with its batch along dim={self.dim}, "
                f"got {got}."
            )
        return encoded

    def _logits(self, output: Any, images: int) -> Tensor:
        """(C, N, K)."""
        logits = output if self.readout is None else self.readout(output)
        rows = self.draws * images
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != rows:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ClassifierError(
                f"Logits must be of shape (draws * N, classes) = ({rows}, K), got {got}. Pass "
                "readout=..., such as lambda output: output[0].sum(0) for spikes over time."
            )
        return logits.unflatten(0, (self.draws, images))

    @contextmanager
    def _surrogates(self) -> Iterator[None]:
        if self.surrogate is None:
            yield
            return
        neurons = neurons_with_surrogate(self.net)
        with switched(self.net) as choose:
            choose({neuron: self._surrogate_of(name) for name, neuron in neurons.items()})
            yield

    def _surrogate_of(self, name: str) -> Any:
        return self.surrogate[name] if isinstance(self.surrogate, Mapping) else self.surrogate

    @contextmanager
    def _randomness(self, device: torch.device) -> Iterator[None]:
        """Torch's generators, started from the seed if there is one and then left as they were."""
        if self.seed is None:
            yield
            return
        numbers = [torch.cuda._get_device_index(device, True)] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=numbers):
            torch.default_generator.manual_seed(self.seed)
            for number in numbers:
                torch.cuda.default_generators[number].manual_seed(self.seed)
            yield
