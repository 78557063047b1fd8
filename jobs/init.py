"""`distillery init my-task`: a task folder that runs, made of files alone."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import distill.tasks
from cluster.errors import ConfigError

STARTER = Path(distill.tasks.__file__).parent / "starter"


def init_task(folder: str) -> str:
    """Write the starter task to `folder` and return what to do next.

    Raises ConfigError if something is there already: nothing is overwritten.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{folder} is a file; choose another name.")
    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"{folder} exists and is not empty; choose another name.")
    name = re.sub(r"[^a-z0-9._-]+", "-", target.name.lower()).strip("-._")
    if not name:
        raise ConfigError(f"{folder!r}: the name needs a letter or a digit.")
    target.mkdir(parents=True, exist_ok=True)
    for source in sorted(STARTER.iterdir()):
        if source.suffix not in (".toml", ".jsonl"):
            continue
        if source.suffix == ".jsonl":
            shutil.copy2(source, target / source.name)
            continue
        text = source.read_text(encoding="utf-8")
        text = text.replace('name = "my-task"', f'name = "{name}"')
        text = text.replace("{name}", name).replace("{folder}", str(target))
        (target / source.name).write_text(text, encoding="utf-8")
    return (
        f"wrote {folder}/: task.toml (what goes in, what must come out), prompts.jsonl, "
        f"answers.jsonl (recorded answers of the teacher), run.toml\n"
        f"next: distillery run {folder}/run.toml"
    )
