"""Whether a CUDA graph is being captured."""

import torch


def being_captured() -> bool:
    """Whether a CUDA graph is being captured, in which nothing can be waited for."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
