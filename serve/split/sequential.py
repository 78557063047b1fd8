"""Bounds on a rate that hold at every moment at once, however often one looks."""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.special import betaln

A = B = 0.5
"""The mixing Beta distribution (Jeffreys'): sharp for rates near 0 and 1."""
EDGE = 1e-12


def rate_bounds(successes: int, trials: int, *, alpha: float) -> tuple[float, float]:
    """Return the interval of rates that `successes` of `trials` do not speak against.

    A confidence sequence for a Bernoulli rate: with probability at least 1 - alpha it holds the
    true rate after every single trial, so a decision may be taken as soon as it allows one. It
    inverts the Beta mixture martingale of Robbins (1970, "Statistical Methods Related to the Law
    of the Iterated Logarithm"); that it stays below 1/alpha for ever with that probability is
    Ville's inequality. See Howard, Ramdas, McAuliffe and Sekhon (2021, Annals of Statistics 49:2).
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes {successes} of {trials} trials")
    if not trials:
        return 0.0, 1.0
    failures = trials - successes
    mixed = betaln(A + successes, B + failures) - betaln(A, B)
    threshold = math.log(1 / alpha)

    def excess(rate: float) -> float:
        """Above 0 where the trials speak against `rate`."""
        likelihood = successes * math.log(rate) + failures * math.log1p(-rate)
        return float(mixed - likelihood - threshold)

    middle = min(max(successes / trials, EDGE), 1 - EDGE)
    low = brentq(excess, EDGE, middle) if successes and excess(EDGE) > 0 else 0.0
    high = brentq(excess, middle, 1 - EDGE) if failures and excess(1 - EDGE) > 0 else 1.0
    return float(low), float(high)
