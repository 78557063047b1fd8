"""A second version behind an alias: canary, A/B test or shadow, and how a canary ends."""
