"""Which candidate should teach: the same prompts for all, scores side by side, and how sure it is.

Pure over plain rows; where they come from (asked just now, or exported) makes no difference. Axes:
C candidates, N prompts, P pairs of judge and dimension, D dimensions, S resamples.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import DataError
from cluster.storage import digest_of
from distill.evaluate.metrics import Bootstrap, interval, latencies
from distill.judge.agreement import agreement, final_verdicts
from distill.judge.families import model_family

Floats = NDArray[np.float64]
Row = dict[str, Any]

MIN_PROMPTS = 10
"""Fewer prompts than this and a percentile bootstrap is too narrow to call a difference real."""
RECURRING = 2
"""An issue recurs when at least so many of a candidate's answers have it."""


def sample_ids(ids: Collection[str], *, size: int | None, seed: int) -> list[str]:
    """Return `size` of the prompts' ids (all of them for `None`), in the order of their digests.

    The same ids and seed give the same sample on every machine, and a larger size only adds to it.
    """
    ordered = sorted(ids, key=lambda name: digest_of([seed, name]))
    return ordered if size is None else ordered[:size]


def score_candidates(
    answers: Sequence[Row],
    verdicts: Sequence[Row],
    *,
    sample: int | None = None,
    seed: int = 17,
    bootstrap_samples: int = 1000,
) -> Row:
    """Compare candidates on the prompts that all were given; returns what `selection.json` holds.

    `answers`: example_id, candidate, completion, error ("" when answered), latency_s, cost_usd
    (`None` where not known). `verdicts`: `distill.records.VERDICT`, the candidate as `author`.

    A judge's score on a dimension counts for a prompt only where that judge scored every candidate
    there, so that a judge's failure or leniency cannot tip the balance. A prompt that a candidate
    did not answer scores 0 for it. A dimension is the mean over judges, then over prompts; the
    overall score is the plain mean over dimensions. Intervals are 95% percentile bootstraps over
    prompts, the same resamples for every candidate (paired).

    DataError: fewer than two candidates, no prompt or no judge that they share.
    """
    by_candidate = _by_candidate(answers)
    shared = set.intersection(*(set(rows) for rows in by_candidate.values()))
    seen = set.union(*(set(rows) for rows in by_candidate.values()))
    if not shared:
        raise DataError(
            f"no prompt was given to all of {', '.join(by_candidate)}: their example_ids differ. "
            "Export answers to the same prompts."
        )
    ids = sample_ids(shared, size=sample, seed=seed)
    inside = set(ids)
    final = [
        row
        for row in final_verdicts(verdicts)
        if row["example_id"] in inside and row["author"] in by_candidate
    ]
    names = list(by_candidate)
    table = _Table(by_candidate, final, ids)
    bootstrap = Bootstrap(len(ids), samples=bootstrap_samples, seed=seed)
    overall_C, overall_C_S = table.overall(bootstrap)
    order = sorted(range(len(names)), key=lambda c: (-overall_C[c], names[c]))
    candidates = {
        names[c]: {
            "overall": float(overall_C[c]),
            "overall_ci95": interval(overall_C_S[c]),
            "dimensions": table.dimension_figures(c, bootstrap),
            **_practical([by_candidate[names[c]][key] for key in ids], bootstrap),
            "judge_failures": _judge_failures(final, names[c]),
            "issues": _issues(final, names[c]),
        }
        for c in order
    }
    result: Row = {
        "num_prompts": len(ids),
        "num_prompts_left_out": len(seen) - len(shared),
        "judges": table.judges,
        "dimensions": table.dimensions,
        "num_scores_left_out": table.num_left_out,
        "candidates": candidates,
        "differences": _differences(order, names, overall_C, overall_C_S, len(ids)),
        "agreement": agreement(final, samples=bootstrap_samples, seed=seed),
        "sample": {"size": sample, "seed": seed, "ids": ids},
        "bootstrap_samples": bootstrap_samples,
    }
    return _decided(result, without_kin=_winner_without_kin(by_candidate, final, ids))


def recurring_issues(candidates: Row, *, most: int = 12) -> list[tuple[str, Row]]:
    """Tags that recur in some candidate's answers, commonest first: (tag, candidate -> answers)."""
    totals: Counter[str] = Counter()
    for figures in candidates.values():
        totals.update(figures["issues"])
    counts = {
        tag: {name: figures["issues"].get(tag, 0) for name, figures in candidates.items()}
        for tag, _ in sorted(totals.items(), key=lambda item: (-item[1], item[0]))
    }
    found = [(tag, by) for tag, by in counts.items() if max(by.values()) >= RECURRING]
    return found[:most]


class _Table:
    """Scores on the cells (prompt, judge, dimension) that every candidate shares."""

    def __init__(self, answers: dict[str, dict[str, Row]], verdicts: list[Row], ids: list[str]):
        scored = [row for row in verdicts if row["score"] is not None]
        # Dimensions in the order of the verdicts, which is the rubric's.
        place = {name: d for d, name in enumerate(dict.fromkeys(r["dimension"] for r in verdicts))}
        pairs = sorted(
            {(row["dimension"], row["judge"]) for row in scored},
            key=lambda pair: (place[pair[0]], pair[1]),
        )
        names = list(answers)
        scores_C_N_P = np.full((len(names), len(ids), len(pairs)), np.nan)
        at_c = {name: c for c, name in enumerate(names)}
        at_n = {key: n for n, key in enumerate(ids)}
        at_p = {pair: p for p, pair in enumerate(pairs)}
        for row in scored:
            p = at_p[row["dimension"], row["judge"]]
            scores_C_N_P[at_c[row["author"]], at_n[row["example_id"]], p] = row["score"]
        unanswered_C_N = np.array([[bool(answers[c][key]["error"]) for key in ids] for c in names])
        # A prompt that nobody answered has no judge's score anywhere and stays out.
        scores_C_N_P[unanswered_C_N & ~unanswered_C_N.all(axis=0)] = 0.0
        given_C_N_P = np.isfinite(scores_C_N_P)
        shared_N_P = given_C_N_P.all(axis=0)
        judged_N_P = (given_C_N_P & ~unanswered_C_N[:, :, None]).any(axis=0)
        shared_N_P &= judged_N_P
        self.num_left_out = int((judged_N_P & ~shared_N_P).sum())
        kept = shared_N_P.any(axis=0)
        self.judges = sorted({judge for (_, judge), keep in zip(pairs, kept, strict=True) if keep})
        self.dimensions = list(
            dict.fromkeys(name for (name, _), keep in zip(pairs, kept, strict=True) if keep)
        )
        if not self.dimensions:
            raise DataError(
                f"no judge scored all of {', '.join(names)} on the same prompt and dimension, so "
                "they cannot be compared: give verdicts of the same judges on every candidate, "
                "with the candidate's name as in the answers (`candidate` or `author`)."
            )
        self.scores_C_N_D = np.full((len(names), len(ids), len(self.dimensions)), np.nan)
        for d, dimension in enumerate(self.dimensions):
            of_dimension = np.array([name == dimension for name, _ in pairs])
            weights_N_P = (shared_N_P & of_dimension).astype(float)
            counts_N = weights_N_P.sum(axis=1)
            sums_C_N = (np.where(shared_N_P, scores_C_N_P, 0.0) * weights_N_P).sum(axis=2)
            known_N = counts_N > 0
            self.scores_C_N_D[:, known_N, d] = sums_C_N[:, known_N] / counts_N[known_N]
        self._known_N_D = np.isfinite(self.scores_C_N_D).all(axis=0).astype(float)
        self._filled_C_N_D = np.nan_to_num(self.scores_C_N_D)

    def overall(self, bootstrap: Bootstrap) -> tuple[Floats, Floats]:
        """Overall score of each candidate, [C], and over the resamples, [C, S]."""
        means_C_D = self._filled_C_N_D.sum(axis=1) / self._known_N_D.sum(axis=0)
        # A resample may miss every prompt of a dimension that few prompts have.
        counts_S_D = bootstrap.sums(self._known_N_D)
        with np.errstate(divide="ignore", invalid="ignore"):
            means_C_S_D = np.stack([bootstrap.sums(part) for part in self._filled_C_N_D])
            overall_C_S = (means_C_S_D / counts_S_D).mean(axis=2)
        return means_C_D.mean(axis=1), overall_C_S

    def dimension_figures(self, c: int, bootstrap: Bootstrap) -> Row:
        """Mean, interval and number of prompts of each dimension of a candidate."""
        figures = {}
        for d, name in enumerate(self.dimensions):
            known_N, values_N = self._known_N_D[:, d], self._filled_C_N_D[c, :, d]
            figures[name] = {
                "score": float(values_N.sum() / known_N.sum()),
                "score_ci95": bootstrap.mean_interval(values_N, where=known_N),
                "num_prompts": int(known_N.sum()),
            }
        return figures


def _by_candidate(answers: Sequence[Row]) -> dict[str, dict[str, Row]]:
    found: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in answers:
        rows, key = found[row["candidate"]], row["example_id"]
        known = rows.get(key)
        if known is None or known["error"]:
            rows[key] = row
        elif not row["error"] and row["completion"] != known["completion"]:
            raise DataError(
                f"{row['candidate']} answered {key} twice and differently; which answer the "
                "verdicts are about cannot be told. Keep one."
            )
    if len(found) < 2:
        raise DataError(
            f"a selection needs two candidates or more and the answers are from "
            f"{', '.join(found) or 'none'}; name each row's in `candidate`."
        )
    return {name: found[name] for name in sorted(found)}


def _practical(rows: Sequence[Row], bootstrap: Bootstrap) -> Row:
    """Latency, cost and unanswered prompts of one candidate."""
    costs = [row["cost_usd"] for row in rows if not row["error"]]
    known = bool(costs) and all(cost is not None for cost in costs)
    measured = latencies(rows, bootstrap)
    return {
        "unanswered": sum(bool(row["error"]) for row in rows),
        **{name: value for name, value in measured.items() if "p99" not in name},
        "usd_per_1k": 1000 * float(np.mean(costs)) if known else None,
    }


def _judge_failures(verdicts: Sequence[Row], candidate: str) -> dict[str, int]:
    """Judge -> answers of the candidate on which it failed in some dimension."""
    failed = {
        (row["judge"], row["example_id"])
        for row in verdicts
        if row["author"] == candidate and row["score"] is None
    }
    return dict(sorted(Counter(judge for judge, _ in failed).items()))


def _issues(verdicts: Sequence[Row], candidate: str) -> dict[str, int]:
    """Tag -> answers of the candidate that any judge gave it to, commonest first."""
    tagged = {
        (tag, row["example_id"])
        for row in verdicts
        if row["author"] == candidate
        for tag in row.get("issues") or ()
    }
    counts = Counter(tag for tag, _ in tagged)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _differences(
    order: list[int], names: list[str], overall_C: Floats, overall_C_S: Floats, num_prompts: int
) -> list[Row]:
    """The first against each of the others."""
    first = order[0]
    found = []
    for c in order[1:]:
        ends = interval(overall_C_S[first] - overall_C_S[c])
        inside = ends is None or ends[0] <= 0.0 <= ends[1]
        found.append(
            {
                "first": names[first],
                "second": names[c],
                "difference": float(overall_C[first] - overall_C[c]),
                "difference_ci95": ends,
                "is_noise": inside or num_prompts < MIN_PROMPTS,
            }
        )
    return found


def _winner_without_kin(
    answers: dict[str, dict[str, Row]], verdicts: list[Row], ids: list[str]
) -> str | None:
    """Who leads when judges of any candidate's family are left out; `None` if that leaves none.

    Such a judge is left out for all candidates, or else its leniency would be taken from some only.
    """
    kin = {model_family(name) for name in answers} - {None}
    strangers = [row for row in verdicts if model_family(row["judge"]) not in kin]
    if len(strangers) == len(verdicts) or not any(r["score"] is not None for r in strangers):
        return None
    try:
        table = _Table(answers, strangers, ids)
    except DataError:
        return None
    means_C = np.nanmean(table.scores_C_N_D, axis=1).mean(axis=1)
    names = list(answers)
    return names[min(range(len(names)), key=lambda c: (-means_C[c], names[c]))]


def _decided(result: Row, *, without_kin: str | None) -> Row:
    lead = result["differences"][0]
    size = f"{lead['difference']:.3f}"
    if lead["difference_ci95"]:
        size += " [{:.3f}, {:.3f}]".format(*lead["difference_ci95"])
    names = f"{lead['first']} scores {size} more than {lead['second']}"
    if not lead["is_noise"]:
        verdict = f"{names}: it leads."
    elif result["num_prompts"] < MIN_PROMPTS:
        verdict = f"{names}: noise, as {result['num_prompts']} prompts decide nothing; give more."
    else:
        verdict = f"{names}: noise. Let cost, latency or terms decide, or take more prompts."
    return {
        "winner": lead["first"],
        "runner_up": lead["second"],
        "is_noise": lead["is_noise"],
        "verdict": verdict,
        "winner_without_kin": without_kin,
        **result,
        "notes": _notes(result, winner=lead["first"], without_kin=without_kin),
    }


def _notes(result: Row, *, winner: str, without_kin: str | None) -> list[str]:
    notes = [
        "Intervals come from resampling the prompts, the same for every candidate; the judges are "
        "taken as they are."
    ]
    if result["num_prompts_left_out"]:
        notes.append(
            f"{result['num_prompts_left_out']} prompts were not given to every candidate and are "
            "left out."
        )
    if result["num_scores_left_out"]:
        notes.append(
            f"On {result['num_scores_left_out']} (prompt, judge, dimension) a judge did not score "
            "every candidate; its scores there are left out for all."
        )
    for name, figures in result["candidates"].items():
        if figures["unanswered"]:
            notes.append(f"{name} left {figures['unanswered']} prompts unanswered; they score 0.")
    for judge, figures in result["agreement"]["judges"].items():
        if figures["failures"]:
            notes.append(
                f"{judge} gave no verdict on {figures['failures']} answers, none of which counts "
                f"as zero: {figures['commonest_error']}"
            )
    for pair in result["agreement"]["self_preference"]:
        size = "by how much it favours it cannot be told"
        net = "net_effect" if pair["net_effect"] is not None else "effect"
        if pair[net] is not None:
            size = f"{pair[net]:+.3f} against what judges of other families gave"
            size += " [{:.3f}, {:.3f}]".format(*pair[f"{net}_ci95"])
        notes.append(f"{pair['judge']} judges {pair['author']}, of its own family: {size}.")
    if without_kin is not None:
        turn = "still leads" if without_kin == winner else "leads instead"
        notes.append(f"Without the judges of any candidate's family, {without_kin} {turn}.")
    return notes
