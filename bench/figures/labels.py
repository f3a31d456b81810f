"""Labels beside points and lines that overlap neither each other nor what they label. Lengths are in points."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from bench.figures.style import GREY, SIZE, Style, text_size

Boxes = npt.NDArray[np.float64]
"""[..., 4]: left, bottom, right, top."""

RADII = (9.0, 14.0, 22.0, 32.0, 46.0, 64.0, 88.0, 116.0, 148.0)
DIRECTIONS = 16
LEADER = 12.0
"""A label farther than this from its point is tied to it by a line."""
LABEL_SIZE = SIZE - 1
GAP = 22.0
"""Points between a panel and the labels to its right."""
_CLEAR = 18.0
"""A label this close to a point that it does not name is tied to its own, however close that is."""
_SWEEPS = 3
_LEADER_SHARES = np.linspace(0.15, 0.95, 9)


def overlap(a: Boxes, b: Boxes) -> Boxes:
    """Return the area that each of the boxes a [n, 4] shares with each of b [m, 4], as [n, m]."""
    width = np.minimum(a[:, None, 2], b[:, 2]) - np.maximum(a[:, None, 0], b[:, 0])
    height = np.minimum(a[:, None, 3], b[:, 3]) - np.maximum(a[:, None, 1], b[:, 1])
    return np.asarray(width.clip(0) * height.clip(0))


def around(centres: Boxes, half_size: float | Boxes) -> Boxes:
    """Return the boxes with these centres [..., 2]."""
    return np.concatenate([centres - half_size, centres + half_size], axis=-1)


@dataclass(frozen=True)
class Place:
    """Where a label stands."""

    left: float
    bottom: float
    right: float
    top: float
    leader: tuple[tuple[float, float], tuple[float, float]] | None
    """From the point to the label, where it must be tied to it."""


class _Candidates:
    """The places that one label may take, with what does not depend on other labels."""

    def __init__(
        self, points: Boxes, others: Boxes, size: Boxes, frame: Sequence[float], obstacles: Boxes, marker: float
    ) -> None:
        turns = np.arange(DIRECTIONS) * math.tau / DIRECTIONS
        direction = np.tile(np.stack([np.cos(turns), np.sin(turns)], axis=1), (len(RADII), 1))
        radius = np.repeat(RADII, DIRECTIONS)
        # The edge or corner that faces the points is `radius` away from their centre.
        centre = points.mean(axis=0) + direction * radius[:, None] + (1.6 * direction).clip(-1, 1) * size / 2
        boxes = around(centre, size / 2)
        inside = (boxes[:, :2] >= frame[:2]).all(axis=1) & (boxes[:, 2:] <= frame[2:]).all(axis=1)
        everything = around(np.concatenate([points, others]), marker)
        usable = inside & ~overlap(boxes, everything).any(axis=1)
        self.boxes, radius = boxes[usable], radius[usable]  # [c, 4], [c]
        closest, gaps = self._nearest(points)
        nearest = gaps.argmin(axis=1)
        self.starts, self.ends = points[nearest], closest[np.arange(len(closest)), nearest]  # [c, 2]
        near_others = self._nearest(others)[1].min(axis=1, initial=np.inf)
        self.has_leader = (gaps.min(axis=1) > LEADER) | (near_others < _CLEAR)
        steps = self.starts[:, None] + (self.ends - self.starts)[:, None] * _LEADER_SHARES[:, None]
        self.leaders = around(steps, 1.0)  # [c, steps, 4]
        parts = np.concatenate([self.boxes, self.leaders.reshape(-1, 4)])
        ends = (parts[:, :2].min(axis=0, initial=np.inf), parts[:, 2:].max(axis=0, initial=-np.inf))
        self.reach = np.concatenate(ends)[None]  # [1, 4]
        self.price = radius + 0.4 * overlap(self.boxes, obstacles).sum(axis=1) + 4 * self.hits(obstacles)
        self.price += 60 * self.hits(around(others, marker)) + 2 * (_CLEAR - near_others).clip(0)

    def _nearest(self, points: Boxes) -> tuple[Boxes, Boxes]:
        """Return what is nearest to each point in each box, [c, n, 2], and how far it is, [c, n]."""
        ends = points[None].clip(self.boxes[:, None, :2], self.boxes[:, None, 2:])
        return ends, np.linalg.norm(ends - points, axis=2)

    def hits(self, boxes: Boxes) -> npt.NDArray[np.int64]:
        """Return how many steps of each candidate's leader lie on any of `boxes`, as [c]."""
        count = np.zeros(len(self.boxes), dtype=np.int64)
        if len(boxes) and self.has_leader.any():
            on = overlap(self.leaders[self.has_leader].reshape(-1, 4), boxes).any(axis=1)
            count[self.has_leader] = on.reshape(-1, self.leaders.shape[1]).sum(axis=1)
        return count

    def within_reach(self, boxes: Boxes) -> Boxes:
        """Return those of `boxes` that some candidate, or its leader, could touch."""
        return boxes[overlap(boxes, self.reach).any(axis=1)]

    def place(self, index: int) -> Place:
        """Return a candidate."""
        left, bottom, right, top = map(float, self.boxes[index])
        (x, y), (to_x, to_y) = self.starts[index], self.ends[index]
        leader = ((float(x), float(y)), (float(to_x), float(to_y))) if self.has_leader[index] else None
        return Place(left, bottom, right, top, leader)


def place(
    points: Sequence[Sequence[tuple[float, float]]],
    sizes: Sequence[tuple[float, float]],
    frame: tuple[float, float, float, float],
    obstacles: Sequence[tuple[float, float, float, float]] = (),
    marker: float = 7.0,
) -> list[Place] | None:
    """Return where to put labels of `sizes` beside the points they name, or None if they do not fit without overlap.

    In turn, each label takes the cheapest of its candidate places that the others leave it, in a few sweeps; of some
    orders of turns the one that ends cheapest counts. Labels never cover points, other labels or their leaders, nor
    leave the frame; distance from their points, nearness to others', covering `obstacles` (error bars, lines) and
    leaders that cross something cost.

    Args:
        points: centres of the points that each label names.
        sizes: width and height of each label.
        frame: left, bottom, right and top of what labels must stay in.
        obstacles: what they had better not cover: left, bottom, right, top.
        marker: half the width of a point.
    """
    named = [np.asarray(group, dtype=np.float64).reshape(-1, 2) for group in points]
    lines = np.asarray(obstacles, dtype=np.float64).reshape(-1, 4)
    candidates = []
    for i, (group, size) in enumerate(zip(named, sizes, strict=True)):
        others = np.concatenate([np.empty((0, 2)), *named[:i], *named[i + 1 :]])
        candidates.append(_Candidates(group, others, np.asarray(size), frame, lines, marker))
    centres = [tuple(group.mean(axis=0)) for group in named]
    crowd = [sum(math.dist(centre, other) < 70 for other in centres) for centre in centres]
    by_crowd = sorted(range(len(named)), key=lambda i: (-crowd[i], *centres[i]))
    from_left = sorted(range(len(named)), key=lambda i: centres[i])
    results = [_take_turns(candidates, order) for order in (by_crowd, by_crowd[::-1], from_left, from_left[::-1])]
    cost, chosen = min(results, key=lambda result: result[0])
    return [own.place(chosen[i]) for i, own in enumerate(candidates)] if math.isfinite(cost) else None


def _take_turns(candidates: list[_Candidates], order: Sequence[int]) -> tuple[float, dict[int, int]]:
    """Return the cost of the places that labels take in this order (infinite if one finds none), and the places."""
    chosen: dict[int, int] = {}
    costs = dict.fromkeys(order, math.inf)
    for _, i in itertools.product(range(_SWEEPS), order):
        own = candidates[i]
        rest = [(candidates[j], c) for j, c in chosen.items() if j != i]
        labels = own.within_reach(np.array([other.boxes[c] for other, c in rest]).reshape(-1, 4))
        leaders = [other.leaders[c] for other, c in rest if other.has_leader[c]]
        lines = own.within_reach(np.array(leaders).reshape(-1, 4))
        free = ~overlap(own.boxes, np.concatenate([labels, lines])).any(axis=1) & (own.hits(labels) == 0)
        cost = np.where(free, own.price + 60 * own.hits(lines), np.inf)
        chosen.pop(i, None)
        costs[i] = float(cost.min(initial=np.inf))
        if math.isfinite(costs[i]):
            chosen[i] = int(cost.argmin())
    return sum(costs.values()), chosen


def neighbours(points: Sequence[tuple[float, float]], distance: float) -> list[list[int]]:
    """Group points so that all of a group lie within `distance` of each other; each group from left to right."""
    groups: list[list[int]] = []
    for i in sorted(range(len(points)), key=lambda i: (*points[i], i)):
        near = [group for group in groups if all(math.dist(points[i], points[j]) < distance for j in group)]
        if near:
            near[-1].append(i)
        else:
            groups.append([i])
    return groups


def label_points(
    ax: Axes,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    colours: Sequence[str],
    obstacles: Sequence[tuple[float, float, float, float]] = (),
    together: float = 20.0,
) -> bool:
    """Write `texts` beside `points` (data coordinates); return False, with nothing written, if they do not fit.

    Points less than `together` apart share a label: a block of their texts, from the leftmost to the rightmost.
    `obstacles` are lines to keep clear of, from left, bottom to right, top in data coordinates. The axes must have
    their final limits and the figure 72 dots per inch, so that a pixel is a point.
    """
    assert ax.figure.dpi == 72
    spots = [(float(x), float(y)) for x, y in map(ax.transData.transform, points)]
    bars = []
    for left, bottom, right, top in obstacles:
        (x0, y0), (x1, y1) = ax.transData.transform((left, bottom)), ax.transData.transform((right, top))
        bars.append((min(x0, x1) - 2, min(y0, y1) - 2, max(x0, x1) + 2, max(y0, y1) + 2))
    groups = neighbours(spots, together)
    lines = [[text_size(texts[i], LABEL_SIZE) for i in group] for group in groups]
    sizes = [(max(width for width, _ in block) + 4, sum(height for _, height in block) + 2) for block in lines]
    frame = (ax.bbox.x0 + 2, ax.bbox.y0 + 2, ax.bbox.x1 + 14, ax.bbox.y1 - 1)
    places = place([[spots[i] for i in group] for group in groups], sizes, frame, bars)
    if places is None:
        return False
    for group, block, found in zip(groups, lines, places, strict=True):
        first, data = spots[group[0]], points[group[0]]
        y = found.top - 1
        for i, (_, height) in zip(group, block, strict=True):
            offset = (found.left + 2 - first[0], y - first[1])
            style: Style = {"size": LABEL_SIZE, "color": colours[i], "va": "top", "linespacing": 1.15, "zorder": 5}
            ax.annotate(texts[i], data, xytext=offset, textcoords="offset points", annotation_clip=False, **style)
            y -= height
        if found.leader is not None:
            start, end = found.leader
            at = points[next(i for i in group if math.dist(spots[i], start) < 1e-6)]
            arrow = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 5}
            offset = (end[0] - start[0], end[1] - start[1])
            ax.annotate("", at, xytext=offset, textcoords="offset points", arrowprops=arrow, zorder=2)
    return True


def label_ends(ax: Axes, ends: Sequence[tuple[float, float]], texts: Sequence[str], colours: Sequence[str]) -> None:
    """Write `texts` to the right of the panel, each tied to the last point of its line, `ends` (data coordinates)."""
    last = max(x for x, _ in ends)
    pixels = [ax.transData.transform(end) for end in ends]
    heights = [text_size(text, LABEL_SIZE)[1] for text in texts]
    centres = spread_out([y for _, y in pixels], heights, ax.bbox.y0 - 4, ax.bbox.y1 + 4)
    for end, pixel, text, colour, centre in zip(ends, pixels, texts, colours, centres, strict=True):
        offset = (ax.bbox.x1 + GAP - pixel[0], centre - pixel[1])
        arrow: Style = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "relpos": (0, 0.5)}
        arrow |= {"shrinkA": 1, "shrinkB": 5, "linestyle": "-" if end[0] == last else (0, (2, 3))}
        ax.annotate(
            text, end, xytext=offset, textcoords="offset points", ha="left", va="center", size=LABEL_SIZE,
            color=colour, arrowprops=arrow, annotation_clip=False, linespacing=1.15,
        )  # fmt: skip


def spread_out(wanted: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """Return centres as close to `wanted` as they can be without overlaps, in the same order, within [low, high].

    Neighbours that overlap form a block, centred on the mean of what its members want. If there is not enough room
    between `low` and `high`, the labels stand close together, from `low` on upwards.
    """
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    blocks: list[tuple[list[int], float, float]] = []  # members, height, bottom
    for i in order:
        members, height = [i], heights[i]
        bottom = max(low, min(wanted[i] - height / 2, high - height))
        while blocks and blocks[-1][2] + blocks[-1][1] > bottom:
            before, before_height, _ = blocks.pop()
            members, height = before + members, before_height + height
            offset, starts = 0.0, []
            for j in members:
                starts.append(wanted[j] - heights[j] / 2 - offset)
                offset += heights[j]
            bottom = max(low, min(sum(starts) / len(starts), high - height))
        blocks.append((members, height, bottom))
    centres = [0.0] * len(wanted)
    for members, _, bottom in blocks:
        y = bottom
        for i in members:
            centres[i] = y + heights[i] / 2
            y += heights[i]
    return centres
