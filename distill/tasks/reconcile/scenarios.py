"""Bank and ERP lines that need an explanation, composed from small tables, the same by seed.

Each scenario names what was done to a matching pair; the class follows from the lines by
`rules.py`, never from the scenario's name.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

BANK_ACCOUNTS = ["1010 Operating", "1020 Payroll", "1030 Collections", "1040 Treasury"]
LEDGER_ACCOUNTS = ["2100 Payables", "1200 Receivables", "6100 Services", "6300 Rent", "5000 COGS"]
CURRENCIES = ["USD", "EUR", "GBP", "CHF"]
VENDORS = [
    f"{first} {second}"
    for first in ("Alder", "Birch", "Cobalt", "Delta", "Ember", "Falcon", "Granite", "Harbor",
                  "Indigo", "Juniper", "Keystone", "Lumen", "Meridian", "Nimbus", "Orchard")
    for second in ("Logistics", "Supply", "Energy", "Software", "Foods", "Medical", "Partners")
]  # fmt: skip

Lines = tuple[dict[str, Any], dict[str, Any] | None]


def scenarios(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield `count` prompts, deterministic by seed, scenarios in fixed proportion."""
    rng = random.Random(seed)
    names = [name for name, (weight, _) in SCENARIOS.items() for _ in range(weight)]
    for _ in range(-(-count // len(names))):
        rng.shuffle(names)
        for name in names[: min(len(names), count)]:
            bank, erp = SCENARIOS[name][1](rng)
            yield {"scenario": name, **_compare(bank, erp)}
        count -= len(names)


def _pair(rng: random.Random, *, gap_days: int | None = None, start: date | None = None) -> Lines:
    """A bank line and an ERP line of the same amount, the bank `gap_days` later."""
    gap = rng.randint(1, 8) if gap_days is None else gap_days
    posted = start or date(2024, 1, 1) + timedelta(days=rng.randrange(700))
    # Log-uniform over 20.00 to 900,000.00: small and large amounts are equally common.
    amount = Decimal(round(100 * 20 * (45_000 ** rng.random()))) / 100
    common = {
        "vendor": rng.choice(VENDORS),
        "currency": rng.choice(CURRENCIES),
        "amount": amount,
    }
    bank = {**common, "date": posted + timedelta(days=gap), "account": rng.choice(BANK_ACCOUNTS)}
    erp = {**common, "date": posted, "account": rng.choice(LEDGER_ACCOUNTS), "postings": 1}
    return bank, erp


def _timing(rng: random.Random) -> Lines:
    return _pair(rng)


def _timing_limit(rng: random.Random) -> Lines:
    """Ten days is still timing; eleven is not."""
    return _pair(rng, gap_days=rng.choice([9, 10, 11, 12]))


def _weekend(rng: random.Random) -> Lines:
    """Posted on a Friday, settled on the Monday."""
    friday = date(2024, 1, 5) + timedelta(weeks=rng.randrange(100))
    return _pair(rng, gap_days=3, start=friday)


def _year_end(rng: random.Random) -> Lines:
    gap = rng.randint(2, 8)
    last = date(rng.choice([2023, 2024, 2025]), 12, 31)
    return _pair(rng, gap_days=gap, start=last - timedelta(days=rng.randrange(gap)))


def _missing(rng: random.Random) -> Lines:
    bank, _ = _pair(rng)
    return bank, None


def _rounding(rng: random.Random) -> Lines:
    return _shifted(rng, rng.randint(1, 99))


def _rounding_limit(rng: random.Random) -> Lines:
    """A difference of exactly 1.00 is rounding; 1.01 is not."""
    return _shifted(rng, rng.choice([99, 100, 100, 101]))


def _unexplained(rng: random.Random) -> Lines:
    return _shifted(rng, rng.randint(150, 1500))


def _shifted(rng: random.Random, cents: int) -> Lines:
    bank, erp = _pair(rng)
    assert erp is not None
    erp["amount"] += Decimal(cents) / 100
    return bank, erp


def _duplicate(rng: random.Random) -> Lines:
    bank, erp = _pair(rng)
    assert erp is not None
    erp["postings"] = rng.choice([2, 2, 2, 3])
    return bank, erp


def _other_vendor(rng: random.Random) -> Lines:
    bank, erp = _pair(rng)
    assert erp is not None
    erp["vendor"] = rng.choice([v for v in VENDORS if v != bank["vendor"]])
    return bank, erp


def _two_currencies(rng: random.Random) -> Lines:
    bank, erp = _pair(rng)
    assert erp is not None
    erp["currency"] = rng.choice([c for c in CURRENCIES if c != bank["currency"]])
    return bank, erp


def _material(rng: random.Random) -> Lines:
    """Around the threshold, exactly 1,000,000.00 and one cent below among them."""
    bank, erp = _pair(rng)
    assert erp is not None
    exact = [Decimal("1000000.00"), Decimal("999999.99")]
    drawn = Decimal(rng.randrange(100_000_000, 900_000_000)) / 100
    bank["amount"] = erp["amount"] = rng.choice([*exact, drawn, drawn])
    return (bank, None) if rng.random() < 0.25 else (bank, erp)


def _stale(rng: random.Random) -> Lines:
    return _pair(rng, gap_days=rng.randint(13, 60))


# Weight (of 50) and maker. Those that end in an escalation are more than a tenth of all.
SCENARIOS: dict[str, tuple[int, Callable[[random.Random], Lines]]] = {
    "timing": (5, _timing),
    "timing_limit": (3, _timing_limit),
    "weekend": (2, _weekend),
    "year_end": (3, _year_end),
    "missing": (5, _missing),
    "rounding": (5, _rounding),
    "rounding_limit": (4, _rounding_limit),
    "unexplained": (3, _unexplained),
    "duplicate": (3, _duplicate),
    "other_vendor": (4, _other_vendor),
    "two_currencies": (4, _two_currencies),
    "material": (6, _material),
    "stale": (3, _stale),
}


def _compare(bank: dict[str, Any], erp: dict[str, Any] | None) -> dict[str, Any]:
    """Add what a matching engine hands on: what agrees, the gap and the absolute difference."""
    difference = abs(bank["amount"] - erp["amount"]) if erp else None
    return {
        "bank": _shown(bank),
        "erp": _shown(erp) if erp else None,
        "gap_days": abs((bank["date"] - erp["date"]).days) if erp else None,
        "difference": f"{difference:,.2f}" if difference is not None else None,
        "vendor": _same(bank, erp, "vendor"),
        "currency": _same(bank, erp, "currency"),
    }


def _same(bank: dict[str, Any], erp: dict[str, Any] | None, name: str) -> str | None:
    return None if erp is None else "same" if bank[name] == erp[name] else "other"


def _shown(line: dict[str, Any]) -> dict[str, Any]:
    return {**line, "date": line["date"].isoformat(), "amount": f"{line['amount']:,.2f}"}
