"""What a federation of the tiny multimodal model costs beside its training: switch, folding, round, one client."""

import math
from functools import partial
from pathlib import Path

import torch

from benchmarks.harness import Case, Goal, Setting, Workload
from benchmarks.plain import server
from datamodules.image_text.modality import Missing
from datamodules.image_text.module import ImageTextDataModule
from datamodules.image_text.prompts import Prompts
from datamodules.image_text.readers.hateful_memes import HatefulMemes
from datamodules.miniature.memes import write_memes
from datamodules.miniature.picture_questions import vocabulary_texts
from datamodules.partition import IID
from federated.adapter import Adapter, canonical
from federated.client import Client, ClientTask, ClientUpdate
from federated.engines.in_process import InProcess
from federated.ledger import Ledger
from federated.orchestrator import Orchestrator
from federated.seeding import seed_of
from federated.state import State, num_bytes
from federated.strategies.fedadam import FedAdam
from federated.strategies.fold import OrderedMean
from lightning_modules.mllm import tiny_model
from lightning_modules.mllm.families.tiny import Tiny
from lightning_modules.mllm.loading import Lora
from lightning_modules.mllm.module import MultimodalModule
from lightning_modules.schedules import WarmedCosine

MEMES_A_CLIENT = 8  # one optimiser step a client
RATE = 1e-3
PROMPTS = Prompts(text="meme : {text}", question="harmful ?", joint=" ", answer="{name}", names=("no", "yes"))


class _Constant(WarmedCosine):
    """The rate as it is: what is compared is the work, not the schedule."""

    def __call__(self, step: int, steps: int) -> float:
        return 1.0


def model(folder: Path, rank: int = Lora.rank) -> MultimodalModule:
    """The tiny model at its full size, weights random; rank: of its LoRA pairs."""
    size = tiny_model.Size()
    words = tiny_model.tokenizer(vocabulary_texts(), size.vocabulary)
    tiny_model.save(folder / "model", tiny_model.model(words, size, 0), tiny_model.processor(words, size))
    optimizer = partial(torch.optim.AdamW, lr=RATE)
    family = Tiny(source=str(folder / "model"))
    return MultimodalModule(
        family, optimizer, seed=1, lora=Lora(rank, dropout=0.0), cache_features=True, schedule=_Constant()
    )


def corpus(module: MultimodalModule, folder: Path, clients: int) -> ImageTextDataModule:
    """Memes shared out in equal parts."""
    write_memes(folder / "memes", train=4 * math.ceil(MEMES_A_CLIENT * clients / 4), dev=4, test=4)
    read = HatefulMemes().read(folder / "memes")
    return ImageTextDataModule(read, PROMPTS, IID(clients), Missing(0.3), module.encoder, MEMES_A_CLIENT, seed=1)


def update(state: State, client: int) -> State:
    """What client number `client` might send: every number a little apart."""
    return {name: tensor + 1e-3 * (client + 1) for name, tensor in state.items()}


def switch(size: int, setting: Setting) -> Case:
    """The resident model becomes that of another client, `size` times."""
    module = model(setting.folder)
    adapter = Adapter(module)
    start = adapter.extract()
    two = [update(start, client) for client in (0, 1)]
    trained = {canonical(name): name for name, tensor in module.named_parameters() if tensor.requires_grad}

    def ours() -> None:
        for turn in range(size):
            adapter.load(two[turn % 2])

    def plain() -> None:
        for turn in range(size):
            server.model_of_client(module, trained, two[turn % 2])

    def check() -> None:
        own = server.model_of_client(module, trained, two[1])
        adapter.load(two[1])
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, own.state_dict()[name])

    return Case(ours, plain, check, facts={"adapter_bytes": num_bytes(start)})


def aggregation(size: int, setting: Setting) -> Case:
    """Updates of `size` clients, made as they arrive, become their weighted mean."""
    start = Adapter(model(setting.folder)).extract()

    def ours() -> State | None:
        mean = OrderedMean(range(size))
        for client in range(size):
            mean.add(client, update(start, client), 1 + client)
        return mean.result()

    def plain() -> State:
        return server.mean([update(start, client) for client in range(size)], [1.0 + client for client in range(size)])

    return Case(
        ours, plain, lambda: torch.testing.assert_close(ours(), plain()), facts={"adapter_bytes": num_bytes(start)}
    )


def federation(
    folder: Path, clients: int, rounds: int = 1, rank: int = Lora.rank
) -> tuple[Client, Adapter, Orchestrator]:
    """Rounds of FedAdam over `clients` clients, with their ledger."""
    module = model(folder, rank)
    data, adapter = corpus(module, folder, clients), Adapter(module)
    client = Client(module, adapter, data, device="cpu")
    strategy, ledger = FedAdam(eta=RATE), Ledger(folder / "ledger.safetensors", "benchmark")
    orchestrator = Orchestrator(
        module, adapter, InProcess(client), strategy, clients=clients, rounds=rounds, seed=1, ledger=ledger
    )
    return client, adapter, orchestrator


def whole_round(size: int, setting: Setting) -> Case:
    """A round of `size` clients; plain: the same clients trained, nothing sent, folded or written."""
    client, adapter, orchestrator = federation(setting.folder, size)
    start = adapter.extract()
    assert orchestrator.ledger is not None
    file = setting.folder / "ledger.safetensors"

    def ours() -> State:
        file.unlink(missing_ok=True)
        adapter.load(start)
        return orchestrator.run().models["global"]

    def plain() -> list[ClientUpdate]:
        return [trained(client, start, number) for number in range(size)]

    def check() -> None:
        updates = plain()
        mean = server.mean([one.state for one in updates], [1.0] * size)
        parameters = {name: tensor.double() for name, tensor in start.items()}
        moved, _ = orchestrator.strategy.step(parameters, mean, {})
        expected = {name: tensor.to(start[name].dtype) for name, tensor in moved.items()}
        torch.testing.assert_close(ours(), expected)

    return Case(ours, plain, check)


def trained(client: Client, start: State, number: int) -> ClientUpdate:
    outcome = client.run(ClientTask(0, number, start, 1.0, 1))
    assert isinstance(outcome, ClientUpdate), outcome
    return outcome


def one_client(size: int, setting: Setting) -> Case:
    """`size` clients, each a fit; plain: their optimiser steps in a bare loop."""
    client, adapter, orchestrator = federation(setting.folder, size)
    start, module, data = adapter.extract(), orchestrator.module, client._data

    def ours() -> list[State]:
        return [trained(client, start, number).state for number in range(size)]

    def plain() -> list[State]:
        found = []
        for number in range(size):
            adapter.load(start)
            optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], RATE)
            for batch in data.train_dataloader(number, seed_of(1, 0, number)):
                logits, tokens = module.answer_logits(batch)
                torch.nn.functional.cross_entropy(logits, tokens).backward()
                optimizer.step()
                optimizer.zero_grad()
            found.append(adapter.extract())
        return found

    return Case(ours, plain, lambda: torch.testing.assert_close(ours(), plain(), rtol=1e-4, atol=1e-6))


WORKLOADS = [
    Workload(
        "client_switch", "federation", "client switches on the tiny model", "a copy of the model for each client",
        switch, "switches", (20,), 2, threads=1,
    ),
    Workload(
        "aggregation", "federation", "adapters of the tiny model folded into their mean as they arrive",
        "all kept, then averaged", aggregation, "clients", (100, 25, 50, 200), 3, threads=1,
    ),
    Workload(
        "round", "federation", "a round of FedAdam on the tiny model, ledger included",
        "the same clients trained, nothing else", whole_round, "clients", (20, 5), 2, threads=1, rounds=3,
        goals=tuple(
            Goal("overhead", 0.05, False, "less than 5 % beyond the clients' own training", size=clients)
            for clients in (20, 5)
        ),
    ),
    Workload(
        "client_fit", "federation", "clients' fits, each with its trainer and checks", "the same steps in a bare loop",
        one_client, "clients", (10,), 2, threads=1, rounds=3,
        goals=(Goal("overhead", 0.05, False, "less than 5 % beyond the bare steps"),),
    ),
]  # fmt: skip
