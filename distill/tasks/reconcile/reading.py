"""Read a pair of lines back from a prompt: the reverse of the user template in `task.toml`."""

from __future__ import annotations

import re
from typing import Any

LINE = r"(?P<{0}_date>\S+) \| (?P<{0}_vendor>.+?) \| (?P<{0}_currency>\S+) (?P<{0}_amount>\S+) \| "
PROMPT = re.compile(
    "Bank: "
    + LINE.format("bank")
    + r"(?P<bank_account>.+?)\nERP: (?:none|"
    + LINE.format("erp")
    + r"(?P<erp_account>.+?)(?: \| posted (?P<erp_postings>\d+) times)?\n"
    r"Vendor: (?P<vendor>\w+)\. Currency: (?P<currency>\w+)\. Gap: (?P<gap_days>\d+) days\. "
    r"Difference: (?P<difference>\S+)\.)"
)


def variables(messages: list[dict[str, str]]) -> dict[str, Any] | None:
    """Return the variables of the user's message, or None where it is none of ours."""
    match = PROMPT.fullmatch(messages[-1]["content"].strip())
    if match is None:
        return None
    found = match.groupdict()
    bank = _line(found, "bank")
    compared = {"vendor": found["vendor"], "currency": found["currency"]}
    if found["erp_date"] is None:
        return {"bank": bank, "erp": None, "gap_days": None, "difference": None, **compared}
    erp = {**_line(found, "erp"), "postings": int(found["erp_postings"] or 1)}
    rest = {"gap_days": int(found["gap_days"]), "difference": found["difference"]}
    return {"bank": bank, "erp": erp, **rest, **compared}


def _line(found: dict[str, str], side: str) -> dict[str, Any]:
    names = ("date", "vendor", "currency", "amount", "account")
    return {name: found[f"{side}_{name}"] for name in names}
