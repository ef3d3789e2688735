"""What a federation's rounds measured, as the curves of a record."""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping


def curves(rounds: list[dict]) -> dict[str, list[list[float]]]:
    """Name -> [[round, value], ...], rounds counted from 1: metrics of every model and of every client, how far each
    client drifted, bytes, drop-outs and the gap of averaged LoRA factors. "train/loss @ client 3" is that of client 3;
    without a name after @ it is the federation's own. Values that are not finite are left out.
    """
    found: dict[str, list[list[float]]] = defaultdict(list)
    for record in rounds:
        for name, value in values(record).items():
            if math.isfinite(value):
                found[name].append([record["round"] + 1, float(value)])
    return dict(found)


def values(record: dict) -> dict[str, float]:
    """What one round measured, by the names of `curves`."""
    failed = [outcome for outcome in record["outcomes"] if "error" in outcome]
    values = (
        client_means(record)
        | record["metrics"]
        | {
            "failed clients": len(failed),
            "bytes up": record["bytes_up"],
            "bytes down": record["bytes_down"],
        }
    )
    if record["lora_gap"] is not None:
        values["LoRA gap"] = record["lora_gap"]
    for model, metrics in record["by_model"].items():
        if len(record["by_model"]) > 1:  # of one model alone they are the federation's own
            values |= {f"{name} @ {model}": value for name, value in metrics.items()}
    for outcome in record["outcomes"]:
        for name, value in client_values(outcome).items():
            values[f"{name} @ client {outcome['client']}"] = value
    return values


def client_values(outcome: dict) -> dict[str, float]:
    """What one client measured in a round, empty if it failed; `adapter drift`: how far it went from where it began."""
    drift = {"adapter drift": outcome["drift"]} if "drift" in outcome else {}
    return outcome.get("metrics", {}) | drift


def unmeasured(curves: Mapping[str, list[list[float]]], metrics: Collection[str], rounds: int, every: int) -> list[int]:
    """Rounds before the last that were to be measured, `every` so many of them (0: none), and are in no curve.

    metrics: names of what was measured after the last. Those whose names begin with train/ are of the clients, who
    report in every round; a federation that measures nothing else lacks nothing.
    """
    measured = [name for name in curves if name in metrics and not name.startswith("train/")]
    if every == 0 or (curves and not measured):
        return []
    there = {point for name in measured for point, _ in curves[name]}
    return [number for number in range(every, rounds, every) if number not in there]


def client_means(record: dict) -> dict[str, float]:
    """Means of what the clients of a round measured, by their samples; empty where none came back."""
    back = [outcome for outcome in record["outcomes"] if "error" not in outcome]
    samples = sum(outcome["num_samples"] for outcome in back)
    measured = [client_values(outcome) for outcome in back]
    names = dict.fromkeys(name for values in measured for name in values)
    weighted = [(outcome["num_samples"], values) for outcome, values in zip(back, measured, strict=True)]
    everywhere = [name for name in names if all(name in values for values in measured)]
    return {name: sum(weight * values[name] for weight, values in weighted) / samples for name in everywhere}
