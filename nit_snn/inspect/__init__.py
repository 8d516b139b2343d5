"""Looks at networks: the audit, the probe, logs, plots."""
