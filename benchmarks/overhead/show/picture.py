"""The picture of the table: a self-contained SVG of step times, a panel for each work.

A bar is the median step time, its whisker the 95% interval of that median; the dashed line is the step time that the
instrumented trainer is to stay under: the work's bar times the stock Trainer's median. No background is painted and
every colour is of middle brightness, so that it can stand on a white or a black page.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..work import WORKS, Work
from .summary import Row

WIDTH, LEFT, RIGHT = 820, 120, 150
TOP, LINE, BAR, GAP = 58, 24, 15, 54
TEXT, LIMIT = "#7d8590", "#d99a00"
STOCK, OURS, FLOOR = "#e5484d", "#2f81f7", "#7d8590"
OUR_NAMES = ("plain", "instrumented", "plain_aten", "aten", "heavy")


def overhead_svg(title: str, rows: Sequence[Row]) -> str:
    """The picture.

    Args:
        title: one line.
        rows: of all works; those of one work follow each other.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.work, []).append(row)
    height = TOP + sum(GAP + LINE * len(group) for group in groups.values())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'role="img" font-family="system-ui, sans-serif" font-size="13">',
        f"<title>{escape(title)}</title>",
        _text(20, 28, title, size=16, weight="600"),
    ]
    y = TOP
    for name, group in groups.items():
        parts += _panel(WORKS[name].title, group, limit_of(WORKS[name], group), y)
        y += GAP + LINE * len(group)
    return "\n".join([*parts, "</svg>"]) + "\n"


def limit_of(work: Work, rows: Sequence[Row]) -> float | None:
    """Seconds that the instrumented step may take, or None without a bar or the stock Trainer."""
    share = work.bar if work.speed_bar is None else 1 / work.speed_bar
    stock = next((row for row in rows if row.contender == "stock"), None)
    return None if share is None or stock is None else share * stock.wall_p50


def _panel(title: str, rows: Sequence[Row], limit: float | None, top: float) -> list[str]:
    longest = max(max(row.wall_p50, row.wall_high) for row in rows)
    scale = (WIDTH - LEFT - RIGHT) / longest
    parts = [_text(20, top + 16, title, weight="600")]
    for number, row in enumerate(rows):
        y = top + 28 + LINE * number
        colour = STOCK if row.contender == row.base else OURS if row.contender in OUR_NAMES else FLOOR
        middle = y + BAR / 2
        low, high = LEFT + scale * row.wall_low, LEFT + scale * row.wall_high
        parts += [
            _text(LEFT - 8, y + 12, row.contender, anchor="end"),
            f'<rect class="bar" x="{LEFT}" y="{y}" width="{scale * row.wall_p50:.1f}" height="{BAR}" fill="{colour}" '
            'fill-opacity="0.75"/>',
            f'<line class="interval" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}" stroke="{TEXT}" '
            'stroke-width="2"/>',
            _text(max(high, LEFT + scale * row.wall_p50) + 8, y + 12, f"{row.wall_p50:.2f} s  {row.ratio:.2f}x"),
        ]
    if limit is not None:
        x, bottom = LEFT + scale * limit, top + 28 + LINE * len(rows)
        parts.append(
            f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{top + 22}" y2="{bottom}" stroke="{LIMIT}" '
            'stroke-width="2" stroke-dasharray="5 4"/>'
        )
    return parts


def _text(x: float, y: float, words: str, *, size=13, weight="400", anchor="start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
        f'fill="{TEXT}">{escape(words)}</text>'
    )
