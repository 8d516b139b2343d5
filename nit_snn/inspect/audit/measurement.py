"""Independent estimates of the unbiased gradient and of each surrogate's, and their products."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ...learner import NITLearner
from .statistics import WHOLE, Products, gram
from .subject import Gradient, Subject
from .surrogates import Candidate

#: A surrogate by name, and whether its gradient is that of the network with noise.
Case = tuple[str, bool]


class Measurement:
    """Independent estimates of all gradients, each the mean of as many passes as were asked for.

    Args:
        subject: The network and its batch.
        learner: Gives the unbiased gradient.
        compared: The surrogates.
        estimates: How many estimates.
        seed: Of all that is random.
    """

    def __init__(
        self,
        subject: Subject,
        learner: NITLearner,
        compared: Mapping[str, Candidate],
        estimates: int,
        seed: int,
    ) -> None:
        self.subject, self.learner, self.compared = subject, learner, compared
        self.estimates = estimates
        self.passes = 0
        self._seeds = torch.Generator().manual_seed(seed)
        self._unbiased = Sums(estimates)
        self._noisy = {name: Sums(estimates) for name in compared}
        self._quiet = {name: Sums(estimates) for name in compared}
        self._quiet_is_fixed = False

    def one_round(self) -> Iterator[None]:
        """One more pass for each estimate."""
        for i in range(self.estimates):
            self._unbiased.add(i, self.subject.estimate(self.learner, self.new_seed()))
            self._add(self._noisy, i, noise=True)
            if not self._quiet_is_fixed:
                self._add(self._quiet, i, noise=False)
            if (self.passes, i) == (0, 1):
                self._keep_one_if_fixed()
            yield
        self.passes += 1

    def _add(self, sums: dict[str, Sums], i: int, noise: bool) -> None:
        found = self.subject.surrogate(self.compared, self.new_seed(), noise)
        for name, gradient in found.items():
            sums[name].add(i, gradient)

    def _keep_one_if_fixed(self) -> None:
        """Without noise nothing is random, but where the network holds dropout or the like."""
        self._quiet_is_fixed = all(sums.first_two_are_equal() for sums in self._quiet.values())
        if self._quiet_is_fixed:
            for sums in self._quiet.values():
                sums.keep_one()

    def new_seed(self) -> int:
        """One that nothing was drawn from yet."""
        return int(torch.randint(2**62, (), generator=self._seeds))

    def unbiased(self) -> Gradient:
        """The estimates of the unbiased gradient, (n, P) for each layer."""
        return self._unbiased.means()

    def products(self) -> dict[str, dict[Case, Products]]:
        """By layer, the whole network first, and case."""
        unbiased = self._unbiased.means()
        squares = with_whole({layer: gram(g, g) for layer, g in unbiased.items()})
        found: dict[str, dict[Case, Products]] = {layer: {} for layer in squares}
        for noise, sums in ((True, self._noisy), (False, self._quiet)):
            for name in self.compared:
                means = sums[name].means()
                both = with_whole({layer: gram(g, means[layer]) for layer, g in unbiased.items()})
                theirs = with_whole({layer: gram(s, s) for layer, s in means.items()})
                for layer, square in squares.items():
                    products = Products.of_grams(square, both[layer], theirs[layer])
                    found[layer][name, noise] = products
        return found


def with_whole(grams: dict[str, Tensor]) -> dict[str, Tensor]:
    """Products of the whole network's gradients are the sums of those of the layers'."""
    return {WHOLE: torch.stack(list(grams.values())).sum(0), **grams}


class Sums:
    """Sums of the gradients that go into each of n estimates, layer by layer.

    Args:
        estimates: n.
    """

    def __init__(self, estimates: int) -> None:
        self._counts = torch.zeros(estimates)
        self._layers: dict[str, Tensor] = {}

    def add(self, i: int, gradient: Gradient) -> None:
        self._counts[i] += 1
        for layer, value in gradient.items():
            if layer not in self._layers:
                self._layers[layer] = value.new_zeros(len(self._counts), len(value))
            self._layers[layer][i] += value

    def means(self) -> Gradient:
        """(n, P) for each layer."""
        return {
            layer: sums / self._counts.to(sums).unsqueeze(1) for layer, sums in self._layers.items()
        }

    def first_two_are_equal(self) -> bool:
        return all(torch.equal(sums[0], sums[1]) for sums in self._layers.values())

    def keep_one(self) -> None:
        """Takes the first estimate for all of them."""
        self._counts = self._counts[:1]
        self._layers = {layer: sums[:1].clone() for layer, sums in self._layers.items()}
