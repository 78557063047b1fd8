"""Base, student and teacher on the held-out prompts: predictions, metrics, cost, report."""
