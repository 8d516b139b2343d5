"""Audits surrogate gradients with the unbiased gradient as the yardstick: `nit_snn.audit`."""

from .report import AuditReport, Closest, Row
from .run import audit
from .statistics import Interval
from .surrogates import noise_density, rectangle

__all__ = ["AuditReport", "Closest", "Interval", "Row", "audit", "noise_density", "rectangle"]
