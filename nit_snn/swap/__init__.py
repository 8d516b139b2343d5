"""Makes neurons noisy, in place, and back."""

from .calibrate import Calibrated as Calibrated
from .calibrate import calibrate as calibrate
from .neurons import restore_neurons as restore_neurons
from .neurons import spiking_modules as spiking_modules
from .neurons import swap_neurons as swap_neurons
