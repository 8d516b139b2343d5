"""Audits surrogate gradients with the unbiased gradient as the yardstick: `nit_snn.audit`."""

from .credits import CreditRow, Credits, Least
from .report import AuditReport, Closest, Row
from .run import audit
from .statistics import Interval
from .surrogates import noise_density, rectangle

__all__ = [
    "AuditReport",
    "Closest",
    "CreditRow",
    "Credits",
    "Interval",
    "Least",
    "Row",
    "audit",
    "noise_density",
    "rectangle",
]
