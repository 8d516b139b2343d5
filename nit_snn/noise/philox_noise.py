"""The noise of the kernels as a source of noise for a learner."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..dynamics.kernels.weighted_score.op import weighted_score
from ..errors import AttachError
from ..training.distributed import ALONE, Ranks
from .philox import Stream, signed

_MOST_REPLICAS = 2**16  # a half word of the counter


class PhiloxNoise:
    """Standard normal noise that the kernels make where they need it, and can make again.

    Args:
        seed: Names the whole family of streams.
        passes: Number of the pass, int64, of one element, on each device that has neurons.
        replicas: Number C of replicas per sample.
        antithetic: Replica c + C/2 gets minus the noise of replica c.
        ranks: Who shares out the replicas; `replicas` are this process's then.

    Raises:
        AttachError: More replicas than a counter can name.
    """

    def __init__(
        self,
        seed: int,
        passes: dict[torch.device, Tensor],
        replicas: int,
        antithetic: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        self.seed = seed
        self.replicas = replicas
        self.passes = passes
        self.antithetic = antithetic
        self.ranks = ranks
        self.first = ranks.first(replicas // 2 if antithetic else replicas)
        if replicas * ranks.sharers > _MOST_REPLICAS:
            raise AttachError(
                f"The kernels' noise can name {_MOST_REPLICAS} replicas of a sample, not "
                f"{replicas * ranks.sharers}. Use fewer, or NIT_SNN_BACKEND=torch."
            )

    def stream(self, device: torch.device, layer: int) -> Stream:
        """The noise of one layer in this pass."""
        return Stream(
            signed(self.seed),
            self.passes[device],
            layer,
            self.replicas,
            self.antithetic,
            self.first,
        )

    def draw(
        self,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        index: int,
        layer: int,
        call: int,
        layers: int,
    ) -> Tensor:
        """See `nit_snn.noise.streams.ReplicaNoise.draw`; the device counts the passes itself."""
        device = torch.device(device)
        one = torch.ones(1, device=device)
        drawn = weighted_score(
            one.expand(shape[0]),
            one,
            **vars(self.stream(device, layer)),
            inner=math.prod(shape[1:]),
            steps=1,
            first_step=call,
        )
        return drawn.view(shape).to(torch.float64 if dtype == torch.float64 else torch.float32)
