"""Which prompts a student gets wrong, and what sending them elsewhere costs and brings."""
