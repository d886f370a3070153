"""Scores, counts, bytes and durations as people read them."""

from __future__ import annotations

from everlearn.metrics.intervals import Interval


def percent(value: float | None) -> str:
    """A score in percent with one decimal; "-" if it is not defined.

    >>> percent(0.9734), percent(-0.0001)
    ('97.3', '0.0')
    """
    return "-" if value is None else f"{round(100 * value, 1) + 0.0:.1f}"  # no minus sign before a zero


def ranged(value: Interval | None) -> str:
    """A mean in percent, with half the width of its interval where several seeds give one.

    >>> ranged(Interval(0.9512, 0.0049)), ranged(Interval(0.9512, None)), ranged(None)
    ('95.1 ± 0.5', '95.1', '-')
    """
    if value is None or value.half is None:
        return percent(value.mean if value else None)
    return f"{percent(value.mean)} ± {percent(value.half)}"


def short_count(n: int) -> str:
    """A count in a short form.

    >>> short_count(1_234_567)
    '1.2M'
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.1f}{unit}"
    return str(n)


def human_bytes(n: float) -> str:
    """A number of bytes in the largest unit that fits; the units are powers of 1024.

    >>> human_bytes(3 * 1024**2)
    '3.0 MiB'
    """
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n:.0f} B"


def duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours.

    >>> duration(75), duration(7300)
    ('1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
