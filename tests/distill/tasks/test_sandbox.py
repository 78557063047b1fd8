"""A function from source is called in a process that can use little and touch nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill.tasks.sandbox import Limits, check_calls, run_calls

ROOT = Path(__file__).parents[3]
# The processor's time is what a loop is stopped for: on a busy machine the clock runs on.
SHORT = Limits(cpu_s=1, wall_s=60)


def kinds(source, *, calls=((1,), (2,)), limits=SHORT):
    return [outcome.kind for outcome in run_calls(source, "f", calls, limits=limits)]


def test_every_call_has_its_result_after_a_json_round_trip():
    source = "from heapq import nsmallest\ndef f(xs, k): return (nsmallest(k, xs), {'k': k})"
    outcomes = run_calls(source, "f", [([3, 1, 2], 2), ([], 0)])
    assert [outcome.kind for outcome in outcomes] == ["ok", "ok"]
    assert [outcome.value for outcome in outcomes] == [[[1, 2], {"k": 2}], [[], {"k": 0}]]


def test_another_result_is_a_mismatch_that_shows_both():
    source = "def f(x): return [x > 1, x]"
    good, bad, number = check_calls(
        source, "f", [([1], [False, 1]), ([2], [True, 3]), ([3], [1, 3])]
    )
    assert good.kind == "ok"
    assert (bad.kind, bad.detail) == ("mismatch", "returns [True, 2], not [True, 3]")
    # `True == 1` in Python; an example that says 1 where the function says True is wrong.
    assert number.kind == "mismatch"


@pytest.mark.slow
def test_an_endless_loop_ends_the_process_and_keeps_what_was_done_before():
    source = "def f(x):\n    while x == 2:\n        pass\n    return x"
    first, second, third = run_calls(source, "f", [[1], [2], [3]], limits=SHORT)
    assert (first.kind, first.value) == ("ok", 1)
    assert (second.kind, second.detail) == ("timeout", "stopped after 1 s of CPU time")
    assert third.kind == "not_run"
    assert "call 2 ended the process" in third.detail


@pytest.mark.slow
def test_waiting_is_stopped_by_the_clock():
    source = "import queue\ndef f(x): return queue.Queue().get()"
    outcome, _ = run_calls(source, "f", [[1], [2]], limits=Limits(wall_s=1))
    assert (outcome.kind, outcome.detail) == ("timeout", "stopped after 1 s")


@pytest.mark.parametrize(
    "bomb",
    ["len([0] * 10**10)", "len('x' * 10**10)", "[a := [0]] and [a := a * 2 for _ in [0] * 64]"],
)
def test_a_memory_bomb_costs_one_call_only(bomb):
    source = f"def f(x): return ({bomb}) if x == 1 else x"
    assert kinds(source, limits=Limits(memory_mb=128)) == ["memory", "ok"]


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("open('/etc/passwd')", "open"),
        ("open('written', 'w')", "open"),
        ("__import__('socket')", "import of socket"),
        ("__import__('os').fork()", "import of os"),
        ("__import__('subprocess')", "import of subprocess"),
        ("__import__('ctypes')", "import of ctypes"),
        # Past the guarded import, through what an allowed module has imported itself.
        ("random._os.fork()", "os.fork"),
        ("random._os.listdir('/')", "os.listdir"),
        ("random._os.system('true')", "os.system"),
        ("random._os.sys.modules['builtins'].__import__('socket')", "import of socket"),
    ],
)
def test_files_network_and_processes_are_refused_by_name(body, what):
    outcome, _ = run_calls(f"import random\ndef f(x): return {body}", "f", [[1], [2]])
    assert (outcome.kind, outcome.detail) == ("refused", f"the sandbox refuses {what}")


def test_a_refused_call_counts_even_if_its_error_is_swallowed():
    source = """
def f(x):
    try:
        open("/etc/passwd")
    except BaseException:
        pass
    return x
"""
    assert kinds(source) == ["refused", "refused"]


def test_the_kernel_refuses_without_the_audit_hook():
    attempts = """
import os, socket
from distill.tasks.sandbox_child import lock
lock()
for attempt in (socket.socket, os.fork, lambda: open("/etc/passwd"), lambda: os.pipe()):
    try:
        attempt()
    except OSError as error:
        print(type(error).__name__, error.errno, flush=True)
    else:
        print("allowed", flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", attempts], capture_output=True, text=True, cwd=ROOT, check=True
    )
    # EMFILE: no file descriptor left. EAGAIN: no process left.
    assert done.stdout.splitlines() == [
        "OSError 24", "BlockingIOError 11", "OSError 24", "OSError 24",
    ]  # fmt: skip


def test_no_secret_of_the_environment_reaches_the_process(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "secret")
    source = "import random\ndef f(): return sorted(random._os.environ)"
    (outcome,) = run_calls(source, "f", [[]])
    assert set(outcome.value) <= {"LC_CTYPE"}


def test_huge_and_unwritable_results_are_told_apart_from_errors():
    source = "def f(x): return 'x' * 300_000 if x == 1 else {1} if x == 2 else float('nan')"
    limits = Limits(output_bytes=200_000)
    large, no_json, nan = run_calls(source, "f", [[1], [2], [3]], limits=limits)
    assert (large.kind, no_json.kind, nan.kind) == ("output", "output", "output")
    assert "300,002 characters" in large.detail
    assert "set" in no_json.detail
    endless = "def f(x):\n    for _ in range(50_000): print('x' * 1000)\n    return x"
    assert kinds(endless) == ["ok", "ok"]


def test_exceptions_carry_their_line_and_a_broken_source_is_the_outcome_of_every_call():
    source = "def f(x):\n    y = []\n    return y[x]"
    outcome, _ = run_calls(source, "f", [[1], [2]])
    assert outcome.kind == "exception"
    assert outcome.detail == "IndexError: list index out of range (line 3)"
    broken = run_calls("def f(x:", "f", [[1], [2]])
    assert [o.kind for o in broken] == ["exception", "exception"]
    assert "SyntaxError" in broken[1].detail
    (missing,) = run_calls("def g(x): return x", "f", [[1]])
    assert "defines no function 'f'" in missing.detail
    assert kinds("def f(x): return f(x)") == ["exception", "exception"]
    assert kinds("def f(x): raise SystemExit(0)") == ["exception", "exception"]


def test_a_process_that_dies_says_how():
    source = "import random\ndef f(x): random._os.abort() if x == 1 else None"
    first, second = run_calls(source, "f", [[1], [2]])
    assert (first.kind, second.kind) == ("crash", "not_run")
    assert "SIGABRT" in first.detail


def test_dataclasses_tuples_and_dates_work_inside():
    source = """
from __future__ import annotations
from collections import namedtuple
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, NamedTuple

@dataclass(order=True)
class Job:
    start: int
    kind: ClassVar[str] = "job"

class Edge(NamedTuple):
    weight: int

Pair = namedtuple("Pair", "a b")

def f(x):
    return [Job(x).start, Edge(x), Pair(x, 1), datetime.strptime("2024-05", "%Y-%m").month]
"""
    (outcome,) = run_calls(source, "f", [[7]])
    assert outcome.value == [7, [7], [7, 1], 5]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give its rights away")
def test_root_becomes_nobody():
    (outcome,) = run_calls("import random\ndef f(): return random._os.getuid()", "f", [[]])
    assert outcome.value == 65534
