"""Curation: hard checks, cheapest first; every reject keeps its reason."""
