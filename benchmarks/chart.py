"""Horizontal bars as an SVG that README can show, in light and in dark.

Linear, since a logarithm hides what a factor is: bars beyond the scale are cut with a visible break and tell their
value. Knows nothing of where the figures come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 970
LABELS = 430
VALUES = 130
ROW = 30
BAR = 18
TOP = 64
BOTTOM = 48
MARGIN = 24
"""For readers whose font is wider than ours: text that is longer than its column is not cut off."""
# The floor times this is the whole scale.
SCALE = 10

_STYLE = """
  text { font: 14px -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #1f2328; }
  .title { font-size: 16px; font-weight: 600; }
  .small { font-size: 12px; fill: #59636e; }
  .value { font-variant-numeric: tabular-nums; paint-order: stroke; stroke: #ffffff; stroke-width: 4; }
  .ours { font-weight: 600; }
  .peer-bar { fill: #8c959f; }
  .ours-bar { fill: #1a7f37; }
  .floor-bar { fill: #0969da; }
  .floor-line { stroke: #0969da; stroke-width: 1.5; stroke-dasharray: 4 4; }
  .break { fill: none; stroke: #ffffff; stroke-width: 3; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; }
    .small { fill: #9198a1; }
    .peer-bar { fill: #656c76; }
    .ours-bar { fill: #3fb950; }
    .floor-bar { fill: #4493f8; }
    .floor-line { stroke: #4493f8; }
    .break, .value { stroke: #0d1117; }
  }"""


@dataclass(frozen=True, slots=True)
class Bar:
    """One candidate and its CPU µs per request."""

    label: str
    value: float
    ours: bool = False
    floor: bool = False


def svg(bars: Sequence[Bar], caption: str) -> str:
    """The chart, cheapest first."""
    ordered = sorted(bars, key=lambda bar: bar.value)
    floor = next((bar.value for bar in ordered if bar.floor), ordered[0].value)
    room = WIDTH - LABELS - VALUES
    scale = room / (floor * SCALE)
    height = TOP + ROW * len(ordered) + BOTTOM
    at_floor = LABELS + floor * scale
    bottom = TOP + ROW * len(ordered)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH + 2 * MARGIN}" height="{height}" '
        f'viewBox="{-MARGIN} 0 {WIDTH + 2 * MARGIN} {height}" role="img" aria-labelledby="title">',
        f"<style>{_STYLE}\n</style>",
        '<title id="title">CPU per proxied request</title>',
        '<text class="title" x="16" y="26">CPU per proxied request</text>',
        '<text class="small" x="16" y="46">µs, 1 KB of JSON, 32 connections; less is better</text>',
        f'<line class="floor-line" x1="{at_floor:.1f}" x2="{at_floor:.1f}" y1="{TOP - 8}" y2="{bottom}"/>',
        f'<text class="small" x="{at_floor + 6:.1f}" y="{TOP - 12}">the floor: a bare uvicorn app</text>',
    ]
    for row, bar in enumerate(ordered):
        parts.extend(_bar(bar, TOP + ROW * row, min(bar.value * scale, room), bar.value * scale > room, floor))
    parts.append(f'<text class="small" x="16" y="{height - 16}">{escape(caption)}</text>')
    return "\n".join(parts) + "\n</svg>\n"


def _bar(bar: Bar, y: float, width: float, cut: bool, floor: float) -> list[str]:
    kind = "floor" if bar.floor else "ours" if bar.ours else "peer"
    text = y + ROW / 2 + 5
    top = y + (ROW - BAR) / 2
    emphasis = ' class="ours"' if bar.ours else ""
    parts = [
        f'<text{emphasis} x="{LABELS - 10}" y="{text:.1f}" text-anchor="end">{escape(bar.label)}</text>',
        f'<rect class="{kind}-bar" x="{LABELS}" y="{top:.1f}" width="{width:.1f}" height="{BAR}" rx="3"/>',
    ]
    if cut:
        at = LABELS + width - 34
        half = BAR / 2 + 2
        parts += [
            f'<path class="break" d="M{at + shift:.1f} {top + BAR + 2:.1f} l5 -{half:.1f} l-4 -1 l5 -{half:.1f}"/>'
            for shift in (0, 8)
        ]
    value = f"{bar.value:,.0f} µs" + ("" if bar.floor else f" · {_times(bar.value / floor)} ×")
    parts.append(f'<text class="value" x="{LABELS + width + 8:.1f}" y="{text:.1f}">{value}</text>')
    return parts


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"
