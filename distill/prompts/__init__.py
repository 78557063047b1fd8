"""Prompts: where they come from, how they are split, and the proof that the splits are apart."""
