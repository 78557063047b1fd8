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
    bank, erp = variables["bank"], variables["erp"]
    amount = _decimal(bank["amount"])
    if amount >= MATERIAL:
        return _escalate(0.9, f"{bank['currency']} {bank['amount']} is 1,000,000.00 or more.")
    if erp is None:
        reason = f"No ERP line for {bank['vendor']}."
        return "MISSING_ENTRY", 0.95, "IAS 1", reason, "post_entry"
    if bank["currency"] != erp["currency"]:
        return _escalate(0.9, f"Bank in {bank['currency']}, ERP in {erp['currency']}.")
    if bank["vendor"] != erp["vendor"]:
        return _suspicious(0.85, f"Bank names {bank['vendor']}, ERP {erp['vendor']}.")
    if erp["postings"] > 1:
        return _suspicious(0.9, f"Posted {erp['postings']} times in the ERP.")
    difference = abs(amount - _decimal(erp["amount"]))
    if difference > ROUNDING_LIMIT:
        return _suspicious(0.8, f"Amounts {variables['difference']} apart.")
    gap = int(variables["gap_days"])
    if gap > TIMING_LIMIT_DAYS:
        return _escalate(0.8, f"{gap} days apart.")
    if difference > 0:
        reason = f"Amounts {variables['difference']} apart."
        return "ROUNDING", 0.95, "IAS 8", reason, "write_off"
    if bank["date"][:4] != erp["date"][:4]:
        reason = f"Same amount, {gap} days apart over year-end."
        return "TIMING_DIFFERENCE", 0.9, "IAS 10", reason, "carry_forward"
    return "TIMING_DIFFERENCE", 0.95, "IAS 7", f"Same amount, {gap} days apart.", "carry_forward"


def answer(variables: dict[str, Any]) -> str:
    """Return the answer as the JSON text that the student learns."""
    names = ("classification", "confidence", "standard", "reason", "action")
    return json.dumps(dict(zip(names, decide(variables), strict=True)), separators=(",", ":"))


def _escalate(confidence: float, reason: str) -> tuple[str, float, str, str, str]:
    return "REQUIRES_INVESTIGATION", confidence, "ISA 500", reason, "escalate"


def _suspicious(confidence: float, reason: str) -> tuple[str, float, str, str, str]:
    return "SUSPICIOUS", confidence, "ISA 240", reason, "hold"


def _decimal(amount: str) -> Decimal:
    return Decimal(amount.replace(",", ""))
