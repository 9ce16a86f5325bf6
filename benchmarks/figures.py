"""Figures of docs/theory.md that show data: docs/digits.svg and docs/quiet.svg.

``python -m benchmarks.figures [--write]``.  What is drawn is computed: the digit errors of all
65 536 digits after one step in float32, and one step of torch.optim.Adam for gradients of every
size.  ``tests/test_docs.py`` draws them again and compares.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from gdu_compile.digits import CODES, DEFAULT_GAIN, DigitCode, Float64
from gdu_compile.emit_code import calibrator_signal

DOCS = Path(__file__).resolve().parent.parent / "docs"
BLUE, ORANGE, GREEN, RED = "#4a6fa5", "#c77d2e", "#3c8d53", "#b02a37"
DARK_BLUE, DARK_ORANGE, DARK_GREEN = "#1d3557", "#7a4100", "#1c5c31"
EPS = 1e-8
"""Adam's ε."""
RATES, KAPPAS = (1e-4, 0.013, 0.3, 37.0), (-0.41, -0.9, 0.017)


def figure(height: int, parts: Sequence[str]) -> str:
    """An SVG file, 880 wide, in the style of the others in docs/."""
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 {height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="14">',
        "  <defs>",
        '    <marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        'markerHeight="7" orient="auto-start-reverse">',
        '      <path d="M0 0 L10 5 L0 10 z" fill="#444"/>',
        "    </marker>",
        "  </defs>",
        f'  <rect width="880" height="{height}" fill="#ffffff"/>',
        *(f"  {part}" for part in parts),
        "</svg>",
        "",
    ])  # fmt: skip


def text(x: float, y: float, words: str, fill: str = "#222", size: int = 12, **more: str) -> str:
    """A line of text; further attributes by name, ``anchor`` for text-anchor."""
    anchor = f' text-anchor="{more["anchor"]}"' if "anchor" in more else ""
    weight = f' font-weight="{more["weight"]}"' if "weight" in more else ""
    return (f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{fill}"{anchor}{weight}>'
            f"{words}</text>")  # fmt: skip


def line(path: str, stroke: str, width: float = 1.0, more: str = "") -> str:
    """A path without filling."""
    return f'<path d="{path}" fill="none" stroke="{stroke}" stroke-width="{width:g}"{more}/>'


def dot(x: float, y: float, fill: str, radius: float = 1.5) -> str:
    """A point."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{fill}"/>'


# --- digits.svg ---------------------------------------------------------------


def errors_after_one_step(code: DigitCode) -> Float64:
    """The largest digit error of every digit of a code after one step of SGD in float32, [2^k]."""
    digits = np.arange(code.top + 1)
    half = np.float32(calibrator_signal(code))
    signals = np.append(np.float32(1), code.signal(digits)) * half
    found = np.zeros(len(digits))
    for lr in RATES:
        for kappa in KAPPAS:
            gradient = np.float32(DEFAULT_GAIN * kappa)
            theta = -np.float32(lr) * (gradient * signals)  # what graph and optimizer round
            ratio = code.ratio(theta[:, None], DEFAULT_GAIN)[:, 0]
            found = np.maximum(found, code.errors(ratio, digits))
    return found


def number_line() -> list[str]:
    """The four signals of 2-bit digits, their cells, and one ratio with its digit error."""
    code, parts = CODES["linear2"], []

    def x(s: float) -> float:
        return 440 + 92 * s

    for q in range(code.top + 1):
        s = float(code.signal(np.array([q]))[0])
        left = x(s - 1) if q else x(-4.3)
        right = x(s + 1) if q < code.top else x(4.3)
        fill = "#eef3fb" if q % 2 else "#fdf1e3"
        parts.append(f'<rect x="{left:g}" y="62" width="{right - left:g}" height="44" '
                     f'fill="{fill}"/>')  # fmt: skip
        parts.append(text(x(s), 56, f"q = {q}", DARK_BLUE, anchor="middle"))
        parts.append(text(x(s), 124, f"s = {s:+.0f}".replace("-", "−"), anchor="middle"))
        parts.append(dot(x(s), 84, BLUE, 5))
    parts.append(line(f"M{x(-4.3):g} 84 H{x(4.3):g}", "#444", 1, ' marker-end="url(#arrow)"'))
    for border in (-2, 0, 2):
        parts.append(line(f"M{x(border):g} 62 V106", "#888", 1, ' stroke-dasharray="4 3"'))
        parts.append(text(x(border), 124, f"{border}".replace("-", "−"), "#888", anchor="middle"))
    ratio = 2.62
    parts += [
        dot(x(ratio), 84, RED, 5),
        text(x(ratio) - 4, 144, "r = θ/c", RED, anchor="middle"),
        line(f"M{x(ratio):g} 131 V92", RED, 1),
        line(f"M{x(ratio):g} 76 V70 H{x(3):g} V76", RED, 1.5),
        text(x(3) + 8, 74, "digit error |r − s|", RED, 11),
        text(x(1), 144, "the calibrator's signal", DARK_GREEN, 11, anchor="middle"),
    ]
    return parts


def panel(
    code: DigitCode, left: float, place: Callable[[Float64], Float64], count: int,
    ticks: Sequence[tuple[float, str]], title: str, below: str,
) -> list[str]:  # fmt: skip
    """Digit error over signal for all digits of a code: the largest of each of ``count`` bins."""
    width, top, bottom = 360.0, 200.0, 330.0
    digits = np.arange(code.top + 1)
    signals = code.signal(digits).astype(np.float64)
    errors, bound = errors_after_one_step(code), code.digit_error_bound(0)
    where = place(signals)  # 0 … 1
    bins = np.minimum((where * count).astype(int), count - 1)

    def y(error: float) -> float:
        return bottom - error / bound * (bottom - top - 12)

    parts = [
        text(left, 188, title, DARK_BLUE, 13, weight="bold"),
        line(f"M{left:g} {top:g} V{bottom:g} H{left + width:g}", "#444"),
        text(left - 6, bottom + 4, "0", anchor="end", size=11),
        text(left - 6, y(bound) + 4, f"{bound:.3g}", anchor="end", size=11),
        text(left + width / 2, bottom + 36, below, size=11, anchor="middle"),
    ]
    for at, label in ticks:
        parts.append(text(left + at * width, bottom + 17, label, size=11, anchor="middle"))
    limit = code.errors((signals * (1 + 4 * 2.0**-24)).astype(np.float64), digits)  # δ = 4u
    edge = [(b, float(limit[bins == b].max())) for b in range(count) if (bins == b).any()]
    path = " L".join(f"{left + (b + 0.5) / count * width:.1f} {y(e):.1f}" for b, e in edge)
    parts.append(line(f"M{path}", ORANGE, 1.5))
    for b, _ in edge:
        largest = float(errors[bins == b].max())
        parts.append(dot(left + (b + 0.5) / count * width, y(largest), BLUE))
    return parts


def digits_figure() -> str:
    """Signals and cells; digit errors of the two codes of 16 bits after one step."""
    linear, like = CODES["linear16"], CODES["float16"]
    return figure(392, [
        text(20, 28, "Digits as signals on a line (2 bits: M = 3)", size=16, weight="bold"),
        *number_line(),
        line("M20 160 H860", "#ccc"),
        *panel(linear, 70, lambda s: (s + linear.largest_signal) / (2 * linear.largest_signal),
               64, [(0, "−65535"), (0.5, "0"), (1, "65535")], "linear16 after one step of SGD",
               "signal s"),
        *panel(like, 500, lambda s: np.log2(np.abs(s)) / 32, 32,
               [(0, "1"), (0.25, "2⁸"), (0.5, "2¹⁶"), (0.75, "2²⁴"), (1, "2³²")],
               "float16 after one step of SGD", "|signal|"),
        text(440, 384, "dots: the largest digit error of neighbouring digits, 4 rates and 3 κ; "
             "line: the bound for δ = 4u (Lemma 2); a digit flips at 1", "#555", anchor="middle"),
    ])  # fmt: skip


# --- quiet.svg ----------------------------------------------------------------


def first_update(gradient: float) -> float:
    """|θ| after one step of torch.optim.Adam at rate 1 from 0, in float64."""
    theta = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.Adam([theta], lr=1.0, eps=EPS)
    theta.grad = torch.tensor([gradient], dtype=torch.float64)
    optimizer.step()
    return abs(theta.item())


def quiet_figure() -> str:
    """|update| over |gradient|, both logarithmic: slope 1 far below ε, flat far above it."""
    low, high, bottom = -28.0, 6.0, -20.0

    def x(exponent: float) -> float:
        return 90 + (exponent - low) / (high - low) * 740

    def y(exponent: float) -> float:
        return 300 - (exponent - bottom) / (1 - bottom) * 250

    eps = math.log10(EPS)
    parts = [text(20, 28, "What Adam makes of a gradient g: |update| / η = |g| / (|g| + ε)",
                  size=16, weight="bold")]  # fmt: skip
    quiet = (math.log10(DEFAULT_GAIN * 2.0**-1 * 1e-3), math.log10(DEFAULT_GAIN * 2.0**15))
    loud = (math.log10(0.5 * 1e-3), math.log10(2.0**15))
    for (left, right), fill in ((quiet, "#e9f5ec"), (loud, "#fdf1e3")):
        parts.append(f'<rect x="{x(left):.1f}" y="50" width="{x(right) - x(left):.1f}" '
                     f'height="250" fill="{fill}"/>')  # fmt: skip
    parts += [
        line("M90 50 V300 H836", "#444"),
        line(f"M{x(eps):.1f} 50 V300", RED, 1, ' stroke-dasharray="4 3"'),
        text(x(eps) + 6, 290, "|g| = ε", RED),
        text(x(sum(quiet) / 2), 78, "γ = 2⁻⁸⁰", DARK_GREEN, anchor="middle"),
        text(x(sum(quiet) / 2), 95, "the recorder's gradients", DARK_GREEN, 11, anchor="middle"),
        text(x(sum(quiet) / 2), 109, "(linear16, |κ| ≥ 10⁻³)", DARK_GREEN, 11, anchor="middle"),
        text(x(1.0), 150, "γ = 1", DARK_ORANGE, anchor="middle"),
        text(x(1.0), 167, "every digit gets", DARK_ORANGE, 11, anchor="middle"),
        text(x(1.0), 181, "the same update", DARK_ORANGE, 11, anchor="middle"),
        text(x(-14.6), 214, "slope 1: update = g/ε,", DARK_BLUE, 12),
        text(x(-14.6), 230, "the ratios stay", DARK_BLUE, 12),
    ]
    for exponent in range(-28, 7, 4):
        parts.append(text(x(exponent), 318, power(exponent), size=11, anchor="middle"))
    for exponent in range(-20, 1, 4):
        parts.append(text(84, y(exponent) + 4, power(exponent), size=11, anchor="end"))
    grid = np.arange(low, high + 0.01, 0.25)
    curve = [(x(e), y(math.log10(10**e / (10**e + EPS)))) for e in grid]
    parts.append(line("M" + " L".join(f"{a:.1f} {b:.1f}" for a, b in curve), ORANGE, 1.5))
    for e in np.arange(low, high + 0.01, 1.0):
        parts.append(dot(x(e), y(math.log10(first_update(10.0**e))), BLUE, 3))
    parts.append(text(460, 342, "|g|; dots: one step of torch.optim.Adam, ε = 10⁻⁸; line: the "
                      "formula; both axes logarithmic", "#555", anchor="middle"))  # fmt: skip
    return figure(354, parts)


def power(exponent: int) -> str:
    """10^e with raised digits."""
    raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    return "10" + str(exponent).translate(raised)


FIGURES: dict[str, Callable[[], str]] = {
    "digits.svg": digits_figure,
    "quiet.svg": quiet_figure,
}


def main() -> None:
    """Draw them; with --write into docs/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="replace the files in docs/")
    write = parser.parse_args().write
    for name, draw in FIGURES.items():
        drawn = draw()
        if write:
            (DOCS / name).write_text(drawn, encoding="utf-8")
        print(f"{name}: {len(drawn)} bytes{', written' if write else ''}")


if __name__ == "__main__":
    main()
