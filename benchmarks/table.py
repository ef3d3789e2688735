"""The rows as JSON and as the table of docs/performance.md."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.ceiling import COMPUTED
from benchmarks.harness import SIDES, SPREAD, Workload

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "docs" / "results" / "performance.json"
PAGE = ROOT / "docs" / "performance.md"
GROUPS = {
    "data": "Data",
    "training": "Training",
    "evaluation": "Evaluation",
    "federation": "Federation",
    "start": "Start-up",
}
MEGA, GIGA = 1e6, 1e9
MET = {True: "met", False: "**missed**", None: "not measured"}
UNITS = {
    "ratio": (1, " times"),
    "bf16": (1, " times"),
    "rate": (1, "/s"),
    "amount": (1, " s"),
    "overhead": (100, " %"),
    "share": (1, " times"),
    "peak": (1 / GIGA, " GB"),
}


def read(path: Path = RECORD) -> dict[str, Any]:
    """{"rows": {name: row}, "profiles": {name: profile}}, empty where there is no record yet."""
    return json.loads(path.read_text()) if path.exists() else nothing()


def nothing() -> dict[str, Any]:
    """A record without rows."""
    return {"rows": {}, "profiles": {}}


def write(found: Mapping[str, Any], path: Path) -> None:
    """Replace the record as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".partial")
    part.write_text(json.dumps(found, indent=1) + "\n")
    part.replace(path)


def row(workload: Workload, found: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """The row of the record: what was done, what was measured, and how."""
    about = {name: getattr(workload, name) for name in ("group", "title", "against", "unit", "value")}
    return about | dict(found) | {"made": dict(made)}


def judge(found: dict[str, Any], workloads: Mapping[str, Workload]) -> None:
    """Set every row's goals beside what was measured; rows that are measured no more go."""
    found["rows"] = {name: one for name, one in found["rows"].items() if name in workloads}
    for name, one in found["rows"].items():
        one["goals"] = [
            {
                "text": goal.text,
                "size": goal.size or one["points"][0]["size"],
                "measure": goal.measure,
                "measured": goal.of(one),
                "met": goal.met(one),
            }
            for goal in workloads[name].goals
        ]


def markdown(found: Mapping[str, Any], order: Iterable[str]) -> str:
    """All goals, the table by groups, how rows grow, how far they are from the machine's limit, and the profiles."""
    rows = {name: found["rows"][name] for name in order if name in found["rows"]}
    lines = []
    aimed = {name: one for name, one in rows.items() if one["goals"]}
    if aimed:
        lines += ["### Goals", "", *_goals(aimed), ""]
    for group, title in GROUPS.items():
        inside = {name: one for name, one in rows.items() if one["group"] == group}
        if inside:
            lines += [f"### {title}", "", *_table(inside), ""]
    growing = {name: one for name, one in rows.items() if len(one["points"]) > 1}
    if growing:
        lines += ["### How each grows", "", *_growth(growing), ""]
    limited = {name: one for name, one in rows.items() if "limit" in one}
    if limited:
        lines += ["### How far from the machine's limit", "", *_limits(limited), ""]
    for profile in found["profiles"].values():
        lines += [f"### Where the time goes: {profile['title']}", "", *_profile(profile), ""]
    return "\n".join(lines)


def _goals(rows: Mapping[str, Any]) -> list[str]:
    lines = ["| goal | row | measured | |", "|---|---|---|---|"]
    for name, one in rows.items():
        for goal in one["goals"]:
            cells = [
                goal["text"],
                f"`{name}`, {goal['size']:,} {one['unit']}",
                ", ".join([measure(goal), *_loaded(one["made"])]),
                MET[goal["met"]],
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _table(rows: Mapping[str, Any]) -> list[str]:
    sides = "ours | spread, ours / plain | plain | times as fast | bf16 | GPU | peak MB, ours / plain"
    lines = [f"| row | work | {sides} | made |", "|---|---|---|---|---|---|---|---|---|---|"]
    return lines + [_line(name, one) for name, one in rows.items()]


def _line(name: str, one: Mapping[str, Any]) -> str:
    point, ratio = one["points"][0], ""
    work = f"{point['size']:,} {one['unit']}: {one['title']}"
    if "plain" in point:
        work += f"; plain: {one['against']}"
        ratio = f"**{figure(point['plain'] / point['ours'])}**" + (" *" if point["plain_share"] < 1 else "")
    cells = [
        f"`{name}`",
        work,
        shown(point["ours"], one),
        _spread(point),
        shown(point["plain"], one) if "plain" in point else "",
        ratio,
        _half(point, one),
        _gpu(point, one),
        " / ".join(megabytes(point[f"{side}_peak"]) for side in SIDES if f"{side}_peak" in point),
        *(_loaded(one["made"]) or [""]),
    ]
    return f"| {' | '.join(cells)} |"


def _spread(point: Mapping[str, Any]) -> str:
    """Of ours, and of plain since it is written down; empty for a single call."""
    told = [f"{100 * point[name]:.0f} %" for name in SPREAD.values() if name in point]
    return f"{' / '.join(told)} of {point['rounds']}" if point["rounds"] > 1 else ""


def _half(point: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    """Ours in bf16, times as fast as plain in float32 and as ours in float32; empty where it was not measured."""
    if "ours_bf16" not in point:
        return ""
    plain, ours = (figure(point[side] / point["ours_bf16"]) for side in ("plain", "ours"))
    return f"{shown(point['ours_bf16'], one)}, {plain} ({ours} of ours)"


def _gpu(point: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    """Ours in each precision, times as fast as plain in float32 there too, and the peaks; empty without a GPU."""
    told, plain = [], point.get("plain_gpu_fp32")
    for precision in ("fp32", "bf16"):
        ours = point.get(f"ours_gpu_{precision}")
        if ours:
            told.append(f"{precision} {shown(ours, one)}" + (f", {figure(plain / ours)}" if plain else ""))
    if plain:
        told.append(f"plain {shown(plain, one)}")
    peaks = [megabytes(point[f"{side}_gpu_peak"]) for side in SIDES if f"{side}_gpu_peak" in point]
    return "; ".join(told + ([f"peak MB {' / '.join(peaks)}"] if peaks else []))


def _loaded(made: Mapping[str, Any]) -> list[str]:
    """Said of rows made while others wanted the cores too: their ratios hold, their seconds do not."""
    return [f"**on a busy machine** (load {made['load']:.1f})"] if made["load"] > 1 else []


def _growth(rows: Mapping[str, Any]) -> list[str]:
    lines = ["| row | size: ours, plain (peak MB ours, plain) |", "|---|---|"]
    for name, one in rows.items():
        points = []
        for point in sorted(one["points"], key=lambda point: point["size"]):
            times = ", ".join(shown(point[side], one) for side in SIDES if side in point)
            peaks = [megabytes(point[f"{side}_peak"]) for side in SIDES if f"{side}_peak" in point]
            points.append(f"{point['size']:,}: {times}" + (f" ({', '.join(peaks)})" if peaks else ""))
        lines.append(f"| `{name}`, {one['unit']} | {'<br>'.join(points)} |")
    return lines


def _limits(rows: Mapping[str, Any]) -> list[str]:
    head = "| row | computed in | GFLOP of products, ours / plain | peak, GFLOP/s | least | ours | share of the peak |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for name, one in rows.items():
        flops, point = one["limit"]["flops"], one["points"][0]
        for side, peak in one["limit"]["peaks"].items():
            if side not in point:
                continue
            least, (device, precision) = flops / peak, COMPUTED[side]
            cells = [
                f"`{name}`",
                precision if device == "cpu" else f"{precision}, GPU",
                f"{figure(flops / GIGA)} / {figure(one['limit']['plain_flops'] / GIGA)}",
                figure(peak / GIGA),
                shown(least, one),
                shown(point[side], one),
                ", ".join([f"{100 * least / point[side]:.0f} %", *_loaded(one["made"])]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _profile(profile: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{profile['seconds']:.2f} s under the profiler.",
        "",
        "| operator | share of the time | calls |",
        "|---|---|---|",
    ]
    return lines + [
        f"| `{one['name']}` | {100 * one['share']:.1f} % | {one['calls']} |" for one in profile["operators"]
    ]


def shown(amount: float, one: Mapping[str, Any]) -> str:
    """Seconds in a fitting unit, or megabytes."""
    if one["value"] == "bytes":
        return f"{megabytes(amount)} MB"
    return f"{figure(amount)} s" if amount >= 1 else f"{figure(1e3 * amount)} ms"


def megabytes(amount: float | None) -> str:
    return "–" if amount is None else figure(amount / MEGA)


def measure(goal: Mapping[str, Any]) -> str:
    """What a goal measures, in its own words; empty where that was not measured."""
    scale, unit = UNITS[goal["measure"]]
    return "" if goal["measured"] is None else f"{figure(scale * goal['measured'])}{unit}"


def figure(value: float) -> str:
    """A number to three digits, without an exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def place(text: str, page: Path) -> None:
    """Put the table between the marks of the page."""
    whole = page.read_text()
    marked = re.compile(r"(<!-- table -->\n).*?(<!-- /table -->)", re.DOTALL)
    if not marked.search(whole):
        raise ValueError(f"{page}: expected <!-- table --> and <!-- /table -->, found none")
    page.write_text(marked.sub(lambda found: f"{found[1]}{text}{found[2]}", whole))
