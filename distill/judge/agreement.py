"""How far the judges of a jury agree, who is lenient, who fails, and who favours their own kin.

Pure numpy over verdict rows (`distill.records.VERDICT`). Axes: J judges, N answers, D dimensions,
G prompts, K columns of sums. Intervals are 95% percentile bootstraps over prompts: the answers
that several teachers gave to one prompt are drawn together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distill.evaluate.metrics import interval
from distill.judge.families import model_family

Floats = NDArray[np.float64]
Row = dict[str, Any]
Metric = Literal["interval", "nominal"]


def krippendorff_alpha(ratings_J_N: Floats, *, metric: Metric = "interval") -> float | None:
    """Krippendorff's alpha of ratings with NaN where a judge gave none.

    alpha = 1 - D_o / D_e (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"):
    observed over expected disagreement of all pairs of ratings of one item, an item's pairs
    weighted by 1 / (ratings of the item - 1). `interval` takes squared differences, `nominal`
    counts unequal pairs. 1.0 is agreement, 0.0 is what chance gives. `None` when no item has two
    ratings or no two ratings differ: reliability is then not defined.
    """
    sums_K = _pair_sums(ratings_J_N, metric).sum(axis=0)
    alpha = float(_alpha(sums_K[None, :], metric)[0])
    return alpha if np.isfinite(alpha) else None


def agreement(verdicts: Sequence[Row], *, samples: int = 1000, seed: int = 0) -> Row:
    """Report on a jury's verdicts, for `agreement.json`.

    `dimensions`: alpha of each with its interval, and on how many answers it rests. `judges`:
    scores and failures, `leniency` (mean of the judge's score minus the mean of the others' on the
    same answer and dimension), `spread` (standard deviation of its scores in a dimension, mean over
    dimensions), cost. `self_preference`: each pair of judge and author of one model family, with
    the size of the effect (see `_self_preference`). Figures that are not defined are `None`.
    """
    final = final_verdicts(verdicts)
    sheet = _Sheet.of(final)
    bootstrap = _GroupBootstrap(sheet.groups_N, samples=samples, seed=seed)
    return {
        "num_answers": len(sheet.groups_N),
        "num_judges": len(sheet.judges),
        "dimensions": {
            name: _dimension(sheet.scores_J_N_D[:, :, d], bootstrap)
            for d, name in enumerate(sheet.dimensions)
        },
        "judges": {
            name: {
                **_failures([row for row in final if row["judge"] == name]),
                **_judge(sheet, j, bootstrap),
                "cost_usd": _cost([row for row in verdicts if row["judge"] == name]),
            }
            for j, name in enumerate(sheet.judges)
        },
        "self_preference": _self_preference(sheet, bootstrap),
        "bootstrap_samples": samples,
        "seed": seed,
    }


def agreement_note(report: Row) -> str:
    """One line on a report for people; `""` when there was one judge and it never failed."""
    parts = []
    alphas = [part["alpha"] for part in report["dimensions"].values() if part["alpha"] is not None]
    if alphas:
        low, high = f"{min(alphas):.2f}", f"{max(alphas):.2f}"
        parts.append(f"judges' alpha {low if low == high else f'{low} to {high}'}")
    failures = {name: part["failures"] for name, part in report["judges"].items()}
    for name, count in failures.items():
        if count:
            parts.append(f"{name} gave no verdict on {count}")
    for pair in report["self_preference"]:
        effect = "" if pair["effect"] is None else f" ({pair['effect']:+.2f})"
        parts.append(f"{pair['judge']} judges its own family's {pair['author']}{effect}")
    return "; ".join(parts)


def final_verdicts(verdicts: Sequence[Row]) -> list[Row]:
    """One row for each judge, dimension and answer: a score if there is any, else its failure.

    A failed verdict is asked for again by a rerun, so files may hold both.
    """
    final: dict[tuple[str, str, str, str], Row] = {}
    for row in verdicts:
        key = (row["judge"], row["dimension"], *_answer(row))
        if key not in final or final[key]["score"] is None:
            final[key] = row
    return list(final.values())


@dataclass(frozen=True)
class _Sheet:
    """Verdicts as one array; an answer is what one author wrote to one prompt."""

    judges: list[str]
    dimensions: list[str]
    authors_N: list[str]
    groups_N: NDArray[np.int64]  # index of the prompt
    scores_J_N_D: Floats  # NaN where there is no score

    @classmethod
    def of(cls, rows: Sequence[Row]) -> _Sheet:
        judges = sorted({row["judge"] for row in rows})
        dimensions = list(dict.fromkeys(row["dimension"] for row in rows))
        answers = sorted({_answer(row) for row in rows})
        prompts = {name: g for g, name in enumerate(sorted({prompt for _, prompt in answers}))}
        judge_at = {name: j for j, name in enumerate(judges)}
        answer_at = {answer: n for n, answer in enumerate(answers)}
        dimension_at = {name: d for d, name in enumerate(dimensions)}
        scores = np.full((len(judges), len(answers), len(dimensions)), np.nan)
        for row in rows:
            if row["score"] is not None:
                at = judge_at[row["judge"]], answer_at[_answer(row)], dimension_at[row["dimension"]]
                scores[at] = row["score"]
        return cls(
            judges=judges,
            dimensions=dimensions,
            authors_N=[author for author, _ in answers],
            groups_N=np.array([prompts[prompt] for _, prompt in answers], dtype=np.int64),
            scores_J_N_D=scores,
        )


class _GroupBootstrap:
    """Sums over resamples of the prompts, without ever holding all resamples at once."""

    def __init__(self, groups_N: NDArray[np.int64], *, samples: int, seed: int):
        self._groups_N = groups_N
        self._num_groups = int(groups_N.max()) + 1 if len(groups_N) else 0
        self._samples, self._seed = samples, seed

    def sums(self, values_N_K: Floats) -> Floats:
        """Column sums of each resample: [S, K]. Equal resamples at every call, so it is paired."""
        by_group_G_K = np.zeros((self._num_groups, values_N_K.shape[1]))
        np.add.at(by_group_G_K, self._groups_N, values_N_K)
        generator = np.random.default_rng(self._seed)
        sums_S_K = np.empty((self._samples, values_N_K.shape[1]))
        for s in range(self._samples):
            drawn = generator.integers(self._num_groups, size=self._num_groups)
            sums_S_K[s] = np.bincount(drawn, minlength=self._num_groups) @ by_group_G_K
        return sums_S_K

    def mean(self, values_N: Floats, counts_N: Floats) -> tuple[float | None, list[float] | None]:
        """Mean of sums over counts, and its interval."""
        if not counts_N.sum():
            return None, None
        sums_S_2 = self.sums(np.stack([values_N, counts_N], axis=1))
        return float(values_N.sum() / counts_N.sum()), interval(_ratio(*sums_S_2.T))


def _dimension(ratings_J_N: Floats, bootstrap: _GroupBootstrap) -> Row:
    given_J_N = np.isfinite(ratings_J_N)
    shared_N = given_J_N.sum(axis=0) >= 2
    alpha = krippendorff_alpha(ratings_J_N)
    sums_S_K = bootstrap.sums(_pair_sums(ratings_J_N, "interval")) if alpha is not None else None
    return {
        "mean": _mean_over_judges(ratings_J_N),
        "alpha": alpha,
        "alpha_ci95": None if sums_S_K is None else interval(_alpha(sums_S_K, "interval")),
        "num_answers": int(shared_N.sum()),
        "num_judges": int(given_J_N.any(axis=1).sum()),
    }


def _judge(sheet: _Sheet, j: int, bootstrap: _GroupBootstrap) -> Row:
    own_N_D = sheet.scores_J_N_D[j]
    values_N, counts_N = _excess(own_N_D, np.delete(sheet.scores_J_N_D, j, axis=0))
    leniency, ends = bootstrap.mean(values_N, counts_N)
    columns = [column[np.isfinite(column)] for column in own_N_D.T]
    spreads = [float(column.std(ddof=1)) for column in columns if len(column) > 1]
    scores = np.concatenate(columns)
    return {
        "mean": float(scores.mean()) if scores.size else None,
        "leniency": leniency,
        "leniency_ci95": ends,
        "spread": float(np.mean(spreads)) if spreads else None,
    }


def _self_preference(sheet: _Sheet, bootstrap: _GroupBootstrap) -> list[Row]:
    """Pairs of judge and author of one family.

    `effect` is the mean score given to the author minus the mean that judges of other families
    gave to the same answers. A judge that is lenient with everyone has one too: `net_effect` takes
    off the same difference on the answers of other families' authors, where there are any.
    """
    families = [model_family(name) for name in sheet.judges]
    authors = {author: model_family(author) for author in dict.fromkeys(sheet.authors_N)}
    pairs = []
    for j, family in enumerate(families):
        others_J_N_D = sheet.scores_J_N_D[[other != family for other in families]]
        values_N, counts_N = _excess(sheet.scores_J_N_D[j], others_J_N_D)
        strange_N = np.array([authors[author] != family for author in sheet.authors_N], dtype=float)
        for author in (name for name, kin in authors.items() if kin == family and family):
            own_N = np.array([name == author for name in sheet.authors_N], dtype=float)
            effect, ends = bootstrap.mean(values_N * own_N, counts_N * own_N)
            net, net_ends = None, None
            if effect is not None and (counts_N * strange_N).sum():
                columns = [values_N * own_N, counts_N * own_N]
                columns += [values_N * strange_N, counts_N * strange_N]
                table_N_4 = np.stack(columns, axis=1)
                a, b, c, d = table_N_4.sum(axis=0)
                net = float(a / b - c / d)
                sums_S = bootstrap.sums(table_N_4).T
                net_ends = interval(_ratio(sums_S[0], sums_S[1]) - _ratio(sums_S[2], sums_S[3]))
            pairs.append(
                {
                    "judge": sheet.judges[j],
                    "author": author,
                    "family": family,
                    "num_answers": int((counts_N * own_N > 0).sum()),
                    "effect": effect,
                    "effect_ci95": ends,
                    "net_effect": net,
                    "net_effect_ci95": net_ends,
                }
            )
    return pairs


def _excess(own_N_D: Floats, others_J_N_D: Floats) -> tuple[Floats, Floats]:
    """For each answer the sum over dimensions of own score - mean of the others', and the count."""
    given = np.isfinite(others_J_N_D)
    counts_N_D = given.sum(axis=0)
    means_N_D = _ratio(np.where(given, others_J_N_D, 0.0).sum(axis=0), counts_N_D)
    excess_N_D = own_N_D - means_N_D
    known_N_D = np.isfinite(excess_N_D)
    return np.where(known_N_D, excess_N_D, 0.0).sum(axis=1), known_N_D.sum(axis=1).astype(float)


def _pair_sums(ratings_J_N: Floats, metric: Metric) -> Floats:
    """What alpha needs, one row an item, so that sums over items (or resamples) give it.

    Columns: ratings, the item's disagreement, then for `interval` the sum and the sum of squares
    of the ratings, for `nominal` the count of each value. An item with one rating is all zeros.
    """
    given_J_N = np.isfinite(ratings_J_N)
    given_J_N = given_J_N & (given_J_N.sum(axis=0) >= 2)
    counts_N = given_J_N.sum(axis=0).astype(np.float64)
    if metric == "nominal":
        values = np.unique(ratings_J_N[given_J_N])
        moments_N_K = (ratings_J_N[:, :, None] == values).sum(axis=0) * (counts_N > 0)[:, None]
        unequal_N = counts_N**2 - (moments_N_K**2).sum(axis=1)
    else:
        # Differences do not change with the origin, and the sums of squares stay exact near it.
        origin = ratings_J_N[given_J_N].mean() if given_J_N.any() else 0.0
        centred_J_N = np.where(given_J_N, ratings_J_N - origin, 0.0)
        moments_N_K = np.stack([centred_J_N.sum(axis=0), (centred_J_N**2).sum(axis=0)], axis=1)
        unequal_N = 2 * (counts_N * moments_N_K[:, 1] - moments_N_K[:, 0] ** 2)
    within_N = unequal_N / np.maximum(counts_N - 1, 1)
    return np.column_stack([counts_N, within_N, moments_N_K]).astype(np.float64)


def _alpha(sums_S_K: Floats, metric: Metric) -> Floats:
    total_S, within_S, moments = sums_S_K[:, 0], sums_S_K[:, 1], sums_S_K[:, 2:]
    if metric == "nominal":
        unequal_S = total_S**2 - (moments**2).sum(axis=1)
    else:
        unequal_S = 2 * (total_S * moments[:, 1] - moments[:, 0] ** 2)
    # Equal ratings leave nothing but rounding here, in the scale of the squares.
    differ = unequal_S > 1e-12 * np.maximum(total_S**2, 1.0)
    return np.where(
        differ, 1.0 - _ratio((total_S - 1) * within_S, np.where(differ, unequal_S, 1.0)), np.nan
    )


def _failures(rows: Sequence[Row]) -> Row:
    failed = [row for row in rows if row["score"] is None]
    errors = [row["error"] for row in failed]
    return {
        "num_scores": len(rows) - len(failed),
        # An unreadable answer fails in every dimension; people count answers.
        "failures": len({_answer(row) for row in failed}),
        "commonest_error": max(errors, key=errors.count) if errors else "",
    }


def _cost(rows: Sequence[Row]) -> float | None:
    costs = [row.get("cost_usd") for row in rows]
    return None if any(cost is None for cost in costs) else float(sum(filter(None, costs)))


def _answer(row: Row) -> tuple[str, str]:
    return row.get("author") or "", row["example_id"]


def _mean_over_judges(ratings_J_N: Floats) -> float | None:
    given = np.isfinite(ratings_J_N)
    counts_N = given.sum(axis=0)
    if not counts_N.any():
        return None
    means_N = _ratio(np.where(given, ratings_J_N, 0.0).sum(axis=0), counts_N)
    return float(means_N[counts_N > 0].mean())


def _ratio(numerator: Any, denominator: Any) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.true_divide(numerator, denominator))
