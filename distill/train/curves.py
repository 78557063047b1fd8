"""`curves.jsonl` and its like: a row a line, written as it comes, cut back when a run resumes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Write one more row; figures that are not finite are left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # JSON knows no NaN.
    finite = {k: v for k, v in row.items() if not isinstance(v, float) or math.isfinite(v)}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(finite) + "\n")


def keep_rows(path: Path, *, up_to_step: int) -> None:
    """Drop the rows of steps that will be done again after a resume."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if up_to_step > 0 and json.loads(line)["step"] <= up_to_step:
                kept.append(line + "\n")
        except ValueError:  # the line a killed worker was writing
            continue
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text("".join(kept), encoding="utf-8")
    beside.replace(path)
