"""Attention on AMX tiles against the textbook's, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from distill.train import cpu_kernels  # noqa: E402
from distill.train.packed import Segment  # noqa: E402

SHARED = Segment(0, 70)
LAYOUTS: dict[str, list[Segment]] = {
    "one row": [Segment(0, 1)],
    "whole blocks": [Segment(0, 128)],
    "odd lengths": [Segment(0, 33), Segment(33, 1), Segment(34, 201)],
    "a prefix of several": [
        SHARED,
        Segment(70, 45, SHARED),
        Segment(115, 1, SHARED),
        Segment(116, 130, SHARED),
        Segment(246, 17),
    ],
    "one that ends with its prefix": [SHARED, Segment(70, 0, SHARED), Segment(70, 9, SHARED)],
}


def textbook(heads: Any, segments: list[Segment], *, groups: int, scale: float) -> Any:
    """Context [H, M, W] of q [H, M, W], k and v [K, M, W], by the formula."""
    q, k, v = (x.repeat_interleave(n, 0) for x, n in zip(heads, (1, groups, groups), strict=True))
    num_rows = q.shape[1]
    sees = torch.zeros(num_rows, num_rows, dtype=torch.bool)
    for one in segments:
        for t in range(one.length):
            sees[one.start + t, one.start : one.start + t + 1] = True
            before, length = one.seen_before
            sees[one.start + t, before : before + length] = True
    scores = (q @ k.transpose(1, 2) * scale).masked_fill(~sees, -math.inf)
    return scores.softmax(-1) @ v


def flat(x: Any, segments: list[Segment]) -> Any:
    """[heads, M, W] head-major a segment."""
    return torch.cat(
        [x[:, s.start : s.start + s.length].reshape(-1) for s in segments]
    ).contiguous()


def run(layout: str, *, width: int, groups: int, threads: int = 1) -> tuple[list[Any], list[Any]]:
    """Context and gradients of q, k, v: the kernels', and float64's."""
    segments = LAYOUTS[layout]
    num_rows = sum(s.length for s in segments)
    torch.manual_seed(0)
    scale = width**-0.5
    heads = [
        torch.randn(n, num_rows, width).mul(1.5).bfloat16().double().requires_grad_()
        for n in (2 * groups, 2, 2)
    ]
    d_context = torch.randn(num_rows, 2 * groups * width).bfloat16()
    exact = textbook(heads, segments, groups=groups, scale=scale).transpose(0, 1)
    exact = exact.reshape(num_rows, -1)
    exact.backward(d_context.double())
    given = tuple(flat(x.detach().bfloat16(), segments) for x in heads)
    table = torch.tensor([(s.start, s.length, *s.seen_before) for s in segments])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        context, lse = cpu_kernels.attend(given, table, num_rows=num_rows, width=width, scale=scale)
        gradients = cpu_kernels.attend_backward(
            d_context, given, context, lse, table, width=width, scale=scale
        )
    finally:
        torch.set_num_threads(before)
    return [context, *gradients], [exact.detach(), *(flat(x.grad, segments) for x in heads)]


@pytest.fixture(autouse=True)
def _tiles() -> None:
    if not cpu_kernels.has_tiled_attention(torch.bfloat16, 64):
        pytest.skip("no AMX tiles, or no C++ compiler")


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize(("width", "groups"), [(64, 3), (32, 1), (128, 2), (256, 1)])
def test_context_and_gradients_are_those_of_the_formula(
    layout: str, width: int, groups: int
) -> None:
    for found, exact in zip(*run(layout, width=width, groups=groups), strict=True):
        far = (found.double() - exact).norm() / exact.norm().clamp_min(1e-9)
        # What rounding q, k, v, the probabilities and the result to 8 bits leaves.
        assert far < 6e-3 or (found.double() - exact).abs().max() < 1e-2


def test_threads_change_nothing_to_the_last_bit() -> None:
    one, _ = run("a prefix of several", width=64, groups=3)
    two, _ = run("a prefix of several", width=64, groups=3, threads=2)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_other_products_on_tiles_go_on_between_calls() -> None:
    a, b = torch.randn(256, 512).bfloat16(), torch.randn(512, 256).bfloat16()
    before = a @ b
    run("odd lengths", width=64, groups=3)
    assert torch.equal(a @ b, before)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_no_number_stays_none(which: int) -> None:
    heads = [torch.randn(n * 40 * 64).bfloat16() for n in (3, 1, 1)]
    heads[which][5 * 64] = float("nan")  # the sixth row of the first head
    table = torch.tensor([(0, 40, 0, 0)])
    context, _ = cpu_kernels.attend(tuple(heads), table, num_rows=40, width=64, scale=0.125)
    assert bool(context[5, :64].isnan().all() if which < 2 else context[5, 0].isnan())


def test_what_does_not_fit_tiles_is_left_to_products_of_matrices() -> None:
    assert not cpu_kernels.has_tiled_attention(torch.float32, 64)
    assert not cpu_kernels.has_tiled_attention(torch.bfloat16, 80)
