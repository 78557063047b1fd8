"""Run a Python function from source, with little time and memory and without files or network.

What it is. A fresh `python -I -S` without environment variables calls the function. The kernel
limits it (`setrlimit(2)`): CPU time, address space, no written byte, no new process, and no new
file descriptor, hence no file and no socket. Started as root, it becomes `nobody` first. An audit
hook (PEP 578) refuses every event but ordinary computation, so that a refused call has a name.
All calls of a function share one process.

What it is not. It is no wall against code written to break out of Python: such code can forge its
results, signal other processes of the same user where it was not started as root, and use the
kernel's remaining system calls. Run code of strangers in a container or a virtual machine. Linux
only: other systems do not hold to the address-space limit.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Timer
from typing import Any, Literal

CHILD = Path(__file__).with_name("sandbox_child.py")
SHOWN_CHARS = 200
# A line of the child is a result, or a detail of some hundred characters, escaped.
LINE_BYTES = 4096

Kind = Literal[
    "ok", "mismatch", "timeout", "memory", "exception", "refused", "output", "crash", "not_run"
]


@dataclass(frozen=True)
class Limits:
    """What one process may use, over all its calls."""

    cpu_s: int = 5
    """CPU time, seconds; the kernel counts whole seconds, so it may be almost one more."""
    wall_s: float = 20.0
    """Time from start to end, seconds."""
    memory_mb: int = 512
    """Address space with the interpreter's own (about 30), MiB."""
    output_bytes: int = 1_000_000
    """Results of all calls together, characters of JSON."""


@dataclass(frozen=True)
class Outcome:
    """What became of one call."""

    kind: Kind
    """`ok`: returned (and, from `check_calls`, what was expected). `mismatch`: returned something
    else. `timeout`, `memory`, `exception`: as they say. `refused`: tried what the sandbox forbids,
    even if it went on. `output`: the result is too large or no JSON value. `crash`: the process
    died. `not_run`: an earlier call ended the process."""
    value: Any = None
    """The result after a JSON round trip: a tuple is a list."""
    detail: str = ""
    """Why it is not `ok`, in words."""


def run_calls(
    source: str,
    function: str,
    calls: Sequence[Sequence[Any]],
    *,
    limits: Limits = Limits(),
) -> list[Outcome]:
    """Call `function` of `source` once for each list of positional arguments (JSON values).

    Returns one outcome a call. An error while the source is loaded is the outcome of every call.
    """
    if not calls:
        return []
    request = {
        "source": source,
        "function": function,
        "calls": [list(call) for call in calls],
        "limits": asdict(limits),
    }
    most = limits.output_bytes + LINE_BYTES * (len(calls) + 1)
    written, ending = _communicate(json.dumps(request).encode(), limits=limits, most=most)
    lines = written.split(b"\n")[:-1]
    if lines and b'"load": true' in lines[0]:
        return [_read(lines[0])] * len(calls)
    outcomes = [_read(line) for line in lines[: len(calls)]]
    if len(outcomes) < len(calls):
        outcomes.append(ending)
    not_run = Outcome("not_run", None, f"call {len(outcomes)} ended the process: {ending.detail}")
    return outcomes + [not_run] * (len(calls) - len(outcomes))


def check_calls(
    source: str,
    function: str,
    cases: Sequence[tuple[Sequence[Any], Any]],
    *,
    limits: Limits = Limits(),
) -> list[Outcome]:
    """Call `function` for each (arguments, expected result); another result is a `mismatch`."""
    outcomes = run_calls(source, function, [arguments for arguments, _ in cases], limits=limits)
    return [
        Outcome("mismatch", found.value, f"returns {shown(found.value)}, not {shown(expected)}")
        if found.kind == "ok" and not same(found.value, expected)
        else found
        for found, (_, expected) in zip(outcomes, cases, strict=True)
    ]


def same(a: Any, b: Any) -> bool:
    """Whether two JSON values are equal; unlike `==`, `true` is not 1, nor in a list."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def shown(value: Any) -> str:
    """Return a value as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"


def _read(line: bytes) -> Outcome:
    try:
        found = json.loads(line)
        value = json.loads(found["value"]) if found["kind"] == "ok" else None
        return Outcome(found["kind"], value, str(found.get("detail", "")))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return Outcome("crash", None, f"wrote a line that is no outcome: {error}")


def _communicate(request: bytes, *, limits: Limits, most: int) -> tuple[bytes, Outcome]:
    """Return what the child wrote, and the outcome of a call during which it ended."""
    late: list[bool] = []
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-X", "utf8", str(CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        env={},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None

        def stop() -> None:
            late.append(True)
            process.kill()

        timer = Timer(limits.wall_s, stop)
        timer.start()
        try:
            # It reads everything before it writes anything: neither side can wait for the other.
            with suppress(BrokenPipeError):
                process.stdin.write(request)
                process.stdin.close()
            written = process.stdout.read(most + 1)
            if len(written) > most:
                process.kill()
            last_words = process.stderr.read(LINE_BYTES).decode("utf-8", "replace").strip()
            code = process.wait()
        finally:
            timer.cancel()
            process.kill()
    if len(written) > most:
        return written[:most], Outcome("output", None, f"wrote more than {most:,} bytes")
    if late or code == -signal.SIGALRM:
        return written, Outcome("timeout", None, f"stopped after {limits.wall_s:g} s")
    if code == -signal.SIGXCPU:
        return written, Outcome("timeout", None, f"stopped after {limits.cpu_s} s of CPU time")
    return written, Outcome("crash", None, "".join(_obituary(code, last_words)))


def _obituary(code: int, last_words: str) -> Iterator[str]:
    if code < 0:
        yield f"the process died of {signal.Signals(-code).name}"
    else:
        yield f"the process ended with code {code}"
    if last_words:
        yield f": {last_words[-SHOWN_CHARS:]}"
