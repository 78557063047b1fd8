"""The golden loss curve: the demo's data and training settings on the tiny model, in float32.

A change that should not change the training must reproduce `golden_curve.json`. One that should
writes it anew, from the repository's root, and says why in the same commit:

    PYTHONPATH=. .venv/bin/python tests/golden_curve.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix(".json")
DEMO = "jobs/runs/demo.toml"
STEPS = 12


def curve(model: Path, folder: Path) -> dict[str, Any]:
    """Train on the connected Ray; returns `losses` of the steps and the held-out ones."""
    from distill.train.stage import train
    from jobs.bench.train_data import run_records
    from jobs.config import load_run_config

    config = load_run_config([DEMO])
    records, validation = run_records(DEMO, folder / "prompts")
    result = train(
        # The tiny tokenizer takes more tokens for the same text.
        config.student.model_copy(update={"model": str(model), "max_length": 2048}),
        config.train.model_copy(
            update={
                "precision": "fp32",
                "max_steps": STEPS,
                "eval_every": STEPS,
                # Two workers' sums are one's (`test_train_stage.py`), and this starts in seconds.
                "workers": 1,
                "in_process": True,
            }
        ),
        records=records,
        validation=validation,
        run_folder=folder / "run",
    )
    rows = [json.loads(line) for line in (folder / "run/curves.jsonl").read_text().splitlines()]
    return {
        "losses": [row["loss"] for row in rows if "loss" in row],
        "held_out": [result.base_validation_loss, result.final_validation_loss],
        "tokens": result.tokens,
    }


def main() -> None:
    """Write the curve."""
    from local_ray import local_ray

    with tempfile.TemporaryDirectory() as folder, local_ray(num_cpus=2):
        model = Path(folder) / "tiny-llama"
        subprocess.run(
            [sys.executable, str(Path(__file__).with_name("tiny.py")), str(model)], check=True
        )
        found = curve(model, Path(folder))
    FILE.write_text(json.dumps(found, indent=2) + "\n")
    print(f"{FILE}: loss {found['losses'][0]:.4f} -> {found['losses'][-1]:.4f}")


if __name__ == "__main__":
    main()
