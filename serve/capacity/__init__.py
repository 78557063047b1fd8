"""How many replicas some traffic needs and what they cost: a simulator of the serving side."""
