"""EADM, D3M and mined InfoNCE number by number, in plain Python; and how far the project's are from them."""

import math

import torch
from torch import Tensor

from datamodules.randomness import generator
from lightning_modules.attention.eadm import energy_attention, energy_drop
from lightning_modules.losses.d3m import d3m
from lightning_modules.losses.mined_info_nce import mined_info_nce, nearest

TEMPERATURE = 0.07


def random(*shape: int, key: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(31, key), dtype=torch.float64)


def slow_attention(channel: Tensor) -> list[list[float]]:
    """Of one channel (T, V)."""
    rows = channel.tolist()
    cells = [x for row in rows for x in row]
    mean = sum(cells) / len(cells)
    total = sum((x - mean) ** 2 for x in cells)

    def attention(x: float) -> float:
        energy = (x - mean) ** 2 / (4 * (total / (len(cells) - 1) + 1e-4)) + 0.5
        return 1 / (1 + math.exp(-energy))

    return [[attention(x) for x in row] for row in rows]


def slow_drop(features: Tensor, threshold: float = 0.7) -> Tensor:
    """EADM of (B, C, T, V): joints, then cells, each rest times all / left."""
    out = features.clone()
    batch, channels, frames, joints = features.shape
    for b in range(batch):
        attention = [slow_attention(features[b, c]) for c in range(channels)]
        means = [
            sum(attention[c][t][v] for c in range(channels) for t in range(frames)) / channels / frames
            for v in range(joints)
        ]
        kept = [v for v in range(joints) if means[v] < threshold]
        for v in range(joints):
            out[b, :, :, v] *= joints / len(kept) if v in kept else 0
        places = [(c, t, v) for c in range(channels) for t in range(frames) for v in range(joints)]
        left = [place for place in places if attention[place[0]][place[1]][place[2]] < threshold]
        for place in places:
            out[(b, *place)] *= len(places) / len(left) if place in set(left) else 0
    return out


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp((value - max(values)) / TEMPERATURE) for value in values]
    return [power / sum(powers) for power in powers]


def slow_d3m(normal: Tensor, extreme: Tensor) -> float:
    losses = []
    for target, row in zip(normal.tolist(), extreme.tolist(), strict=True):
        losses.append(-sum(p * math.log(q) for p, q in zip(softmax(target), softmax(row), strict=True)))
    return sum(losses) / len(losses)


def slow_mined(positive: Tensor, views: list[Tensor]) -> float:
    """Of the first view; every view mines its nearest entry."""
    losses = []
    for row in range(len(positive)):
        mined = {max(range(views[0].shape[1]), key=lambda j: view[row, j].item()) for view in views}
        logs = [math.log(p) for p in softmax([positive[row].item(), *views[0][row].tolist()])]
        losses.append(-sum([logs[0], *(logs[1 + j] for j in sorted(mined))]) / (1 + len(mined)))
    return sum(losses) / len(losses)


def spiky_features() -> Tensor:
    """(5, 5, 6, 7) of which some joints and many cells stand out.

    Row 3 is constant, as of an absent body, row 4 nearly so, so that the regulariser shows.
    """
    features = 0.2 * random(5, 5, 6, 7) + 1
    features[:2, :, :, 3] += 4
    features[1, :3, :, 5] += 3
    features[3] = 0.25
    features[4] *= 0.05
    return features


def similarities() -> tuple[Tensor, list[Tensor]]:
    """(5,) with the key and three views' (5, 9) with the memory; two views of row 0 agree on their nearest entry."""
    views = [0.3 * random(5, 9, key=key) for key in (1, 2, 3)]
    views[0][0, 4] = views[1][0, 4] = 2.0
    return 0.3 * random(5, key=4), views


def distance(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).abs().max() / expected.abs().max())


def errors() -> dict[str, float]:
    """Relative error of everything in losses/ and attention/ that AimCLR adds, and of D3M's gradient."""
    features, (positive, views) = spiky_features(), similarities()
    attention = torch.tensor([[slow_attention(channel) for channel in body] for body in features], dtype=torch.float64)
    target, moving = (torch.cat([positive[:, None], view], dim=1) for view in views[:2])
    target.requires_grad_(), moving.requires_grad_()
    divergence = d3m(target, moving, TEMPERATURE)
    divergence.backward()
    p, q = (torch.tensor([softmax(row) for row in x.tolist()], dtype=torch.float64) for x in (target, moving))
    found = mined_info_nce(positive, views[0], nearest(views), TEMPERATURE)
    return {
        "attention": distance(energy_attention(features), attention),
        "drop": distance(energy_drop(features), slow_drop(features)),
        "d3m": abs(divergence.item() / slow_d3m(target, moving) - 1),
        "d3m_gradient": distance(moving.grad, (q - p) / TEMPERATURE / len(p)),
        "d3m_target_gradient": float("inf") if target.grad is not None else 0.0,
        "mined": abs(found.item() / slow_mined(positive, views) - 1),
    }
