"""What a federation of the tiny model costs beside its training: memory by round, client switch, aggregation, overhead.

python benchmarks/federation.py [--rounds 50] [--clients 50] [--out docs/results/fedmllm/cost]
writes FILE.json and, with the memory of every round, FILE.png.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from datamodules.image_text.modality import Missing
from datamodules.image_text.module import ImageTextDataModule
from datamodules.image_text.prompts import Prompts
from datamodules.image_text.readers.hateful_memes import HatefulMemes
from datamodules.miniature.memes import write_memes
from datamodules.miniature.picture_questions import vocabulary_texts
from datamodules.partition import IID
from federated.adapter import Adapter
from federated.client import Client
from federated.engines.in_process import InProcess
from federated.ledger import Ledger
from federated.orchestrator import Orchestrator
from federated.state import State, num_bytes
from federated.strategies.fedadam import FedAdam
from federated.strategies.fold import OrderedMean
from lightning_modules.mllm import tiny_model
from lightning_modules.mllm.families.tiny import Tiny
from lightning_modules.mllm.loading import Lora
from lightning_modules.mllm.module import MultimodalModule

MEMES_A_CLIENT = 1
MB = 1 << 20
PROMPTS = Prompts(text="meme : {text}", question="harmful ?", joint=" ", answer="{name}", names=("no", "yes"))


def resident() -> float:
    """Megabytes of memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MB


def made(folder: Path, clients: int) -> tuple[MultimodalModule, ImageTextDataModule]:
    """The tiny model at its full size, weights random, and memes shared out in equal parts."""
    size = tiny_model.Size()
    words = tiny_model.tokenizer(vocabulary_texts(), size.vocabulary)
    tiny_model.save(folder / "model", tiny_model.model(words, size, 0), tiny_model.processor(words, size))
    family = Tiny(source=str(folder / "model"))
    optimizer = lambda parameters: torch.optim.AdamW(parameters, 1e-3)  # noqa: E731
    module = MultimodalModule(family, optimizer, seed=1, lora=Lora(dropout=0.0), cache_features=True)
    write_memes(folder / "memes", train=4 * math.ceil(MEMES_A_CLIENT * clients / 4), dev=4, test=4)
    corpus = HatefulMemes().read(folder / "memes")
    partition, scenario = IID(clients), Missing(0.3)
    data = ImageTextDataModule(corpus, PROMPTS, partition, scenario, module.encoder, MEMES_A_CLIENT, seed=1)
    return module, data


def milliseconds(call, repeats: int) -> float:
    """Median of `repeats` calls."""
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return 1e3 * statistics.median(took)


def variants(state: State, number: int) -> list[State]:
    """States of so many clients."""
    source = torch.Generator().manual_seed(3)
    return [
        {name: tensor + 0.01 * torch.randn(tensor.shape, generator=source) for name, tensor in state.items()}
        for _ in range(number)
    ]


def aggregation(state: State, clients: int) -> float:
    """Milliseconds of folding the states of so many clients into their weighted mean."""
    states = variants(state, clients)

    def fold() -> None:
        mean = OrderedMean(range(clients))
        for client, given in enumerate(states):
            mean.add(client, given, 1 + client)
        mean.result()

    return milliseconds(fold, 10)


def plain_steps(module: MultimodalModule, data: ImageTextDataModule, clients: int) -> float:
    """Seconds of the same optimiser steps in a bare loop: no trainer, no exchange."""
    start = time.perf_counter()
    for client in range(clients):
        optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], 1e-3)
        for batch in data.train_dataloader(client, 0):
            logits, tokens = module.answer_logits(batch)
            torch.nn.functional.cross_entropy(logits, tokens).backward()
            optimizer.step()
            optimizer.zero_grad()
    return time.perf_counter() - start


def measure(rounds: int, clients: int, folder: Path) -> dict:
    """Everything, on one thread."""
    torch.set_num_threads(1)
    module, data = made(folder, clients)
    adapter = Adapter(module)
    start = adapter.extract()
    switched = variants(start, 2)
    turn = iter(range(10**9))
    switch = milliseconds(lambda: adapter.load(switched[next(turn) % 2]), 200)
    extract = milliseconds(adapter.extract, 200)
    aggregate = aggregation(start, 100)
    adapter.load(start)
    orchestrator = Orchestrator(
        module, adapter, InProcess(Client(module, adapter, data, device="cpu")), FedAdam(eta=1e-3),
        clients=clients, rounds=rounds, seed=1, ledger=Ledger(folder / "ledger.safetensors", "benchmark"),
    )  # fmt: skip
    memory = []
    result = orchestrator.run(lambda record: memory.append(resident()))
    own = [sum(outcome["seconds"] for outcome in record["outcomes"]) for record in result.records]
    whole = [record["seconds"] for record in result.records]
    bare = statistics.median(plain_steps(module, data, clients) for _ in range(3))
    half = len(memory) // 2
    return {
        "rounds": rounds,
        "clients": clients,
        "adapter_bytes": num_bytes(start),
        "client_switch_ms": switch,
        "extract_ms": extract,
        "aggregate_100_ms": aggregate,
        "round_s": statistics.median(whole),
        "clients_of_a_round_s": statistics.median(own),
        "server_share_of_a_round": 1 - statistics.median(own) / statistics.median(whole),
        "same_steps_bare_s": bare,
        "client_overhead_ms": 1e3 * (statistics.median(own) - bare) / clients,
        "memory_mb": memory,
        "memory_second_half_growth_mb": max(memory[half:]) - memory[half],
        "threads": 1,
    }


def plot(found: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3))
    axes.plot(range(1, len(found["memory_mb"]) + 1), found["memory_mb"])
    axes.set(xlabel="round", ylabel="resident memory, MB", ylim=(0, None))
    axes.set_title(f"{found['clients']} clients a round, tiny model, one process")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--out", type=Path, help="write FILE.json and FILE.png")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments.rounds, arguments.clients, Path(folder))
    for name, value in found.items():
        if not isinstance(value, list):
            print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        command = f"python benchmarks/federation.py --rounds {arguments.rounds} --clients {arguments.clients}"
        told = {"command": f"{command} --out {arguments.out}", **found}
        arguments.out.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")
        plot(found, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
