"""Resident memory of a federation of the tiny model, round by round: does the server keep anything?

python -m benchmarks.memory [--rounds 50] [--clients 50] [--out docs/results/fedmllm/cost]   writes FILE.json, FILE.png
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from matplotlib.figure import Figure

from benchmarks.harness import resident
from benchmarks.workloads.federation import federation
from lightning_modules.mllm.loading import Lora
from tracking.identity import commit

MB = 1 << 20


def by_round(rounds: int, clients: int, folder: Path, rank: int = Lora.rank) -> list[float]:
    """Resident memory (MB) after each of so many rounds of FedAdam with all clients, ledger included; on one thread."""
    torch.set_num_threads(1)
    _, _, orchestrator = federation(folder, clients, rounds, rank)
    found: list[float] = []
    orchestrator.run(lambda record: found.append(resident() / MB))
    return found


def plot(memory: list[float], clients: int, path: Path) -> None:
    """The curve from zero, as a PNG file."""
    figure = Figure(figsize=(6, 3), layout="tight")
    axes = figure.subplots()
    axes.plot(range(1, len(memory) + 1), memory)
    axes.set(xlabel="round", ylabel="resident memory, MB", ylim=(0, None))
    axes.set_title(f"{clients} clients a round, tiny model, one process")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("docs/results/fedmllm/cost"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        memory = by_round(asked.rounds, asked.clients, Path(folder))
    command = f"python -m benchmarks.memory --rounds {asked.rounds} --clients {asked.clients}"
    told = {"command": command, "commit": commit(), "rounds": asked.rounds, "clients": asked.clients}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.with_suffix(".json").write_text(json.dumps({**told, "memory_mb": memory}, indent=1) + "\n")
    plot(memory, asked.clients, asked.out.with_suffix(".png"))
    print(f"{memory[0]:.1f} MB after the first round, {memory[-1]:.1f} after the last, {max(memory):.1f} at most")


if __name__ == "__main__":
    main()
