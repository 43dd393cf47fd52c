# SPDX-License-Identifier: Apache-2.0
"""Bar charts with a logarithmic axis, as SVG that is readable on light and on dark paper."""

import math
from xml.sax.saxutils import escape

STYLE = """
text { font: 12px sans-serif; fill: #1f2328; }
.title { font-size: 14px; font-weight: bold; }
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

LABELS, PLOT, VALUES = 330, 430, 70  # widths
ROW, BAR, TOP, BOTTOM = 20, 13, 44, 22


def number(value):
    """With three digits that matter."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 3)}f}"


def bar_chart(path, title, unit, bars):
    """`bars`: (label, median, least, largest, is it ours)."""
    positive = [value for bar in bars for value in bar[1:4] if value > 0]
    low = math.floor(math.log10(min(positive, default=1)))
    high = max(low + 1, math.ceil(math.log10(max(positive, default=10))))

    def x(value):
        place = (math.log10(value) - low) / (high - low) if value > 0 else 0
        return LABELS + PLOT * min(1, max(0, place))

    height = TOP + ROW * len(bars) + BOTTOM
    width = LABELS + PLOT + VALUES
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
             f'role="img"><title>{escape(title)}</title><style>{STYLE}</style>',
             f'<text class="title" x="8" y="18">{escape(title)}</text>',
             f'<text class="small" x="{width - 8}" y="18" text-anchor="end">{escape(unit)}, logarithmic: '
             'each line is ten times the one before</text>']
    for power in range(low, high + 1):
        at = x(10 ** power)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 6}" y2="{height - BOTTOM}"/>'
                     f'<text class="small" x="{at:.1f}" y="{height - 8}" text-anchor="middle">{number(10 ** power)}</text>')
    for row, (label, median, least, largest, ours) in enumerate(bars):
        y = TOP + ROW * row
        middle = y + BAR / 2
        parts.append(f'<text x="{LABELS - 8}" y="{y + BAR - 2}" text-anchor="end">{escape(label)}</text>'
                     f'<rect class="{"ours" if ours else "peer"}" x="{LABELS}" y="{y}" height="{BAR}" '
                     f'width="{max(1, x(median) - LABELS):.1f}"/>')
        if largest > least:
            parts.append(f'<line class="range" x1="{x(least):.1f}" x2="{x(largest):.1f}" y1="{middle}" y2="{middle}"/>')
        parts.append(f'<text class="small" x="{x(max(median, largest)) + 5:.1f}" y="{y + BAR - 2}">{number(median)}</text>')
    parts.append("</svg>")
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")
