"""Whether a predictor is worth anything: ranking and calibration, beside one that is constant."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.evaluate.metrics import Bootstrap, interval
from distill.route.chance import LEVEL

Floats = NDArray[np.float64]
BINS = 10
CHANCE = 0.5


def worth(
    scores: Floats, honest: Floats, wrong: Floats, bootstrap: Bootstrap, *, p_value: float
) -> dict[str, Any]:
    """Return AUC with its interval, Brier score and ECE of both predictors, and the bins.

    `scores` rank, `honest` are probabilities calibrated by other folds. `better_than_chance` asks
    that the AUC's whole interval is above a half and that its permutation test says so.
    """
    auc, ends = area(scores, wrong, bootstrap)
    base = float(wrong.mean())
    # The constant one is told the rate of the very prompts it is judged by: the hardest to beat.
    constant = np.full(len(wrong), base)
    bins = reliability(honest, wrong)
    return {
        "auc": auc,
        "auc_ci95": ends,
        "p_value": p_value,
        "better_than_chance": bool(ends and ends[0] > CHANCE and p_value <= LEVEL),
        "brier": brier(honest, wrong),
        "brier_constant": brier(constant, wrong),
        "brier_gain_ci95": bootstrap.mean_interval((constant - wrong) ** 2 - (honest - wrong) ** 2),
        "ece": calibration_error(bins),
        "ece_constant": calibration_error(reliability(constant, wrong)),
        "bins": bins,
    }


def area(scores: Floats, wrong: Floats, bootstrap: Bootstrap) -> tuple[float, list[float] | None]:
    """Return the area under the ROC curve and its interval.

    The chance that a wrong answer's score is above a right one's, ties count a half (Hanley and
    McNeil 1982); resamples weigh the pairs.
    """
    bad, good = wrong == 1, wrong == 0
    above = scores[bad][:, None] - scores[good][None, :]
    wins = (above > 0) + 0.5 * (above == 0)
    weights = bootstrap.weights_S_N
    pairs = weights[:, bad].sum(axis=1) * weights[:, good].sum(axis=1)
    won = ((weights[:, bad] @ wins) * weights[:, good]).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return float(wins.mean()), interval(won / pairs)


def brier(probabilities: Floats, wrong: Floats) -> float:
    """Return the mean squared error of probabilities (Brier 1950)."""
    return float(np.mean((probabilities - wrong) ** 2))


def reliability(probabilities: Floats, wrong: Floats) -> list[dict[str, float]]:
    """Return predicted and observed rates in bins of equally many prompts, lowest first.

    Bins of equal width would leave nearly all prompts in the first where few answers are wrong.
    """
    order = np.argsort(probabilities, kind="stable")
    parts = [part for part in np.array_split(order, min(BINS, len(order))) if len(part)]
    return [
        {
            "num_prompts": len(part),
            "predicted": float(probabilities[part].mean()),
            "observed": float(wrong[part].mean()),
        }
        for part in parts
    ]


def calibration_error(bins: list[dict[str, float]]) -> float:
    """Return the expected calibration error of the bins (Naeini, Cooper and Hauskrecht 2015)."""
    total = sum(part["num_prompts"] for part in bins)
    off = sum(part["num_prompts"] * abs(part["predicted"] - part["observed"]) for part in bins)
    return off / total
