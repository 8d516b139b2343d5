"""A learning step as a CUDA graph: launched as one, without Python in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..dynamics.backend import VARIABLE, backend_of
from ..errors import BackendError
from ..learner import NITLearner

#: Passes before the capture: they compile kernels, and look for what is wrong with the network.
_WARM_UP = 3


class GraphedStep:
    """Replays a learning step; see `cuda_graph`."""

    def __init__(self, learner: NITLearner, step: Callable[[], Any]) -> None:
        self._learner = learner
        device = learner._session.device
        self._trained = [p for p in learner.net.parameters() if p.requires_grad]
        before = [None if p.grad is None else p.grad.detach().clone() for p in self._trained]
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                self._forget()
                step()
        torch.cuda.current_stream(device).wait_stream(side)
        self._forget()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = step()
        # Written by each replay; whoever lets go of `.grad` must not lose them.
        self._grads = [p.grad for p in self._trained]
        for p, grad in zip(self._trained, before, strict=True):
            p.grad = grad

    def __call__(self) -> Any:
        """Takes the step once more, with fresh noise; returns what the step has returned.

        `.grad` is that of this step alone: a replay does not add to what was there.
        """
        self._graph.replay()
        for p, grad in zip(self._trained, self._grads, strict=True):
            p.grad = grad
        return self._output

    def _forget(self) -> None:
        for p in self._trained:
            p.grad = None


def cuda_graph(learner: NITLearner, step: Callable[[], Any]) -> GraphedStep:
    """Captures a learning step in a CUDA graph, and returns what replays it with fresh noise.

    A step of many small kernels is bound by Python; as a graph it is one launch. The step is taken
    three times and then captured, all with noise of their own. What it reads and returns stays in
    the same memory: write new inputs into the tensors that it has read, with `copy_`.

    Nothing can be raised from within a graph, so losses that are not finite count as zero there.
    What a learner adapts from pass to pass on the host stays as it was captured: the weight of
    `residual="auto"`, the readouts of `credit="feedback"`, NIT-S or NIT.

    Args:
        learner: The learner.
        step: Takes no arguments; records a pass, and calls `learner.backward`. An optimizer's step
            may follow if that optimizer is `capturable`.

    Raises:
        BackendError: The network is not on a GPU with the kernels. torch's noise would be the same
            in each replay.

    Example:
        >>> import torch
        >>> from nit_snn import cuda_graph
        >>> def graphed(learner, x, y):
        ...     def step():
        ...         with learner.record():
        ...             xr, yr = learner.expand(x, y)
        ...             losses = torch.nn.functional.cross_entropy(
        ...                 learner.net(xr), yr, reduction="none")
        ...         return learner.backward(losses)
        ...     return cuda_graph(learner, step)  # call it for each batch copied into x and y
    """
    device = learner._session.device
    if device.type != "cuda":
        raise BackendError(
            f"cuda_graph() is for networks on a CUDA device, and this one is on {device}. Move it "
            'with net.to("cuda"), or take the step as it is.'
        )
    found = backend_of(device)
    if found.name != "cupy":
        raise BackendError(
            "In a replayed graph only the kernels draw fresh noise, and they are not used on "
            f"{device}: {found}. See nit_snn.backends() and {VARIABLE}."
        )
    return GraphedStep(learner, step)
