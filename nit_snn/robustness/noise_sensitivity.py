"""How far a perturbation of the image moves the first noisy layer, in units of its noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..compat import cuda_devices
from ..dynamics.executor import Moved
from ..dynamics.lif import MembraneUpdate
from ..errors import ClassifierError
from ..inspect.probe import Activity, _Probe
from ..neurons.base import FLEETING, NoisyNeuron, noisy_neurons
from .classifier import NoisyClassifier
from .eot import evaluating
from .inputs import check_numbers
from .neuron_states import check_idle, reset_states


@dataclass(frozen=True)
class Sensitivity:
    """How far a perturbation of size 1 moves a layer's membranes in all, in units of their noise.

    Attributes:
        l2: For perturbations measured by their Euclidean norm; exact.
        linf: For those measured by their largest entry; an upper bound.
    """

    l2: float
    linf: float


def sensitivity(classifier: NoisyClassifier, image: Tensor) -> Sensitivity:
    """What the first noisy layer's currents make of a perturbation of the image.

    `mu^2 = sum_t |gain dI_t / sigma|^2 = |M delta|^2` with the matrix M of all steps, found from
    one pass over unit images. Its largest singular value is `l2`; `linf` is the norm of the
    rows' sums of absolute values.

    Memory: there is a unit image for each of the image's D numbers, and all go through together.
    That is (D + 5) * D numbers for the images, and (D + 5) * M for the currents of the first noisy
    layer, with M neurons times steps. For D = 784 it is little; an image of 3 x 224 x 224 wants
    91 GB at 32 bits before the network has begun.

    Args:
        classifier: Its network's membranes have to be in closed form there (leaky or not, any
            reset), its currents affine in the images, and the images must enter nowhere else.
        image: (1, \\*), for its shape.

    Raises:
        ValueError: It is not one image.
        ClassifierError: One of these does not hold, or the noise is off.
        RecordingError: A learner records the network.
    """
    check_numbers(image)
    if image.dim() < 2 or len(image) != 1:
        raise ValueError(f"One image is looked at, (1, *), got {tuple(image.shape)}.")
    if not classifier.noise:
        raise ClassifierError(
            "This classifier has noise=False: its votes all agree, and nothing is certain."
        )
    flat = image.detach().reshape(1, -1)
    size = flat.shape[1]
    inside = torch.rand(4, size, dtype=flat.dtype, device=flat.device)
    rows = torch.cat([torch.zeros_like(flat), torch.eye(size).to(flat), inside])
    shifts = _observed(classifier, rows.reshape(-1, *image.shape[1:]))
    matrix = (shifts[1 : size + 1] - shifts[0]).double()
    expected = inside.double() @ matrix
    found = (shifts[size + 1 :] - shifts[0]).double()
    if (found - expected).abs().max() > 1e-3 * expected.abs().max():
        raise ClassifierError(
            "The currents of the first noisy layer are not affine in the images, so that their "
            "sensitivity is not known."
        )
    return Sensitivity(
        float(torch.linalg.matrix_norm(matrix, ord=2)),
        float(torch.linalg.vector_norm(matrix.abs().sum(0))),
    )


class _Currents(_Probe):
    """Keeps the currents of the first noisy layer over its noise, and lets nothing else through."""

    def __init__(self, names: dict[NoisyNeuron, str], alike: bool = False) -> None:
        super().__init__()
        self.names = names
        self.alike = alike
        self.first: NoisyNeuron | None = None
        self.found: list[Tensor] = []

    def step(self, neuron: NoisyNeuron, update: MembraneUpdate) -> Moved:
        """See `nit_snn.neurons.base.Recorder`."""
        membrane = super().step(neuron, update).membrane
        assert membrane is not None
        seen = self._seen(neuron, update, membrane)
        return Moved(seen, None, seen)

    def _seen(self, neuron: NoisyNeuron, update: MembraneUpdate, membrane: Tensor) -> Tensor:
        if self.first is None:
            self.first = neuron
        if self.alike:
            return self._alike(neuron, membrane)
        if neuron is not self.first:
            return membrane
        name, sigma = self.names[neuron], neuron.sigma.detach()
        if update.rule.lif is None:
            raise ClassifierError(f"The membrane of {name} has no closed form that is known here.")
        if not bool((sigma > 0).all()) or not neuron.noise:
            raise ClassifierError(f"{name} is the first noisy layer, and has to have noise.")
        current = sum((c.value * c.gain for c in update.currents), torch.zeros(()))
        self.found.append((current.detach() / sigma).flatten(1))
        return membrane.detach()

    def _alike(self, neuron: NoisyNeuron, membrane: Tensor) -> Tensor:
        """What each row would be if the first layer had seen the same image in all of them."""
        if neuron is self.first:
            return membrane[:1].detach().expand_as(membrane).clone()
        seen = self.activities[neuron]
        return seen.drifts[-1] + seen.noises[-1][:1]


def _observed(classifier: NoisyClassifier, images: Tensor) -> Tensor:
    """What the first noisy layer sees over its noise, (N, neurons and steps)."""
    neurons = noisy_neurons(classifier.net)
    if not neurons:
        raise ClassifierError("The network has no noisy neuron, and no noise that certifies.")
    check_idle(neurons)
    seen = _Currents({neuron: name for name, neuron in neurons.items()})
    images = images.clone().requires_grad_()
    logits = _watched(classifier, images, seen)
    reached = (
        logits.requires_grad and torch.autograd.grad(logits.sum(), images, allow_unused=True)[0]
    )
    if isinstance(reached, Tensor) or _passes_by(classifier, images):
        raise ClassifierError(
            "The images reach the output on other ways than through the first noisy layer's "
            "currents; noise that not all of a perturbation meets certifies nothing."
        )
    return torch.cat(seen.found, 1)


def _watched(classifier: NoisyClassifier, images: Tensor, seen: _Currents) -> Tensor:
    """Logits, (1, N, K), of a pass that `seen` gives its noise."""
    reset_states(classifier.net)
    try:
        for neuron in seen.names:
            seen.activities[neuron] = Activity()
            neuron._recorder = seen
        with evaluating(classifier.net), torch.enable_grad():
            return classifier._logits(classifier.net(classifier._encoded(images)), len(images))
    finally:
        for neuron in seen.names:
            for name in FLEETING:
                vars(neuron).pop(name, None)
        reset_states(classifier.net)


def _passes_by(classifier: NoisyClassifier, images: Tensor) -> bool:
    """Whether images tell on the output although the first layer sees the same in all rows.

    This finds ways without a derivative, such as a threshold. Twice, with other noise: once, a
    membrane at its threshold may have been rounded the other way in another row.
    """
    inside = images.detach()[-4:]
    ends = torch.zeros_like(inside[:1]), torch.ones_like(inside[:1])
    rows = torch.cat([inside, 1 - inside, *ends])
    names = {neuron: name for name, neuron in noisy_neurons(classifier.net).items()}
    with torch.random.fork_rng(cuda_devices()):
        for _ in range(2):
            logits = _watched(classifier, rows, _Currents(names, alike=True)).detach()[0]
            if torch.allclose(logits, logits[:1].expand_as(logits), rtol=1e-3, atol=1e-4):
                return False
    return True
