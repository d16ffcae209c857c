"""The figure of a study of estimators: four panels that show when each of them lies."""

from __future__ import annotations

from matplotlib.axes import Axes

from pdfx.evaluate.figures import PATH_STYLES, finish, render
from pdfx.study.estimators import Row


def draw_study(parts: dict[str, list[Row]]) -> bytes:
    """An SVG."""
    names = list(dict.fromkeys(row["estimator"] for part in ("races", "gradients") for row in parts[part]))

    def look(name: str, theme: dict) -> dict:
        number = names.index(name)
        colours = (theme["text"], *theme["paths"])
        return {"color": colours[number % len(colours)], "linestyle": PATH_STYLES[number % len(PATH_STYLES)]}

    def paint(axes: list[Axes], theme: dict) -> None:
        looks = {name: look(name, theme) for name in names}
        _over_steps(axes[0], parts["estimates"], looks)
        _independent(axes[1], parts["estimates"], looks)
        _gradients(axes[2], parts["gradients"], looks)
        _races(axes[3], parts["races"], looks)

    return render((12, 9), 2, 2, paint, "light")


def _over_steps(axes: Axes, rows: list[Row], looks: dict[str, dict]) -> None:
    """Estimates of the strongest dependence of two Gaussians, over the truth."""
    usual = [row for row in rows if row["learning_rate"] is None and row["bias"] is not None]
    strongest = max((row for row in usual if row["case"].startswith("Gaussian")), key=lambda row: row["truth"])
    chosen = [row for row in usual if row["case"] == strongest["case"] and row["batch"] == strongest["batch"]]
    for name in dict.fromkeys(row["estimator"] for row in chosen):
        own = [row for row in chosen if row["estimator"] == name]
        ratios = [row["mean"] / row["truth"] for row in own]
        axes.plot([row["steps"] for row in own], ratios, marker="o", label=name, **looks[name])
    axes.axhline(1, linewidth=0.8, **{**looks["none"], "linestyle": ":"})
    axes.set_xscale("log")
    axes.set_title(f"{strongest['case']}, D = {strongest['dimension']}: estimate over truth", fontsize=10)
    _finish(axes, "estimate / truth", "steps")


def _independent(axes: Axes, rows: list[Row], looks: dict[str, dict]) -> None:
    """What independent data shows, in nats per dimension, with its error."""
    chosen = [
        row
        for row in rows
        if row["case"].startswith("independent Gaussian") and row["bias"] is not None and row["learning_rate"] is None
    ]
    chosen = [row for row in chosen if row["batch"] == chosen[0]["batch"]]
    for name in dict.fromkeys(row["estimator"] for row in chosen):
        own = [row for row in chosen if row["estimator"] == name]
        errors = [row["error"] for row in own]
        means = [row["mean"] for row in own]
        axes.errorbar([row["steps"] for row in own], means, errors, marker="o", label=name, **looks[name])
    axes.set_xscale("log")
    axes.set_title(f"Independent Gaussians, D = {chosen[0]['dimension']}: the truth is 0", fontsize=10)
    _finish(axes, "nats per dimension", "steps")


def _gradients(axes: Axes, rows: list[Row], looks: dict[str, dict]) -> None:
    """Bars: share of the best fall of the true information that a step down a term's gradient reaches."""
    settings = list(dict.fromkeys((row["dimension"], row["uneven"]) for row in rows))
    names = list(dict.fromkeys(row["estimator"] for row in rows))
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        own = [row for row in rows if row["estimator"] == name]
        places = [place + number * width for place in range(len(own))]
        axes.bar(places, [row["share"] for row in own], width, label=name, color=looks[name]["color"])
    labels = [f"D = {size}\n{'uneven' if uneven else 'flat'} input" for size, uneven in settings]
    axes.set_xticks([place + 0.4 for place in range(len(settings))], labels)
    axes.set_title("Fall of the true information by one small step", fontsize=10)
    _finish(axes, "share of the best step's", "")


def _races(axes: Axes, rows: list[Row], looks: dict[str, dict]) -> None:
    """R^2 between the paths of a trained encoder at the smallest D, over its learning rate."""
    smallest = min(row["dimension"] for row in rows)
    chosen = [row for row in rows if row["dimension"] == smallest and not row["offset"]]
    for name in dict.fromkeys(row["estimator"] for row in chosen):
        own = [row for row in chosen if row["estimator"] == name]
        axes.plot(
            [row["learning_rate"] for row in own], [row["r2"] for row in own], marker="o", label=name, **looks[name]
        )
    axes.set_xscale("log")
    axes.set_title(f"Two linear encoders after training, D = {smallest}", fontsize=10)
    _finish(axes, "held-out R² between the paths", "learning rate of the encoder")


def _finish(axes: Axes, y_label: str, x_label: str) -> None:
    finish(axes, y_label, x_label)
    axes.legend(frameon=False, ncols=2, fontsize=8)
