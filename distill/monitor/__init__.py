"""Drift of what is asked and answered in production against a run's evaluation set."""
