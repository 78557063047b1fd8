"""Bank reconciliation: the demo's task."""
