"""What a run measured, drawn as SVG: one panel a metric, steps to the right, the best step marked.

Written by hand rather than with a plotting library: small multiples of lines need little, and this way they
stand in a page without a further file, in the page's own colours, and cost no dependency.
"""

from __future__ import annotations

import math
from html import escape

from lorimer.train.progress import Progress, Series, smoothed

_WIDTH, _HEIGHT = 420, 200  # of one panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 40, 30
_ACROSS = 3
_ABOUT = {
    "loss": "training loss",
    "validation_loss": "validation loss (lower is better)",
    "diversity": "diversity (1: as the base model)",
    "memorising": "memorising (0.5: as unseen pictures, 1: copies)",
    "drift": "drift of unrelated prompts (0: none)",
}
_STYLE = """
.lorimer-plot { color: #1b1b1f; font: 12px system-ui, sans-serif; }
.lorimer-plot text { fill: currentColor; }
.lorimer-plot .faint { opacity: .6; }
.lorimer-plot .axis { stroke: currentColor; opacity: .18; }
.lorimer-plot .line { fill: none; stroke: #c2611f; stroke-width: 2; stroke-linejoin: round; }
.lorimer-plot .raw { fill: none; stroke: #c2611f; opacity: .25; }
.lorimer-plot .dot { fill: #c2611f; }
.lorimer-plot .best { stroke: #2f7d5b; stroke-dasharray: 4 3; }
.lorimer-plot .mark { fill: #2f7d5b; font-weight: 600; }
@media (prefers-color-scheme: dark) {
  .lorimer-plot { color: #ececf1; }
  .lorimer-plot .best { stroke: #6fcf9f; } .lorimer-plot .mark { fill: #6fcf9f; }
  .lorimer-plot .line { stroke: #f0a35e; } .lorimer-plot .raw { stroke: #f0a35e; }
  .lorimer-plot .dot { fill: #f0a35e; }
}
"""


def progress_svg(progress: Progress) -> str:
    """The plots as one SVG, which stands alone or in a page; an empty text where nothing was measured."""
    names = [name for name in (*_ABOUT, *sorted(progress.series.keys() - _ABOUT)) if name in progress.series]
    if not names:
        return ""
    rows = math.ceil(len(names) / _ACROSS)
    width, height = _WIDTH * min(_ACROSS, len(names)), _HEIGHT * rows
    last = max(step for series in progress.series.values() for step, _ in series)
    panels = [
        f'<g transform="translate({_WIDTH * (place % _ACROSS)} {_HEIGHT * (place // _ACROSS)})">'
        f"{_panel(name, progress.series[name], max(last, 1), progress.best_step)}</g>"
        for place, name in enumerate(names)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="lorimer-plot" viewBox="0 0 {width} {height}" '
        f'role="img"><style>{_STYLE}</style>{"".join(panels)}</svg>'
    )


def _panel(name: str, series: Series, last: int, best: int | None) -> str:
    """One metric over the steps from 0 to `last`."""
    ticks = nice_ticks(min(value for _, value in series), max(value for _, value in series))
    low, high = ticks[0], ticks[-1]

    def across(step: float) -> str:
        return f"{_LEFT + (_WIDTH - _LEFT - _RIGHT) * step / last:.1f}"

    def up(value: float) -> str:
        return f"{_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - low) / (high - low):.1f}"

    def line(points: Series, kind: str) -> str:
        path = " ".join(f"{across(step)},{up(value)}" for step, value in points)
        return f'<polyline class="{kind}" points="{path}"/>'

    right, floor = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = [f'<text x="{_LEFT}" y="18" font-weight="600">{escape(_ABOUT.get(name, name))}</text>']
    for tick in ticks:
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{up(tick)}" y2="{up(tick)}"/>')
        parts.append(
            f'<text class="faint" x="{_LEFT - 8}" y="{up(tick)}" dy="4" text-anchor="end">{tick:g}</text>'
        )
    parts += [
        f'<text class="faint" x="{across(step)}" y="{floor + 18}" text-anchor="middle">{step}</text>'
        for step in dict.fromkeys((0, last // 2, last))
    ]
    if best is not None:
        place = across(best)
        parts.append(f'<line class="best" x1="{place}" x2="{place}" y1="{_TOP}" y2="{floor}"/>')
        parts.append(f'<text class="mark" x="{place}" y="{_TOP - 6}" text-anchor="middle">{best}</text>')
    if name == "loss":
        parts += [line(series, "raw"), line(smoothed(series, last / 20), "line")]
    else:
        parts.append(line(series, "line"))
        for step, value in series:
            told = f"<title>step {step}: {value:.4g}</title>"
            parts.append(f'<circle class="dot" cx="{across(step)}" cy="{up(value)}" r="3">{told}</circle>')
    return "".join(parts)


def nice_ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers, evenly apart, that span [low, high]."""
    if high - low <= 1e-9 * max(abs(low), abs(high), 1.0):
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, final = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, final + 1)]
