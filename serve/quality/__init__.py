"""Checks on a student's answers and what is done when one fails."""
