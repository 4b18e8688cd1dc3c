"""Logs and metrics. Imports nothing of the layers that it observes: they call it."""
