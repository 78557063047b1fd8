"""What adapters cost on CPU: base model, this project's operators and vLLM's own, taking turns.

    python -m jobs.bench.lora [--model FOLDER] [--rounds N] [--no-stock]

Every side keeps 32 requests in flight and advances some steps at its turn, so that the speed of a
shared machine, which changes within seconds, is the same for the sides of a round. Each ratio is
the median over rounds of two figures of one round; every other round runs backwards.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from cluster import cpu_engine, processor
from jobs.bench.report import Case, at_least, at_most, for_comparison, report
from jobs.bench.side import SideProcess

PREFILL_TOKENS = 2048
STEPS = 8
"""Decoding steps a turn."""
WARM_UP_STEPS = 2
DECODE_TURNS = 4
"""Turns of decoding a round: they are a tenth as long as a prefill's."""
STOCK_TURNS = 3
TOKENS_LEFT = 8
"""Tokens that nobody gets to: all 32 requests are there at every measured step."""
RANKS_OF_THREE = (16, 16, 16)
RANKS_OF_EIGHT = (8, 16, 64, 8, 16, 64, 8, 16)


class Side:
    """An engine process that waits for its turn."""

    def __init__(self, engine: dict[str, Any], *, env: dict[str, str], log: Path) -> None:
        self._process = SideProcess(
            "jobs.bench.lora_side", setup={"engine": engine}, env=env, log=log
        )

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Send one command and wait for its result."""
        return self._process.ask(command)

    def begin(self, adapters: list[str | None], *, num_tokens: int) -> None:
        """Take 32 requests shared out over `adapters` past their prefill."""
        self.ask({"measure": "begin", "adapters": adapters, "num_tokens": num_tokens})

    def advance(self) -> float:
        """Decoded tokens per second of one turn, after a short warm-up."""
        self.ask({"measure": "advance", "steps": WARM_UP_STEPS})
        return self.ask({"measure": "advance", "steps": STEPS})["tokens_per_s"]

    def end(self) -> None:
        """Finish the requests."""
        self.ask({"measure": "end"})

    def prefill(self, adapter: str | None) -> dict[str, float]:
        """Seconds and peak memory of one long prompt, after a short one."""
        command = {"measure": "prefill", "adapter": adapter}
        self.ask(command | {"num_tokens": PREFILL_TOKENS // 8})
        return self.ask(command | {"num_tokens": PREFILL_TOKENS})

    def close(self) -> None:
        """End the engine."""
        self._process.close()


def make_adapters(model: Path, folder: Path) -> tuple[list[str], list[str]]:
    """Write random adapters with non-zero B on all linear layers; return three and eight paths."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    paths: list[str] = []
    for number, rank in enumerate((*RANKS_OF_THREE, *RANKS_OF_EIGHT), start=1):
        torch.manual_seed(number)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
        adapted = get_peft_model(base, config)
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.02)
        path = folder / f"{number}-r{rank}"
        adapted.save_pretrained(path)
        paths.append(str(path))
        base = adapted.unload()
    return paths[: len(RANKS_OF_THREE)], paths[len(RANKS_OF_THREE) :]


def in_turn(turns: list[Any], number: int) -> list[Any]:
    """Return the turns as they stand in even rounds and backwards in odd ones."""
    return turns if number % 2 == 0 else turns[::-1]


def ratios(figures: list[float], others: list[float]) -> float:
    """Median of the rounds' quotients."""
    return statistics.median(a / b for a, b in zip(figures, others, strict=True))


def measure(model: Path, folder: Path, *, rounds: int, stock: bool) -> list[Case]:
    """Run all sides in turns and return the cases."""
    three, eight = make_adapters(model, folder)
    base = {
        "model": str(model),
        "dtype": processor.dtype_name(None),
        "max_model_len": PREFILL_TOKENS + 64,
        "max_num_batched_tokens": PREFILL_TOKENS + 64,
        "max_num_seqs": 32,
        "enable_prefix_caching": False,
        "enforce_eager": True,
    }
    lora3 = base | {"enable_lora": True, "max_loras": 3, "max_cpu_loras": 8, "max_lora_rank": 16}
    lora8 = base | {"enable_lora": True, "max_loras": 8, "max_cpu_loras": 8, "max_lora_rank": 64}
    # As Distillery's own replicas run, on all sides.
    cache = cpu_engine.environment(kv_cache_gb=1) | {
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in the side's own process
    }
    # vLLM's own setting leaves the plugin out.
    without_plugin = cache | {"VLLM_PLUGINS": "distillery_cpu_amx"}
    engines = {
        "base": (base, without_plugin, [None]),
        "three": (lora3, cache, list(three)),
        "base_in_lora": (lora3, cache, [None]),
        "eight": (lora8, cache, list(eight)),
    }
    if stock:
        engines["stock"] = (lora3, without_plugin, list(three))
    sides: dict[str, Side] = {}
    try:
        for name, (arguments, env, _) in engines.items():
            sides[name] = Side(arguments, env=env, log=folder / f"{name}.log")
        adapters = {name: adapters for name, (_, _, adapters) in engines.items()}
        cases = decode_cases(sides, adapters, rounds=DECODE_TURNS * rounds)
        return cases + prefill_cases(sides, three[0], rounds=rounds)
    finally:
        for side in sides.values():
            side.close()


def decode_cases(sides: dict[str, Side], adapters: dict[str, Any], *, rounds: int) -> list[Case]:
    """Measure decoding with every side's requests in flight, `rounds` times in turns."""
    turns = {name: STOCK_TURNS if name == "stock" else rounds for name in sides}
    for name, side in sides.items():
        num_tokens = (turns[name] + 1) * (STEPS + WARM_UP_STEPS) + TOKENS_LEFT
        side.begin(adapters[name], num_tokens=num_tokens)
        side.advance()
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, side in in_turn(list(sides.items()), number):
            if number < turns[name]:
                speeds[name].append(side.advance())
        shown = ", ".join(f"{name} {of[-1]:.0f}" for name, of in speeds.items())
        print(f"decode, tok/s: {shown}", file=sys.stderr, flush=True)
    for side in sides.values():
        side.end()
    base = speeds["base"]
    cases = [
        for_comparison("decode base", statistics.median(base), unit="tok/s"),
        at_least(
            "decode, 3 adapters / base", ratios(speeds["three"], base), unit="ratio", target=0.85
        ),
        at_least(
            "decode, 8 adapters of ranks 8, 16, 64 / base",
            ratios(speeds["eight"], base),
            unit="ratio",
            target=0.70,
        ),
        at_least(
            "base-only with LoRA on / off",
            ratios(speeds["base_in_lora"], base),
            unit="ratio",
            target=0.97,
        ),
    ]
    if "stock" in sides:
        theirs = ratios(speeds["stock"], base[: len(speeds["stock"])])
        cases.append(for_comparison("vLLM's own: decode, 3 adapters / base", theirs, unit="ratio"))
    return cases


def prefill_cases(sides: dict[str, Side], adapter: str, *, rounds: int) -> list[Case]:
    """Measure a long prompt with and without an adapter, `rounds` times in turns."""
    prefill_turns: dict[str, tuple[str, str | None]] = {
        "base": ("base", None),
        "one": ("three", adapter),
        "base_in_lora": ("three", None),
    }
    prefills: dict[str, list[dict[str, float]]] = {name: [] for name in prefill_turns}
    for side, of in prefill_turns.values():
        sides[side].prefill(of)
    for number in range(rounds):
        for name, (side, of) in in_turn(list(prefill_turns.items()), number):
            prefills[name].append(sides[side].prefill(of))
        print(f"prefill {[p[-1] for p in prefills.values()]}", file=sys.stderr, flush=True)
    seconds = {name: [p["seconds"] for p in of] for name, of in prefills.items()}
    peaks = {name: max(p["peak_mib"] for p in of) for name, of in prefills.items()}

    cases = [
        at_least(
            "prefill of 2,048, one adapter / base",
            ratios(seconds["base"], seconds["one"]),
            unit="ratio",
            target=0.90,
        ),
        at_most(
            "extra peak memory at that prefill",
            peaks["one"] - peaks["base_in_lora"],
            unit="MiB",
            target=100,
        ),
    ]
    if "stock" in sides:
        before = sides["stock"].prefill(None)
        adapted = sides["stock"].prefill(adapter)
        cases += [
            for_comparison(
                "vLLM's own: prefill, one adapter / base",
                statistics.median(seconds["base"]) / adapted["seconds"],
                unit="ratio",
            ),
            for_comparison(
                "vLLM's own: extra peak memory at that prefill",
                adapted["peak_mib"] - before["peak_mib"],
                unit="MiB",
            ),
        ]
    return cases


def main() -> None:
    """Measure, print the table, exit with 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(".cache/models/SmolLM2-135M-Instruct")
    parser.add_argument("--model", type=Path, default=default)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-stock", action="store_true", help="leave out vLLM's own operators")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="distillery-bench-") as folder:
        cases = measure(
            options.model, Path(folder), rounds=options.rounds, stock=not options.no_stock
        )
    sys.exit(report("lora", cases))


if __name__ == "__main__":
    main()
