"""Every error and warning that nit_snn raises, in one place."""


class NITError(Exception):
    """Base of all errors of this package."""


class SwapError(NITError, ValueError):
    """`swap_neurons` or `restore_neurons` cannot do what was asked; the network is unchanged."""


class AttachError(NITError, ValueError):
    """`NITLearner` cannot be attached to this network with these options."""


class RecordingError(NITError, RuntimeError):
    """The recorded forward pass and the call to the learner do not fit together."""


class LossError(NITError, ValueError):
    """The losses have the wrong shape or type."""


class NonFiniteLossError(LossError):
    """A loss is NaN or infinite; no gradient was written."""


class CheckpointError(NITError, ValueError):
    """A learner's state does not belong to a learner with these options."""


class AuditError(NITError, ValueError):
    """`audit` cannot compare gradients of this network with this loss and these options."""


class ClassifierError(NITError, ValueError):
    """A `NoisyClassifier` cannot be made of this network with these options, or is misused."""


class ExchangeError(NITError, ValueError):
    """A network, or a graph, holds what the other side of an exchange cannot express."""


class BackendError(NITError, RuntimeError):
    """The backend that was asked for cannot run here."""


class BiasWarning(UserWarning):
    """Part of the network couples the rows of a batch, which the estimator cannot see."""


class UnreachedParameterWarning(UserWarning):
    """A parameter asks for a gradient that neither the noise nor autograd can give."""
