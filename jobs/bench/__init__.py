"""Measurements beside the tests: each writes `build/bench/<name>.json`."""
