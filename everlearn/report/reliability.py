"""The reliability diagram: how often the answers of a given probability are right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everlearn.formats import percent
from everlearn.report.figures import ACCENT, INK, Axes, legend, short, ticks
from everlearn.report.markup import Html, figure, join, tag


def reliability(calibration: Mapping[str, Any]) -> Html:
    """The diagram of the entry `calibration` of results.json, and its expected calibration error.

    The wider the distance of a column from the diagonal, the less its probabilities can be taken at their word; the
    darker it is, the more test examples it holds.
    """
    bins = calibration["bins"]
    axes, total = Axes((0, 100), (0, 100)), sum(bin["examples"] for bin in bins) or 1
    most, columns = max(bin["examples"] for bin in bins) or 1, []
    for i, bin in enumerate(bins):
        if not bin["examples"]:
            continue
        low, high = (axes.x(100 * edge / len(bins)) for edge in (i, i + 1))
        top, base = axes.y(100 * bin["accuracy"]), axes.y(0)
        told = (f"probability {percent(bin['confidence'])} %, right {percent(bin['accuracy'])} %, "
                f"{bin['examples']:,} examples ({percent(bin['examples'] / total)} %)")  # fmt: skip
        columns.append(tag("rect", tag("title", told), x=low + 1, y=top, width=high - low - 2, height=base - top,
                           fill=ACCENT, fill_opacity=0.25 + 0.75 * bin["examples"] / most))  # fmt: skip
    ideal = tag("line", x1=axes.x(0), x2=axes.x(100), y1=axes.y(0), y2=axes.y(100), stroke=INK, stroke_dasharray="5 4")
    x_labels = [(value, short(value)) for value in ticks(0, 100)]
    label = "Share of right answers by the probability that was given"
    chart = axes.chart(label, "probability of the answer, %", "right, %", x_labels, *columns, ideal)
    error, plain = (percent(calibration[name]) for name in ("expected_calibration_error", "without_temperature"))
    temperature = calibration["temperature"]
    how = "There were too few examples to fit a temperature, so these are the probabilities of a plain softmax."
    if temperature:
        how = (f"Probabilities are softmax(scores / {temperature:.4g}); the temperature was fitted on "
               f"{calibration['fitted_on']:,} examples that were not learned then, and none of them is a test "
               f"example. With a plain softmax the error would be {plain} %.")  # fmt: skip
    return join(
        tag("p", tag("strong", f"Expected calibration error: {error} %"), ", the mean distance between probability and "
            "share of right answers over 15 intervals, on the tests of all tasks. ", how),
        figure("reliability", label, chart, legend([("box", ACCENT, "right answers"), ("line", INK, "ideal")])),
    )  # fmt: skip
