# SPDX-License-Identifier: Apache-2.0
"""Lines with both axes logarithmic, as SVG: what grows linearly is a diagonal."""

import math
from xml.sax.saxutils import escape

from .plot import STYLE, number

COLOURS = ("#0969da", "#bf8700", "#1a7f37", "#cf222e", "#8250df", "#bc4c00", "#57606a", "#0a7ea4")
LEFT, PLOT, RIGHT = 60, 480, 220  # widths
TOP, HEIGHT, BOTTOM = 36, 300, 44


def decades(values):
    low = math.floor(math.log10(min(values)))
    return low, max(low + 1, math.ceil(math.log10(max(values))))


def line_chart(path, title, across, unit, series):
    """`series`: {name: [(x, y)]}; points of 0 and less are left out. A dotted line grows with x."""
    series = {name: [(x, y) for x, y in points if x > 0 and y > 0] for name, points in series.items()}
    points = [point for found in series.values() for point in found]
    if not points:
        return
    left, right = (math.log10(end(x for x, _ in points)) for end in (min, max))
    right = max(right, left + 0.3)
    low, high = decades([y for _, y in points])

    def at(x, y):
        return (LEFT + PLOT * (math.log10(x) - left) / (right - left),
                TOP + HEIGHT * (high - math.log10(y)) / (high - low))

    width, height = LEFT + PLOT + RIGHT, TOP + HEIGHT + BOTTOM
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
             f'role="img"><title>{escape(title)}</title><style>{STYLE}</style>',
             f'<text class="title" x="8" y="18">{escape(title)}</text>',
             f'<text class="small" x="{LEFT + PLOT / 2}" y="{height - 6}" text-anchor="middle">{escape(across)}</text>',
             f'<text class="small" x="8" y="{TOP - 6}">{escape(unit)}</text>']
    for power in range(low, high + 1):
        _, y = at(10 ** left, 10 ** power)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{LEFT + PLOT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                     f'<text class="small" x="{LEFT - 6}" y="{y + 3:.1f}" text-anchor="end">{number(10 ** power)}</text>')
    for value in sorted({x for x, _ in points}):
        x, _ = at(value, 10 ** low)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{TOP + HEIGHT}"/>'
                     f'<text class="small" x="{x:.1f}" y="{TOP + HEIGHT + 14}" text-anchor="middle">{value}</text>')
    # What is ten times as much at ten times as much.
    span = min(right - left, high - low)
    x1, y1 = at(10 ** left, 10 ** low)
    x2, y2 = at(10 ** (left + span), 10 ** (low + span))
    parts.append(f'<line class="range" stroke-dasharray="2 4" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    names_end = []
    for (name, found), colour in zip(series.items(), COLOURS * 2):
        if not found:
            continue
        places = [at(x, y) for x, y in found]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{line}"/>')
        parts += [f'<circle fill="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places]
        names_end.append((places[-1][1], name, colour))
    last = 0
    for y, name, colour in sorted(names_end):
        last = max(y, last + 13)
        parts.append(f'<text class="small" x="{LEFT + PLOT + 8}" y="{last + 3:.1f}" style="fill: {colour}">{escape(name)}</text>')
    parts.append("</svg>")
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")
