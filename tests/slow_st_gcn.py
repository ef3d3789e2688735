"""ST-GCN as its paper reads: edge by edge, tap by tap, in plain sums. Slow, and independent of the module's graph."""

from collections import deque

import torch
from torch import Tensor

from datamodules.topology import TOPOLOGIES, SkeletonTopology
from lightning_modules.encoders.st_gcn import STGCN


def hops(topology: SkeletonTopology) -> list[int]:
    """Bones between each joint and the root, by breadth-first search."""
    near: list[set[int]] = [set() for _ in topology.joint_names]
    for child, parent in topology.bones:
        near[child].add(parent)
        near[parent].add(child)
    found, waiting = {topology.root: 0}, deque([topology.root])
    while waiting:
        joint = waiting.popleft()
        for other in sorted(near[joint] - found.keys()):
            found[other] = found[joint] + 1
            waiting.append(other)
    return [found[joint] for joint in range(topology.num_joints)]


def edges(topology: SkeletonTopology) -> list[tuple[int, int, int, float]]:
    """(subset, source, target, weight): subset 0 as far from the root as the target, 1 farther, 2 nearer."""
    distance = hops(topology)
    bones = set(topology.bones) | {(parent, child) for child, parent in topology.bones}
    bones |= {(joint, joint) for joint in range(topology.num_joints)}
    degree = [sum(target == joint for _, target in bones) for joint in range(topology.num_joints)]
    listed = []
    for source, target in sorted(bones):
        apart = distance[source] - distance[target]
        listed.append(((0, 1, 2)[apart], source, target, 1 / degree[target]))  # -1 counts from the end: subset 2
    return listed


def normalised(x: Tensor, layer, dims: tuple[int, ...], training: bool) -> Tensor:
    """Batch normalisation of (B, C, ...) over `dims`, by the batch in training, by the running statistics otherwise."""
    shape = [1, -1] + [1] * (x.ndim - 2)
    if training:
        mean = x.mean(dims, keepdim=True)
        variance = ((x - mean) ** 2).mean(dims, keepdim=True)
    else:
        mean, variance = layer.running_mean.view(shape), layer.running_var.view(shape)
    return (x - mean) / (variance + layer.eps).sqrt() * layer.weight.view(shape) + layer.bias.view(shape)


def pointwise(x: Tensor, layer, stride: int = 1) -> Tensor:
    """1x1 convolution of (B, C, T, V), strided along time."""
    return torch.einsum("oc,bctv->botv", layer.weight[:, :, 0, 0], x[:, :, ::stride]) + layer.bias[:, None, None]


def graph_convolution(x: Tensor, part, topology: SkeletonTopology) -> Tensor:
    projected = pointwise(x, part.project)
    width = projected.shape[1] // 3
    columns = [torch.zeros_like(projected[:, :width, :, 0]) for _ in topology.joint_names]
    for subset, source, target, weight in edges(topology):
        channels = projected[:, subset * width : (subset + 1) * width, :, source]
        columns[target] = columns[target] + weight * part.importance[subset, source, target] * channels
    return torch.stack(columns, dim=3)


def temporal_convolution(x: Tensor, layer, stride: int) -> Tensor:
    frames = x.shape[2]
    out = []
    for centre in range(0, frames, stride):
        taps = [
            torch.einsum("oc,bcv->bov", layer.weight[:, :, tap, 0], x[:, :, centre + tap - 4])
            for tap in range(9)
            if 0 <= centre + tap - 4 < frames
        ]
        out.append(sum(taps) + layer.bias[:, None])
    return torch.stack(out, dim=2)


def slow_st_gcn(net: STGCN, clips: Tensor, training: bool) -> Tensor:
    """Features (N * M, D, T', V) of clips (N, C, T, V, M), without dropout."""
    topology = TOPOLOGIES[net.topology]
    bodies = [clips[n, :, :, :, m] for n in range(len(clips)) for m in range(clips.shape[-1])]
    x = torch.stack(bodies).permute(0, 3, 1, 2).flatten(1, 2)  # (N * M, V * C, T), joint by joint
    x = normalised(x, net.data_bn, (0, 2), training)
    x = x.unflatten(1, (topology.num_joints, -1)).permute(0, 2, 3, 1)
    for number, unit in enumerate(net.units, start=1):
        stride = 2 if number in (5, 8) else 1
        before, _, convolution, after, _ = unit.temporal
        y = graph_convolution(x, unit.graph_convolution, topology)
        y = normalised(y, before, (0, 2, 3), training).clamp(min=0)
        y = normalised(temporal_convolution(y, convolution, stride), after, (0, 2, 3), training)
        if number > 1:
            same = x.shape[1] == y.shape[1] and stride == 1
            if not same:
                x = normalised(pointwise(x, unit.residual[0], stride), unit.residual[1], (0, 2, 3), training)
            y = y + x
        x = y.clamp(min=0)
    return x
