"""What a benchmark leaves for people and for machines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.bench.report import Case, report


def test_a_missed_target_is_shown_written_and_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fast = Case(case="fast", figure=0.5, unit="s", target="< 1", ok=True)
    slow = Case(case="slow", figure=2.0, unit="s", target="< 1", ok=False)
    assert report("speed", [fast]) == 0
    assert report("speed", [fast, slow]) == 1
    assert "missed" in capsys.readouterr().out
    written = json.loads((tmp_path / "build/bench/speed.json").read_text())
    assert written[1] == {"case": "slow", "figure": 2.0, "unit": "s", "target": "< 1", "ok": False}
