"""Every error and warning that nit_snn raises, in one place."""

from torch import Tensor


class NITError(Exception):
    """Base of all errors of this package."""


class SwapError(NITError, ValueError):
    """`swap_neurons` or `restore_neurons` cannot do what was asked; the network is unchanged."""


class CalibrationError(NITError, ValueError):
    """`calibrate` cannot give a layer its firing rate; all weights are as they were."""


class AttachError(NITError, ValueError):
    """`NITLearner` cannot be attached to this network with these options."""


class RecordingError(NITError, RuntimeError):
    """The recorded forward pass and the call to the learner do not fit together."""


class LossError(NITError, ValueError):
    """The losses have the wrong shape or type."""


class NonFiniteLossError(LossError):
    """A loss is NaN or infinite; no gradient was written.

    Attributes:
        mean: The mean of the losses.
    """

    def __init__(self, message: str, mean: Tensor) -> None:
        super().__init__(message)
        self.mean = mean


class NonFiniteGradientError(NITError, ValueError):
    """An estimate holds NaN or infinity although no loss does; no gradient was written.

    Attributes:
        mean: The mean of the losses, once it is known.
    """

    mean: Tensor


class NonFiniteWeightError(NITError, ValueError):
    """A parameter already holds NaN or infinity, from which nothing can be learned."""


class DistributedError(NITError, RuntimeError):
    """Another process hangs or has ended, or the exchange failed: no update can be made together.

    What torch.distributed said is in the message, and in `__cause__`.
    """


class CurrentError(NITError, ValueError):
    """A noisy neuron was given a current that it cannot add its noise to."""


class CheckpointError(NITError, ValueError):
    """A saved state cannot be written, read, or gone on from; what was there is unchanged."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint's file is not what was written: it is cut short, or a byte of it has changed."""


class DatasetError(NITError, ValueError):
    """A file of a dataset is damaged, or is another one than its name says."""


class AuditError(NITError, ValueError):
    """`audit` cannot compare gradients of this network with this loss and these options."""


class ClassifierError(NITError, ValueError):
    """A `NoisyClassifier` cannot be made of this network with these options, or is misused."""


class LoopError(NITError, ValueError):
    """What was handed over of a network that runs elsewhere does not fit its description."""


class ExchangeError(NITError, ValueError):
    """A network, or a graph, holds what the other side of an exchange cannot express."""


class BackendError(NITError, RuntimeError):
    """The backend that was asked for cannot run here."""


class DamagedCheckpointWarning(UserWarning):
    """A damaged checkpoint was passed over, and the one before it taken."""


class BiasWarning(UserWarning):
    """Part of the network couples the rows of a batch, which the estimator cannot see."""


class UnreachedParameterWarning(UserWarning):
    """A parameter asks for a gradient that neither the noise nor autograd can give."""


class SilentLayerWarning(UserWarning):
    """A layer never fires, or always, or all losses are equal: nothing can be learned there."""


class MisuseWarning(UserWarning):
    """Something runs that is hardly ever meant; once for each learner."""


class CarriedStateWarning(MisuseWarning):
    """A pass starts from the membranes that the last one left; right for one long sequence only."""
