"""A look inside: test clips with attention, attacked twins and nearest neighbours, and the embedding in the plane."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor
from torch.nn import functional

from datamodules.batch import SkeletonBatch
from datamodules.randomness import generator
from lightning_modules.base import Attention, SkeletonModule
from lightning_modules.evaluation.collapse import effective_rank, spread
from lightning_modules.evaluation.embedding import Embedding
from lightning_modules.evaluation.knn import KNN, neighbours
from lightning_modules.evaluation.measured import Measured
from lightning_modules.evaluation.subject import Subject

WHOLE = 1000  # the largest coordinate of a shown clip, which is written in whole numbers
VISIBLE = 70  # displacements are enlarged to about this
NEAR_FRAMES = 20  # frames of a shown neighbour
TSNE_FEWEST = 5  # points; below it the plane is that of the principal components
REDUCED = 50  # components that t-SNE reads, as its authors advise


@dataclass(frozen=True)
class Inspection:
    """What the report shows of a subject.

    clips: test clips to play, of as many labels; near: neighbours of each among the training clips; points: test clips
    in the plane, at most. A draw by `seed` chooses them.
    """

    clips: int = 6
    near: int = 3
    points: int = 1000
    seed: int = 1

    def measure(self, subject: Subject) -> Measured:
        """1-NN accuracy `k1`, `effective_rank` and `feature_spread`; the parts `points` and, if trained, `samples`."""
        train, test = subject.embedding("train"), subject.embedding("test")
        nearest = KNN(ks=(1,)).measure(subject)
        room = {"effective_rank": effective_rank(test.vectors), "feature_spread": spread(test.vectors)}
        parts = {"points": self.plane(test, subject.data.store.index.names)}
        if subject.make_backbone is not None and not subject.name:
            parts["samples"] = self.samples(subject, subject.make_backbone(), train, test)
        return nearest._replace(metrics=nearest.metrics | room, parts=parts)

    def plane(self, embedding: Embedding, names: np.ndarray) -> dict[str, Any]:
        """Points of the plane, near each other where the embeddings are."""
        order = torch.randperm(len(embedding.labels), generator=generator(self.seed, 0))[: self.points].sort().values
        method, xy = in_the_plane(embedding.vectors[order], self.seed)
        return {
            "method": method,
            "xy": [[round(float(x), 3) for x in point] for point in xy],
            "labels": embedding.labels[order].tolist(),
            "names": names[embedding.ids[order].numpy()].tolist(),
            "of": len(embedding.labels),
        }

    def chosen(self, labels: Tensor) -> list[int]:
        """Positions of clips of different labels, as long as there are such."""
        order = torch.randperm(len(labels), generator=generator(self.seed, 1)).tolist()
        first: dict[int, int] = {}
        for position in order:
            first.setdefault(int(labels[position]), position)
        others = [position for position in order if position not in first.values()]
        return [*first.values(), *others][: self.clips]

    def samples(self, subject: Subject, module: SkeletonModule, train: Embedding, test: Embedding) -> dict[str, Any]:
        """The clips to play."""
        topology, device = subject.data.store.topology, subject.device
        module.eval().to(device)
        at = self.chosen(test.labels)
        near = neighbours(train.vectors, test.vectors[at], min(self.near, len(train.labels)), "cosine")
        shown = []
        for position, rows in zip(at, near, strict=True):
            others = [self._neighbour(subject, module, train, test.vectors[position], int(row)) for row in rows]
            told = ", ".join(str(int(label)) for label in train.labels[rows])
            label = int(test.labels[position])
            title = f"{_name(subject, test.ids[position])}, label {label}"
            note = f"Label {label}, counted from 0; the nearest training clips have {told}."
            clip = _one(subject, test.ids[position])
            shown.append({"title": title, "note": note, "neighbours": others} | look_at(module, clip))
        up, upward = topology.up
        return {
            "bones": [list(bone) for bone in topology.bones],
            "joints": list(topology.joint_names),
            "up": up,
            "upward": upward,
            "clips": shown,
        }

    def _neighbour(self, subject: Subject, module: SkeletonModule, train: Embedding, query: Tensor, row: int) -> dict:
        likeness = functional.cosine_similarity(query, train.vectors[row], dim=0)
        joints = present(module.shown(_one(subject, train.ids[row]))[0])
        fewer = torch.linspace(0, joints.shape[1] - 1, min(NEAR_FRAMES, joints.shape[1])).long()
        title = f"label {int(train.labels[row])}, cosine {likeness:.2f}"
        return {"title": title, "joints": whole(joints[:, fewer], WHOLE / _largest(joints))}


@torch.no_grad()
def look_at(module: SkeletonModule, clip: SkeletonBatch) -> dict[str, Any]:
    """What is drawn of one clip: joints, attention maps and attacked twins; coordinates are whole numbers."""
    seen = module.shown(clip)[0]
    joints = present(seen)
    bodies, scale = joints.shape[-1], WHOLE / _largest(joints)
    twins = []
    for name, twin in module.attacked_twins(clip).items():
        shift = (twin[0] - seen)[..., :bodies] * scale
        unit = max(float(shift.abs().max()), 1e-12) / WHOLE
        enlarge = max(1, round(VISIBLE / (unit * WHOLE)))
        twins.append({"name": name, "unit": unit, "enlarge": enlarge, "shift": whole(shift, 1 / unit)})
    maps = [_written(name, attention, bodies) for name, attention in module.attention(clip).items()]
    return {"joints": whole(joints, scale), "maps": maps, "twins": twins}


def _written(name: str, attention: Attention, bodies: int) -> dict[str, Any]:
    values = attention.values[0, :bodies].double().cpu().numpy().round(4).tolist()
    return {"name": name, "over": attention.over, "values": values}


def present(joints: Tensor) -> Tensor:
    """(C, T, V, M) without the bodies at the end that are never there; the first stays."""
    there = joints.abs().sum((0, 1, 2)) > 0
    return joints[..., : max(1, int(there.nonzero().max()) + 1 if there.any() else 1)]


def _largest(joints: Tensor) -> float:
    return max(float(joints.abs().max()), 1e-12)


def whole(joints: Tensor, scale: float) -> list:
    """(C, T, V, M) times `scale` as nested lists (T, M, V, C) of whole numbers."""
    return (joints * scale).round().int().permute(1, 3, 2, 0).tolist()


def _one(subject: Subject, row: Tensor) -> SkeletonBatch:
    """The clip of one store row, as a batch on the subject's device."""
    (batch,) = subject.data.in_order(np.array([int(row)]))
    return SkeletonBatch(*(part.to(subject.device) for part in batch))


def _name(subject: Subject, row: Tensor) -> str:
    return str(subject.data.store.index.names[int(row)])


def in_the_plane(vectors: Tensor, seed: int) -> tuple[str, np.ndarray]:
    """t-SNE of vectors (N, D) of length 1, by their principal components where they are many; PCA for few points."""
    values = functional.normalize(vectors.double(), dim=1).numpy()
    if len(values) < TSNE_FEWEST:
        if len(values) < 2:
            return "PCA", np.zeros((len(values), 2))
        return "PCA", PCA(2).fit_transform(values)
    if min(values.shape) > REDUCED:
        values = PCA(REDUCED, random_state=seed).fit_transform(values)
    perplexity = min(30.0, (len(values) - 1) / 3)
    return "t-SNE", TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(values)
