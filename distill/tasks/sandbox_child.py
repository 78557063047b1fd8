"""The process inside `distill.tasks.sandbox`: reads a request, locks itself in, calls a function.

Run as a script by `python -I -S`; it uses the standard library only. The request is one JSON
object on stdin. Each finished call is one JSON line on stdout, so what was done before a limit
struck is not lost.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import math
import os
import resource
import signal
import sys
import types
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

# What an algorithm may import. Each is loaded before the lock, because afterwards no file opens.
ALLOWED = frozenset({
    "__future__", "abc", "array", "base64", "bisect", "calendar", "cmath", "collections", "copy",
    "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "hashlib", "heapq",
    "ipaddress", "itertools", "json", "math", "numbers", "operator", "queue", "random", "re",
    "statistics", "string", "struct", "textwrap", "types", "typing", "unicodedata", "zlib",
})  # fmt: skip
# Loaded by functions of the above when they are first called.
LAZY = {"datetime": "_strptime", "functools": "weakref", "re": "unicodedata"}
# Audit events of ordinary computation; every other event (open, socket.*, os.*, import, …) is
# refused. The list of events: docs.python.org/3.11/library/audit_events.html.
HARMLESS = frozenset({
    "array.__new__", "builtins.id", "compile", "exec", "object.__delattr__", "object.__getattr__",
    "object.__setattr__", "sys._getframe", "sys.excepthook", "sys.unraisablehook",
})  # fmt: skip
NOBODY = 65534
SHOWN_CHARS = 300
FILENAME = "<solution>"


class _Gate:
    """Raises what is refused, and remembers it: the function may swallow the error."""

    def __init__(self) -> None:
        self.refused = ""

    def refuse(self, what: str) -> NoReturn:
        self.refused = self.refused or what
        raise PermissionError(f"the sandbox refuses {what}")

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in HARMLESS:
            detail = f" of {arguments[0]}" if event == "import" else ""
            self.refuse(event + detail)

    def importer(self) -> Callable[..., Any]:
        real = builtins.__import__

        def guarded(name: str, *rest: Any, **named: Any) -> Any:
            # C functions import what they load late through this one, too.
            if name.partition(".")[0] not in ALLOWED and name not in LAZY.values():
                self.refuse(f"import of {name}")
            return real(name, *rest, **named)

        return guarded


class _Discard:
    """Stands in for stdout and stderr: what a solution prints is thrown away."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        return None


def main() -> NoReturn:
    """Serve one request and end without running any exit handler."""
    request = json.loads(sys.stdin.buffer.read())
    limit(request["limits"])
    _preload(request["source"])
    sys.stdin = None
    sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = _Discard()  # type: ignore[assignment,misc]
    lock()
    gate = _Gate()
    # A syntax error looks for its file: that is no attempt of the solution's to open one.
    loaded = _attempt(gate, lambda: compile(request["source"], FILENAME, "exec"))
    module = types.ModuleType("solution")
    module.__dict__["__builtins__"] = {**vars(builtins), "__import__": gate.importer()}
    # Dataclasses look their module up.
    sys.modules["solution"] = module
    sys.addaudithook(gate.audit)
    if "kind" not in loaded:
        code = loaded["value"]
        loaded = _attempt(gate, lambda: _load(module, code, request["function"]))
    if "kind" in loaded:
        _send({**loaded, "load": True})
        os._exit(0)
    function = loaded["value"]
    room = request["limits"]["output_bytes"]
    for arguments in request["calls"]:
        outcome = _attempt(gate, partial(function, *arguments))
        if "kind" not in outcome:
            outcome = _encode(outcome["value"], room)
        room -= outcome.pop("size", 0)
        _send(outcome)
    os._exit(0)


def _preload(source: str) -> None:
    """Import what `source` names and is allowed; what is wrong with it shows when it runs."""
    names = set()
    with suppress(SyntaxError, ValueError, RecursionError, MemoryError):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module)
    for name in sorted(names):
        if name.partition(".")[0] in ALLOWED:
            with suppress(ImportError):
                importlib.import_module(name)
            if name in LAZY:
                importlib.import_module(LAZY[name])


def limit(limits: dict[str, Any]) -> None:
    """Let the kernel end this process after `cpu_s` or `wall_s` seconds or above `memory_mb`."""
    # If the parent dies, nobody else would end a process that waits.
    signal.alarm(math.ceil(limits["wall_s"]) + 1)
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = math.ceil(used.ru_utime + used.ru_stime + limits["cpu_s"])
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    memory = limits["memory_mb"] * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def lock() -> None:
    """Give up for good the right to write files, start processes, open files and sockets."""
    if os.geteuid() == 0:
        # The kernel does not limit root's processes. Where nobody has no user id (some user
        # namespaces) the audit hook alone refuses a fork.
        with suppress(OSError):
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
    for kind in (
        resource.RLIMIT_FSIZE,
        resource.RLIMIT_CORE,
        resource.RLIMIT_NPROC,
        # No further file descriptor: neither a file nor a socket, whatever the audit hook sees.
        resource.RLIMIT_NOFILE,
    ):
        resource.setrlimit(kind, (0, 0))


def _load(module: types.ModuleType, code: Any, function: str) -> Callable[..., Any]:
    """Execute the compiled source and return its function."""
    exec(code, module.__dict__)
    found = module.__dict__.get(function)
    if not callable(found):
        raise NameError(f"the source defines no function {function!r}")
    return found


def _attempt(gate: _Gate, action: Callable[[], Any]) -> dict[str, Any]:
    """Return `{"value": …}`, or `{"kind": …, "detail": …}` of what went wrong."""
    gate.refused = ""
    outcome: dict[str, Any]
    try:
        outcome = {"value": action()}
    except MemoryError:
        outcome = {"kind": "memory", "detail": "ran out of memory"}
    except BaseException as error:
        outcome = {"kind": "exception", "detail": _describe(error)}
    if gate.refused:
        return {"kind": "refused", "detail": f"the sandbox refuses {gate.refused}"}
    return outcome


def _describe(error: BaseException) -> str:
    """Return type, message and the line of the solution."""
    line = 0
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == FILENAME:
            line = trace.tb_lineno
        trace = trace.tb_next
    try:
        message = str(error)[:SHOWN_CHARS]
    except Exception:
        message = "(its message cannot be read)"
    return f"{type(error).__name__}: {message}" + f" (line {line})" * bool(line)


def _encode(value: Any, room: int) -> dict[str, Any]:
    """Return a call's outcome with the value as JSON text, if it is JSON and fits."""
    try:
        text = json.dumps(value, allow_nan=False)
    except MemoryError:
        return {"kind": "memory", "detail": "ran out of memory while writing the result"}
    except Exception as error:
        detail = f"the result is no JSON value: {type(error).__name__}: {error}"
        return {"kind": "output", "detail": detail[:SHOWN_CHARS]}
    if len(text) > room:
        return {
            "kind": "output",
            "detail": f"the result has {len(text):,} characters as JSON; {room:,} are left",
        }
    return {"kind": "ok", "value": text, "size": len(text)}


def _send(outcome: dict[str, Any]) -> None:
    """Write one line to the pipe, whatever became of `sys.stdout`."""
    data = json.dumps(outcome).encode() + b"\n"
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    main()
