# SPDX-License-Identifier: Apache-2.0
"""Bar charts with a logarithmic axis, as SVG that is readable on light and on dark paper."""

import collections
import math
from xml.sax.saxutils import escape

STYLE = """
text { font: 12px sans-serif; fill: #1f2328; }
.title { font-size: 14px; font-weight: bold; }
.group { font-weight: bold; }
.small { font-size: 10px; }
.grid { stroke: #8c959f; stroke-opacity: 0.35; }
.range { stroke: #1f2328; stroke-opacity: 0.7; }
.peer { fill: #bf8700; }
.ours { fill: #0969da; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .range { stroke: #e6edf3; }
  .peer { fill: #d29922; }
  .ours { fill: #4493f8; }
}
"""

PLOT, VALUES, LETTER = 430, 70, 7  # widths
ROW, BAR, TOP, BOTTOM = 20, 13, 44, 22

# `group`: told above the first of them; empty: it needs no words.
Bar = collections.namedtuple("Bar", "group label median least largest ours")


def number(value):
    """With three digits that matter."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 3)}f}"


class Axis:
    """Where values are, between two powers of ten."""

    def __init__(self, values, left):
        positive = [value for value in values if value > 0]
        self.low = math.floor(math.log10(min(positive, default=1)))
        self.high = max(self.low + 1, math.ceil(math.log10(max(positive, default=10))))
        self.left = left

    def x(self, value):
        place = (math.log10(value) - self.low) / (self.high - self.low) if value > 0 else 0
        return self.left + PLOT * min(1, max(0, place))

    def draw(self, bottom):
        for power in range(self.low, self.high + 1):
            at = self.x(10 ** power)
            yield (f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 6}" y2="{bottom}"/>'
                   f'<text class="small" x="{at:.1f}" y="{bottom + 14}" text-anchor="middle">{10 ** power:g}</text>')


def draw_bar(axis, bar, y):
    x, middle = axis.x, y + BAR / 2
    parts = [f'<text x="{axis.left - 8}" y="{y + BAR - 2}" text-anchor="end">{escape(bar.label)}</text>',
             f'<rect class="{"ours" if bar.ours else "peer"}" x="{axis.left}" y="{y}" height="{BAR}" '
             f'width="{max(1, x(bar.median) - axis.left):.1f}"/>']
    if bar.largest > bar.least:
        parts.append(f'<line class="range" x1="{x(bar.least):.1f}" x2="{x(bar.largest):.1f}" y1="{middle}" y2="{middle}"/>')
    parts.append(f'<text class="small" x="{x(max(bar.median, bar.largest)) + 5:.1f}" y="{y + BAR - 2}">'
                 f'{number(bar.median)}</text>')
    return "".join(parts)


def bar_chart(path, title, unit, bars):
    """Bars of one group follow each other. The line in a bar is from the least to the largest."""
    left = 16 + LETTER * max(len(bar.label) for bar in bars)
    axis = Axis([value for bar in bars for value in (bar.median, bar.least, bar.largest)], left)
    parts, y, group = [], TOP, ""
    for bar in bars:
        if bar.group != group:
            group = bar.group
            parts.append(f'<text class="group" x="8" y="{y + BAR + 1}">{escape(group)}</text>')
            y += ROW
        parts.append(draw_bar(axis, bar, y))
        y += ROW
    width, height = left + PLOT + VALUES, y + BOTTOM
    path.write_text("\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img"><title>{escape(title)}</title><style>{STYLE}</style>',
        f'<text class="title" x="8" y="18">{escape(title)}</text>',
        f'<text class="small" x="{width - 8}" y="18" text-anchor="end">{escape(unit)}, logarithmic</text>',
        *axis.draw(y), *parts, "</svg>"]) + "\n", encoding="utf-8")
