"""The picture of the demonstration: a self-contained SVG of loss against step.

    red      what the stock Trainer's log shows: it falls to 0.0
    yellow   the true loss of the same run: it ends where it becomes NaN
    blue     ours, healed

No background is painted and every colour is of middle brightness, so that it can stand on a white or a black page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

Curve = Sequence[float | None]

WIDTH, HEIGHT = 820, 420
LEFT, RIGHT, TOP, BOTTOM = 58, 20, 92, 52
TEXT, GRID = "#7d8590", "#7d8590"
STOCK, TRUE, OURS = "#e5484d", "#d99a00", "#2f81f7"


def collapse_svg(title: str, logged: Curve, true: Curve, ours: Curve, stock_step: int, ours_step: int | None) -> str:
    """The picture.

    Args:
        title: one line.
        logged: loss per step in the stock Trainer's log, from step 1; None is a gap.
        true: the loss that the log replaced.
        ours: loss per step of the healed run.
        stock_step: the step from which the stock run is not finite.
        ours_step: the step that our run healed; None if it did not.
    """
    n_steps = max(len(logged), len(true), len(ours))
    top = math.ceil(max(value for curve in (logged, true, ours) for value in curve if value is not None))

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - 1) / max(n_steps - 1, 1)

    def y(loss: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * loss / top

    def line(curve: Curve, colour: str, style: str, name: str) -> str:
        return f'<path id="{name}" d="{_path(curve, x, y)}" fill="none" stroke="{colour}" {style}/>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'role="img" font-family="system-ui, sans-serif" font-size="13">',
        f"<title>{escape(title)}</title>",
        _text(LEFT, 26, title, extra='font-size="17" font-weight="600"'),
        *_axes(n_steps, top, x, y),
        _mark(x(stock_step), f"stock: collapse at step {stock_step}", STOCK, y(top) - 6),
        *([_mark(x(ours_step), f"ours: healed at step {ours_step}", OURS, y(top) + 10)] if ours_step else []),
        line(true, TRUE, 'stroke-width="9" stroke-opacity="0.6" stroke-linecap="round"', "true"),
        line(ours, OURS, 'stroke-width="3.6" stroke-linejoin="round"', "ours"),
        line(logged, STOCK, 'stroke-width="1.6" stroke-linejoin="round"', "logged"),
        *_legend(),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _path(curve: Curve, x, y) -> str:
    """Moves over gaps, lines elsewhere."""
    words, drawing = [], False
    for step, loss in enumerate(curve, start=1):
        if loss is not None:
            words.append(f"{'L' if drawing else 'M'}{x(step):.1f},{y(loss):.1f}")
        drawing = loss is not None
    return " ".join(words)


def _axes(n_steps: int, top: int, x, y) -> list[str]:
    ticks = []
    for loss in range(0, top + 1, max(1, top // 8)):
        ticks.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(loss):.1f}" y2="{y(loss):.1f}" stroke="{GRID}" '
            f'stroke-opacity="{0.9 if loss == 0 else 0.22}"/>'
        )
        ticks.append(_text(LEFT - 10, y(loss) + 4.5, str(loss), anchor="end"))
    for step in (1, *range(10, n_steps + 1, 10)):
        ticks.append(_text(x(step), HEIGHT - BOTTOM + 20, str(step), anchor="middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    rotated = f'font-size="13" transform="rotate(-90 18 {middle})"'
    ticks.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "step", anchor="middle"))
    ticks.append(_text(18, middle, "loss", anchor="middle", extra=rotated))
    return ticks


def _mark(at: float, label: str, colour: str, label_y: float) -> str:
    return (
        f'<line class="collapse" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="{colour}" '
        'stroke-dasharray="4 4"/>\n' + _text(at + 6, label_y, label, colour=colour)
    )


def _legend() -> list[str]:
    entries = (
        (STOCK, 1.6, 1.0, "stock Trainer, as its log shows it"),
        (TRUE, 9.0, 0.6, "its true loss (then NaN)"),
        (OURS, 3.6, 1.0, "lora-train, on_collapse=heal"),
    )
    parts, at = [], float(LEFT)
    for colour, width, opacity, label in entries:
        parts.append(
            f'<line x1="{at}" x2="{at + 26}" y1="50" y2="50" stroke="{colour}" stroke-width="{width}" '
            f'stroke-opacity="{opacity}"/>'
        )
        parts.append(_text(at + 34, 54.5, label))
        at += 34 + 6.9 * len(label) + 24
    return parts


def _text(
    at: float, y: float, words: str, *, anchor: str = "start", colour: str = TEXT, extra: str = 'font-size="13"'
) -> str:
    return f'<text x="{at:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" {extra}>{escape(words)}</text>'
