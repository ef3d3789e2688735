"""The contrastive objectives as their equations stand in the papers: each term, pass and mixture by itself."""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.batch import SkeletonBatch
from datamodules.topology import TOPOLOGIES
from lightning_modules.a2mc import A2MC
from lightning_modules.aim_clr import EXTREME_VIEW, AimCLR
from lightning_modules.contrast.adversarial_bank import AdversarialBank
from lightning_modules.contrast.attack import EPSILON, Attack, frozen_statistics
from lightning_modules.contrast.cross_level import PAIRS
from lightning_modules.contrast.mixer import LinearMixer
from lightning_modules.encoders.hierarchical import Projected
from lightning_modules.losses.perceptual import PERCEPTUAL
from lightning_modules.psp import PSP
from lightning_modules.scd_net import SCDNet
from lightning_modules.sds_cl import SDSCL, Squeezed
from lightning_modules.skeleton_clr import SkeletonCLR


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """NT-Xent of views (N, K, C), a matrix of all similarities with the anchor itself taken out by hand."""
    tokens = F.normalize(torch.cat([a, b], dim=1), dim=-1)
    similarity = torch.einsum("nuc,nvc->nuv", tokens, tokens) / temperature
    count, size = tokens.shape[1], a.shape[1]
    exponentials = similarity.exp() * (1 - torch.eye(count, dtype=a.dtype, device=a.device))
    twins = torch.cat([similarity.diagonal(size, 1, 2), similarity.diagonal(-size, 1, 2)], dim=1)
    return (exponentials.sum(2).log() - twins).mean()


def sds_cl(module: SDSCL, batch: SkeletonBatch) -> dict[str, Tensor]:
    """STL, TSL and GL, every pairing of streams a call of its own."""
    joint, motion = module.streams(batch)
    bodies = joint.shape[-1]
    joint, motion = module.backbone(joint, motion)
    first, second = squeezed(module.siia(joint, motion), bodies), squeezed(module.siia(motion, joint), bodies)
    frames, joints = (
        [
            (module.head(getattr(one, f"intra_{kind}")), module.head(getattr(one, f"inter_{kind}")))
            for one in (first, second)
        ]
        for kind in ("frames", "joints")
    )

    def four(streams: list[tuple[Tensor, Tensor]]) -> Tensor:
        return sum(nt_xent(a, b, module.temperature) for a, b in product(*streams))  # type: ignore[return-value]

    clips = [module.global_head(one.clip)[None] for one in (first, second)]
    return {"stl": four(frames), "tsl": four(joints), "gl": nt_xent(*clips, module.temperature)}


def squeezed(attended: tuple[Tensor, ...], bodies: int) -> Squeezed:
    """Means of the four attended features (N * M, C, T, V) over what each loss does not contrast."""
    temporal_intra, spatial_intra, temporal_inter, spatial_inter = (
        x.reshape(-1, bodies, *x.shape[1:]) for x in attended
    )
    return Squeezed(
        spatial_intra.mean(4).mean(1).transpose(1, 2),
        spatial_inter.mean(4).mean(1).transpose(1, 2),
        temporal_intra.mean(3).mean(1).transpose(1, 2),
        temporal_inter.mean(3).mean(1).transpose(1, 2),
        torch.cat([x.mean((1, 3, 4)) for x in (temporal_intra, spatial_intra, temporal_inter, spatial_inter)], dim=1),
    )


def psp(module: PSP, batch: dict[str, SkeletonBatch]) -> dict[str, Tensor]:
    """Cross-entropy and CCL, one level after the other."""
    known, unknown = batch["labelled"], batch["unlabelled"]
    streams = module.streams(known, 0) + module.streams(unknown, 2)
    bodies = streams[0].shape[-1]
    features = module.backbone(*streams)
    means = [x.reshape(-1, bodies, *x.shape[1:]).mean((1, 3, 4)) for x in features[:2]]
    terms = {"cross_entropy": F.cross_entropy(module.fc(means[0]) + module.fc(means[1]), known.labels)}
    joint, motion = module.ppa(features[2]), module.ppa(features[3])
    for level in joint._fields:
        pooled = [
            getattr(stream, level).reshape(-1, bodies, *getattr(stream, level).shape[1:]).mean((1, 3, 4))
            for stream in (joint, motion)
        ]
        loss = nt_xent(module.head(pooled[0])[None], module.head(pooled[1])[None], module.temperature)
        terms[f"ccl_{level}"] = module.weight * loss
    return terms


def info_nce(query: Tensor, key: Tensor, memory: Tensor, temperature: float, more: Tensor | None = None) -> Tensor:
    """-log of the positive's share, similarities with the memory (d, K) from a product of their own."""
    logits = [torch.einsum("nd,nd->n", query, key)[:, None], torch.einsum("nd,dk->nk", query, memory)]
    logits = torch.cat(logits + ([] if more is None else [more]), dim=1) / temperature
    return -logits.log_softmax(1)[:, 0].mean()


def scd_net(module: SCDNet, batch: SkeletonBatch) -> dict[str, Tensor]:
    """The four terms."""
    clips, others = module.views(batch)
    with torch.no_grad():
        keys = module.encoders.key(others)
    query = module.encoders.query(clips)
    terms = {
        f"{source}_{target}": info_nce(
            getattr(query, source), getattr(keys, target), module.queues[target].keys, module.temperature
        )
        for source, target in PAIRS
    }
    return terms | {f"key_{level}": getattr(keys, level) for level in module.queues}


def skeleton_clr(module: SkeletonCLR, batch: SkeletonBatch) -> dict[str, Tensor]:
    """The contrast of one view with the other and the queue."""
    clips, others = module.views(batch)
    with torch.no_grad():
        key = module.encoders.key(others)
    query = module.encoders.query(clips)
    return {"contrast": info_nce(query, key, module.queue.keys, module.temperature), "key": key}


def aim_clr(module: AimCLR, batch: SkeletonBatch) -> dict[str, Tensor]:
    """The contrast with mined positives and the two D3M terms, each query's similarities by themselves."""
    clips, others = module.views(batch)
    with torch.no_grad():
        key = module.encoders.key(others)
    network, bodies = module.encoders.query, clips.shape[-1]
    normal, features = network(clips), network.encoder(module.seen(module.extreme, batch, EXTREME_VIEW))
    extreme = network.project(features, bodies)
    dropped = network.project(energy_dropped(features, module.threshold), bodies)
    logs, mined = [], []
    for query in (normal, extreme, dropped):
        memory = torch.einsum("nd,dk->nk", query, module.queue.keys)
        logits = torch.cat([torch.einsum("nd,nd->n", query, key)[:, None], memory], dim=1) / module.temperature
        logs.append(logits.log_softmax(1))
        mined.append(1 + memory.argmax(1))  # the key comes first
    rows = torch.arange(len(key), device=key.device)
    positive = torch.zeros_like(logs[0])
    positive[:, 0] = 1
    for column in mined if module.place.epoch >= module.mine_from else []:
        positive[rows, column] = 1
    target = logs[0].exp().detach()
    return {
        "contrast": -((positive * logs[0]).sum(1) / positive.sum(1)).mean(),
        "d3m_extreme": -(target * logs[1]).sum(1).mean() / 2,
        "d3m_dropped": -(target * logs[2]).sum(1).mean() / 2,
        "key": key,
    }


def energy_dropped(features: Tensor, threshold: float) -> Tensor:
    """EADM body after body: joints that stand out go, then cells that do; the rest grows by the share of what is left.

    A cell stands out by e = (x - mean)^2 / (4 (variance + 1e-4)) + .5, statistics of its channel, through a sigmoid.
    """
    found = []
    for x in features:  # (C, T, V)
        squares = (x.detach() - x.detach().mean((1, 2), keepdim=True)) ** 2
        variance = squares.sum((1, 2), keepdim=True) / (x[0].numel() - 1)
        attention = 1 / (1 + torch.exp(-(squares / (4 * (variance + 1e-4)) + 0.5)))
        for kept in (attention.mean((0, 1)) < threshold, attention < threshold):
            x = x * kept / kept.to(x.dtype).mean()
        found.append(x)
    return torch.stack(found)


def attacked(module: A2MC, attack: Attack, clips: Tensor) -> Tensor:
    """Backward through the whole network, parameters' gradients thrown away; the released label is of a pass apart."""
    with frozen_statistics(module), torch.enable_grad():
        labels = module.logits(clips).argmax(1) if module.label_pass else None
        x = clips
        for _ in range(attack.steps):
            clip = x.clone().requires_grad_()
            logits = module.logits(clip)
            labels = logits.argmax(1) if labels is None else labels
            F.cross_entropy(logits, labels).backward()
            away = unit(clip.grad)
            clip.grad = None
            PERCEPTUAL[attack.perceptual](clip, clips, TOPOLOGIES[attack.topology]).backward()
            g = attack.look * unit(clip.grad) - attack.away * away
            x = x - attack.step_size * g / (g.abs() + EPSILON)
        module.zero_grad()
    return x


def unit(gradient: Tensor | None) -> Tensor:
    """Gradient (N, C, T, V, M) over its norm per clip, frame and body."""
    assert gradient is not None
    norm = gradient.norm(dim=(1, 3), keepdim=True)
    return torch.where(norm > 0, gradient / norm, 0)


def mixed_features(module: A2MC, query: Tensor, memory: Tensor, share: float) -> Tensor:
    """(N, S, d): share q + (1 - share) d for every slot d that query n owns; the batch divides the memory."""
    own = memory.T.reshape(-1, len(query), memory.shape[0]).transpose(0, 1)
    return share * query[:, None] + (1 - share) * own


def mixing_terms(module: A2MC, query: Projected, keys: Projected, memory: dict[str, Tensor]) -> dict[str, Tensor]:
    """The terms of either mixer, each mixture built as a feature."""
    mixer, terms, pushes = module.mixer, {}, []
    for source, target in PAIRS:
        q, k, bank = getattr(query, source), getattr(keys, target), memory[target]
        harder = mixed_features(module, q, bank, mixer.negative_ratio)
        similar = torch.einsum("nd,nsd->ns", q, harder)
        if isinstance(mixer, LinearMixer):
            easier = mixed_features(module, q, bank, 1 - mixer.positive_ratio)
            pushes.append(((similar - torch.einsum("nd,nsd->ns", q, easier)) / module.temperature).mean())
            terms[f"{source}_{target}"] = info_nce(q, k, bank, module.temperature)
        else:
            terms[f"{source}_{target}"] = info_nce(q, k, bank, module.temperature, similar)
    return terms | ({"mixing": sum(pushes) / len(pushes)} if pushes else {})  # type: ignore[dict-item]


def a2mc(module: A2MC, batch: SkeletonBatch) -> dict[str, Tensor]:
    """A2MC after its warm-up."""
    clips, others = module.views(batch)
    with torch.no_grad():
        keys = module.encoders.key(others)
    queries = [module.encoders.query(attacked(module, attack, clips)) for attack in module.attacks]
    memory = {level: bank.weight / bank.weight.norm(dim=0) for level, bank in module.banks.items()}
    each = [mixing_terms(module, query, keys, memory) for query in queries]
    terms = {name: torch.stack([term[name] for term in each]).mean() for name in each[0]}
    with torch.no_grad():
        scores = module.head(keys)
    terms |= module.head.loss_terms(queries[0], scores, first=0)
    handed = {f"query_{level}": torch.stack([getattr(q, level) for q in queries], dim=1) for level in module.banks}
    handed |= {f"key_{level}": getattr(keys, level) for level in module.banks}
    return terms | handed | {"full": torch.tensor([True])}


def climb(bank: AdversarialBank, contrasts: list[tuple[Tensor, Tensor]]) -> None:
    """The bank's ascent, every gradient from similarities of its own."""
    slopes = []
    for query, key in contrasts:
        norm = bank.weight.norm(dim=0)
        directions = bank.weight / norm
        similar = torch.einsum("nd,dk->nk", query, directions)
        logits = torch.cat([torch.einsum("nd,nd->n", query, key)[:, None], similar], dim=1) / bank.temperature
        p = logits.softmax(1)[:, 1:]
        pulled = torch.einsum("nk,nd->dk", p, query) / len(query)
        slopes.append(-(pulled - (p * similar).mean(0) * directions) / bank.temperature)
    for slope in slopes if bank.aliased else [sum(slopes)]:
        bank.velocity = (
            bank.momentum * bank.velocity + slope / bank.weight.norm(dim=0) + bank.weight_decay * bank.weight
        )
        bank.weight = bank.weight - bank.learning_rate * bank.velocity
