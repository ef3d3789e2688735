"""Frozen features: embedding, the linear probe of 80 epochs, nearest neighbours at the size of NTU RGB+D 60."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import synthetic
from benchmarks.harness import Case, Goal, Setting, Workload
from benchmarks.plain import neighbours
from benchmarks.plain.networks import published
from benchmarks.workloads.training import CHECKED, assert_alike, built, configured, moved, without_dropout
from datamodules.batch import SkeletonBatch
from datamodules.randomness import generator
from lightning_modules.base import SkeletonModule
from lightning_modules.evaluation.embedding import Embedding, embed
from lightning_modules.evaluation.knn import KNN, vote
from lightning_modules.evaluation.linear import LinearProbe, standardise
from lightning_modules.evaluation.measured import top1
from tracking.build import build

BATCH = 8
NTU60 = {"train": 40091, "test": 16487, "width": 4096}  # clips of xsub, features of A2MC
FEATURES = 4 * NTU60["width"] * (NTU60["train"] + NTU60["test"])  # bytes, in float32
CLASSES = 60
ASKED = 1024  # queries of the plain search, whose seconds are scaled to them all
EPOCHS = 3  # of the linear probe's check


def batches(clips: int, setting: Setting, seed: int = 0) -> list[SkeletonBatch]:
    """The same clips in batches, ids in order; another seed gives other clips."""
    whole = moved(synthetic.batch(clips, seed=seed), setting)
    parts = zip(*(part.split(BATCH) for part in whole), strict=True)
    return [SkeletonBatch(*part) for part in parts]


def embedding(method: str, size: int, setting: Setting) -> Case:
    """`size` clips through the method's published encoder."""
    module, clips = built(method, setting).eval(), batches(size, setting)

    @torch.no_grad()
    def ours() -> Tensor:
        with setting.autocast():
            return torch.cat([module.embed(batch).float() for batch in clips])

    @torch.no_grad()
    def plain() -> Tensor:
        with published(module):
            return torch.cat([module.embed(batch) for batch in clips])

    @torch.no_grad()
    def check() -> None:
        few = moved(synthetic.batch(CHECKED), setting, torch.float64)
        exact = acquainted(without_dropout(module), few)
        with published(exact):
            expected = exact.embed(few)
        assert_alike([exact.embed(few)], [expected])

    return Case(ours, plain, check)


def acquainted(module: SkeletonModule, batch: SkeletonBatch) -> SkeletonModule:
    """The module in eval mode, its batch norms by the statistics of a batch.

    By those of a start, 0 and 1, features of different clips are the same but for the seventh digit.
    """
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.momentum = 1.0
    module.train().embed(batch)
    return module.eval()


def linear(size: int, setting: Setting) -> Case:
    """SDS-CL's linear probe on `size` training clips, half as many to test; plain: one of its 80 epochs."""
    module, config = built("sds_cl", setting).eval(), configured("sds_cl", setting)
    settings = {name: build(config.linear[name]) for name in ("batch_size", "epochs", "lr", "standardised", "schedule")}
    probe, classes = LinearProbe(**settings, seed=1), config.data.num_classes
    train, test = batches(size, setting), batches(max(size // 2, 1), setting, seed=1)

    def once(clips: list[SkeletonBatch]) -> Embedding:
        return embed(module.embed, clips, torch.device(setting.device), "embedding")

    def ours() -> list[float]:
        return probe.fit(once(train), once(test), classes)[0]

    def plain() -> list[float]:
        return [top1(scores) for scores in reencoding(probe, once, train, test, classes, 1)]

    def check() -> None:
        accuracies, scores = replace(probe, epochs=EPOCHS).fit(once(train[:1]), once(test[:1]), classes)
        slow = list(reencoding(probe, once, train[:1], test[:1], classes, EPOCHS))
        assert accuracies == [top1(one) for one in slow]
        assert_alike([scores.vectors], [slow[-1].vectors])

    return Case(ours, plain, check, plain_share=1 / probe.epochs)


def reencoding(probe: LinearProbe, encode, train, test, classes: int, epochs: int) -> Iterator[Embedding]:
    """The probe trained as one trains a network: every epoch passes every clip through the encoder, then tests.

    Gives the test clips' scores after each epoch.
    """
    source, layer = generator(probe.seed, 0), None
    for epoch in range(epochs):
        seen, asked = encode(train), encode(test)
        inputs, tests = seen.vectors, asked.vectors
        if probe.standardised:
            inputs, tests = standardise(inputs, tests)
        if layer is None:
            layer = nn.Linear(inputs.shape[1], classes)
            nn.init.normal_(layer.weight, 0, 0.01, generator=source)
            nn.init.zeros_(layer.bias)
            optimizer = torch.optim.SGD(layer.parameters(), probe.lr, probe.momentum)
        optimizer.param_groups[0]["lr"] = probe.lr * probe.schedule(epoch)
        for rows in torch.randperm(len(inputs), generator=source).split(probe.batch_size):
            optimizer.zero_grad()
            functional.cross_entropy(layer(inputs[rows]), seen.labels[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            yield replace(asked, vectors=layer(tests))


def knn(size: int, setting: Setting) -> Case:
    """k-NN for k of 1, 5 and 20 of all test clips among `size` training clips.

    Features are centres of classes and as much noise, as of a trained network: more of them are in doubt than of noise.
    """
    share = size / NTU60["train"]
    asked = max(4, int(share * NTU60["test"]))
    width = 8 if setting.small else NTU60["width"]
    source = torch.Generator().manual_seed(1)
    centres = torch.randn(CLASSES, width, generator=source)

    def features(clips: int) -> Embedding:
        labels = torch.arange(clips) % CLASSES
        vectors = torch.randn(clips, width, generator=source).add_(centres[labels])
        return Embedding(vectors, labels, torch.arange(clips))

    train, queries = features(size), features(asked).vectors
    length = train.vectors.norm(dim=1)
    search = KNN()
    few = min(ASKED, asked)

    def ours() -> tuple[Tensor, Tensor]:
        return search.search(train, queries, CLASSES)

    def plain() -> Tensor:
        return neighbours.classified(train.vectors, length, train.labels, queries[:few], search.ks, CLASSES)

    def check() -> None:
        nearest, scores = ours()  # of all queries: how they are searched depends on their number
        found = torch.stack([vote(nearest[:few, :k], CLASSES) for k in search.ks], dim=1)
        assert torch.equal(found, plain())
        assert torch.equal(scores[:few].argmax(1), found[:, 0])

    return Case(ours, plain, check, plain_share=few / asked)


WORKLOADS = [
    Workload(
        "embedding", "evaluation", "clips embedded by SDS-CL's published encoder", "every body",
        partial(embedding, "sds_cl"), "clips", (16, 8, 32), 3, rounds=3, precisions=("fp32", "bf16"), gpu=True,
    ),
    Workload(
        "embedding_skeleton_clr", "evaluation", "clips embedded by SkeletonCLR's published encoder",
        "every body, joints projected for every subset, then gathered",
        partial(embedding, "skeleton_clr"), "clips", (32, 8), 3, rounds=3, precisions=("fp32", "bf16"), gpu=True,
    ),
    Workload(
        "linear", "evaluation", "SDS-CL's linear evaluation of 80 epochs, embedding included",
        "every epoch embeds every clip again: one epoch measured, times 80", linear, "clips", (32, 16), 6, rounds=2,
        goals=(Goal("ratio", 50, True, "at least 50 times as fast as re-encoding"),),
    ),
    Workload(
        "knn", "evaluation", "k-NN, 4,096 features, 16,487 queries of 40,091 clips (fewer of fewer)",
        f"float32 products and `topk`, {ASKED:,} queries at once: {ASKED:,} measured, times queries / {ASKED:,}",
        knn, "clips", (NTU60["train"], 10000, 2500), 60, rounds=3, warm=False,
        goals=(
            Goal("amount", 20, False, "at most 20 s on 2 cores"),
            Goal("peak", 2e9, False, "at most 2 GB in all, features included", beside=FEATURES),
        ),
    ),
]  # fmt: skip
