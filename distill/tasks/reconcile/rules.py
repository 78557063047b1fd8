"""The accounting rules, as a program: the `program` teacher of this task. It is no model.

The first rule that applies decides. Amounts are decimal strings with thousands separators.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

MATERIAL = Decimal("1000000.00")
ROUNDING_LIMIT = Decimal("1.00")
TIMING_LIMIT_DAYS = 10


def decide(variables: dict[str, Any]) -> tuple[str, float, str, str, str]:
    """Return (classification, confidence, standard, reason, action) of one pair of lines."""
    amount = variables["bank"]["amount"]
    if _decimal(amount) >= MATERIAL:
        return _escalate(f"{amount} is material.")
    classification, confidence, standard, reason, action = _explain(variables)
    # A small model compares an amount it has just written far better than one it only read.
    return classification, confidence, standard, f"{amount} is not material. {reason}", action


def _explain(variables: dict[str, Any]) -> tuple[str, float, str, str, str]:
    bank, erp = variables["bank"], variables["erp"]
    if erp is None:
        reason = f"No ERP line for {bank['vendor']}."
        return "MISSING_ENTRY", 0.95, "IAS 1", reason, "post_entry"
    if bank["currency"] != erp["currency"]:
        return _escalate(f"{bank['currency']} and {erp['currency']}: two currencies.")
    if bank["vendor"] != erp["vendor"]:
        return _suspicious(f"{erp['vendor']} is another vendor.")
    if erp["postings"] > 1:
        return _suspicious(f"Posted {erp['postings']} times in the ERP.")
    difference = abs(_decimal(bank["amount"]) - _decimal(erp["amount"]))
    if difference > ROUNDING_LIMIT:
        return _suspicious(f"{variables['difference']} apart is unexplained.")
    gap = int(variables["gap_days"])
    if gap > TIMING_LIMIT_DAYS:
        return _escalate(f"{gap} days is stale.")
    if difference > 0:
        reason = f"{variables['difference']} apart is rounding."
        return "ROUNDING", 0.95, "IAS 8", reason, "write_off"
    if bank["date"][:4] != erp["date"][:4]:
        reason = f"{gap} days over year-end is timing."
        return "TIMING_DIFFERENCE", 0.95, "IAS 10", reason, "carry_forward"
    return "TIMING_DIFFERENCE", 0.95, "IAS 7", f"{gap} days is timing.", "carry_forward"


def answer(variables: dict[str, Any]) -> str:
    """Return the answer as the JSON text that the student learns.

    The reason comes first: a small model that has written down the deciding fact gets the class
    right far more often than one that must name the class before it (docs/log.md).
    """
    classification, confidence, standard, reason, action = decide(variables)
    fields = {
        "reason": reason,
        "classification": classification,
        "confidence": confidence,
        "standard": standard,
        "action": action,
    }
    return json.dumps(fields, separators=(",", ":"))


def _escalate(reason: str) -> tuple[str, float, str, str, str]:
    return "REQUIRES_INVESTIGATION", 0.9, "ISA 500", reason, "escalate"


def _suspicious(reason: str) -> tuple[str, float, str, str, str]:
    return "SUSPICIOUS", 0.85, "ISA 240", reason, "hold"


def _decimal(amount: str) -> Decimal:
    return Decimal(amount.replace(",", ""))
