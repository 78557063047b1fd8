"""A scatter of clusters as inline SVG: no script, no network, colours from the page's variables."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

import numpy as np

WIDTH, HEIGHT, MARGIN = 680, 420, 34
MAX_POINTS = 2000
NUM_COLOURS = 8


def scatter(
    points: np.ndarray,
    labels: np.ndarray,
    keep: Sequence[bool],
    *,
    names: Sequence[str],
    axes: tuple[str, str],
    title: str,
) -> str:
    """Return `<svg>` and a legend; `""` without points.

    `points` is float (N, 2), `labels` int (N,) into `names`. Points that are not kept are hollow.
    Each cluster's name stands at its median point, so that colours are not the only sign. Of more
    than `MAX_POINTS` points an even sample is drawn.
    """
    if not len(points):
        return ""
    low, high = points.min(axis=0), points.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    size = np.array([WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN])
    placed = MARGIN + (points - low) / span * size
    placed[:, 1] = HEIGHT - placed[:, 1]
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
        f'<text class="label" x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{escape(axes[0])}</text>"
        f'<text class="label" transform="translate(14 {HEIGHT / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(axes[1])}</text>',
    ]
    for place in range(0, len(points), -(-len(points) // MAX_POINTS)):
        shape = "point" if keep[place] else "point dropped"
        colour = labels[place] % NUM_COLOURS + 1
        x, y = placed[place]
        parts.append(f'<circle class="{shape} c{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
    for number, name in enumerate(names):
        members = placed[labels == number]
        if len(members):
            x, y = np.median(members, axis=0)
            parts.append(
                f'<text class="name" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">'
                f"{escape(name)}</text>"
            )
    parts.append("</svg>")
    entries = [
        f'<li><svg viewBox="0 0 10 10" aria-hidden="true"><circle class="point '
        f'c{number % NUM_COLOURS + 1}" cx="5" cy="5" r="4"/></svg>{escape(name)}</li>'
        for number, name in enumerate(names)
    ]
    if not all(keep):
        entries.append(
            '<li><svg viewBox="0 0 10 10" aria-hidden="true"><circle class="point dropped c1" '
            'cx="5" cy="5" r="4"/></svg>hollow: taken out by the cap</li>'
        )
    return "".join(parts) + f'<ul class="legend points">{"".join(entries)}</ul>'
