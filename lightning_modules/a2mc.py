"""A2MC: attack-augmented mixing-contrastive skeletal representation learning (Xu et al.; methods §3).

The arguments marked "released" say what the authors' code does, the defaults what abstract and figure mean (our
reading). The released attack also updates batch-norm statistics; that side effect is repaired in both.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from datamodules.batch import SkeletonBatch
from datamodules.transforms.views import CroppedView
from lightning_modules.contrast.adversarial_bank import AdversarialBank
from lightning_modules.contrast.attack import Attack
from lightning_modules.contrast.cross_level import PAIRS, contrast_terms, cross_level
from lightning_modules.contrast.mixer import LinearMixer, SoftmaxMixer
from lightning_modules.contrast.pseudo_labels import PrototypeHead, RandomHead
from lightning_modules.encoders.hierarchical import LEVELS, HierarchicalEncoder, Projected
from lightning_modules.hierarchical_contrast import HierarchicalContrast, handed
from lightning_modules.schedules import Schedule


class A2MC(HierarchicalContrast):
    """Attacked queries, augmented keys, negatives that fight back and are mixed with the query.

    While the banks fill, for the first K clips, it trains on the four InfoNCE terms alone: no attack, no mixer. Then
    the key encoder is set equal to the query encoder and all parts act.

    attacks: one attacked view of every query each. Ours: a weak one and a strong one of several steps, so that the
        contrast meets easy and hard positives; released: one of a single step of 1e-4.
    mixer: ours `SoftmaxMixer`, so that hard negatives count more; released `LinearMixer`, a plain push off the bank.
    learnt_head: ours True, so that the attack leaves a cluster of clips; released False, a random head.
    label_pass: released True, the pseudo-label comes from a pass of its own, under another dropout than the attack's.
    aliased_bank: released True, the second instance update sees the bank after the first; ours one step on their sum.
    labels: number of pseudo-labels.
    bank_temperature, bank_learning_rate, bank_momentum, bank_weight_decay: how the banks climb, as published, where
        they are constants of the code.
    """

    def __init__(
        self,
        encoder: HierarchicalEncoder,
        view: CroppedView,
        attacks: Sequence[Attack],
        mixer: LinearMixer | SoftmaxMixer,
        optimizer,
        schedule: Schedule,
        seed: int,
        dim: int = 128,
        memory_size: int = 16384,
        momentum: float = 0.999,
        temperature: float = 0.07,
        labels: int = 128,
        learnt_head: bool = True,
        label_pass: bool = False,
        aliased_bank: bool = False,
        bank_temperature: float = 0.03,
        bank_learning_rate: float = 3.0,
        bank_momentum: float = 0.9,
        bank_weight_decay: float = 1e-4,
    ):
        super().__init__(encoder, view, optimizer, schedule, seed, dim, memory_size, momentum, temperature)
        self.attacks, self.mixer, self.label_pass = tuple(attacks), mixer, label_pass
        self.head = PrototypeHead(dim, labels) if learnt_head else RandomHead(self.feature_width, labels)
        climb = bank_temperature, bank_learning_rate, bank_momentum, bank_weight_decay
        self.banks = nn.ModuleDict({level: AdversarialBank(dim, memory_size, *climb, aliased_bank) for level in LEVELS})
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    @property
    def full(self) -> bool:
        """Whether every slot of the banks holds a key. Waits for the device."""
        return int(self.filled) >= self.memory_size

    def logits(self, clips: Tensor) -> Tensor:
        """(N, labels) of the head whose argmax is the pseudo-label."""
        return self.head(self.encoders.query(clips))

    def attacked(self, clips: Tensor) -> list[Tensor]:
        """One attacked copy of the clips (N, C, T, V, M) for each attack."""
        if not self.label_pass:
            return [attack(clips, self.logits, self) for attack in self.attacks]
        query = self.encoders.query
        labels: list[Tensor] = []

        def logits(views: Tensor) -> Tensor:
            tokens = query.encoder.tokens(views)
            if not labels:  # of the clips before any step: up to the dropout, the label's pass and the attack's are one
                with torch.no_grad():
                    labels.append(self.head(query.projected(*query.encoder.pooled(*tokens))).argmax(1))
            return self.head(query.projected(*query.encoder.pooled(*tokens)))

        return [attack(clips, logits, self, lambda: labels[0]) for attack in self.attacks]

    def attacked_twins(self, batch: SkeletonBatch) -> dict[str, Tensor]:
        """Of the joint stream: attacks on motion or bones move no joint by themselves."""
        if self.view.stream != "joint":
            return {}
        names = [f"{attack.steps} step{'s' * (attack.steps > 1)} of {attack.step_size:g}" for attack in self.attacks]
        return dict(zip(names, self.attacked(self.shown(batch)), strict=True))

    def objective(self, batch: SkeletonBatch) -> dict[str, Tensor]:
        """The four terms by pair of levels, `mixing` of a linear mixer, `head` of a learnt head; means over attacks."""
        full = self.full
        clips, others = self.views(batch)
        keys = self.encoders.keys(others)
        memory = {level: bank.directions for level, bank in self.banks.items()}
        queries = [self.encoders.query(view) for view in (self.attacked(clips) if full else [clips])]
        each = [self._contrast(query, keys, memory, full) for query in queries]
        terms = {name: torch.stack([term[name] for term in each]).mean() for name in each[0]}
        with torch.no_grad():
            scores = self.gathered(self.head(keys))
        terms |= self.head.loss_terms(queries[0], scores, first=self.place.rank * len(clips))
        views = Projected(*(torch.stack(parts, dim=1) for parts in zip(*queries, strict=True)))
        handing = handed("query", views) | handed("key", keys)
        return terms | handing | {"full": torch.tensor([full])}  # on the CPU: asked for once a step

    def _contrast(self, query: Projected, keys: Projected, memory: dict[str, Tensor], full: bool) -> dict[str, Tensor]:
        pairs = cross_level(query, keys, memory)
        if not full:
            return contrast_terms(pairs, self.temperature)
        return self.mixer(pairs, self.temperature, self.place.rank, self.place.world)

    def after_step(self, outputs: dict[str, Tensor]) -> None:
        """Warm-up puts the keys into the banks, afterwards the banks climb; the key encoder follows."""
        keys = self.gathered_levels(outputs, "key")
        if outputs["full"].all():
            self._climb(self.gathered_levels(outputs, "query"), keys)
            self.encoders.follow()
        else:
            self._fill(keys)

    def _fill(self, keys: dict[str, Tensor]) -> None:
        start = int(self.filled)
        for level, bank in self.banks.items():
            bank.write(keys[level], start)
        end = min(start + len(keys["instance"]), self.memory_size)
        self.filled.fill_(end)
        self.encoders.reset() if end == self.memory_size else self.encoders.follow()

    def _climb(self, queries: dict[str, Tensor], keys: dict[str, Tensor]) -> None:
        views = len(self.attacks)
        for level, bank in self.banks.items():
            key = keys[level].repeat_interleave(views, dim=0)
            bank.climb([(queries[source].flatten(0, 1), key) for source, target in PAIRS if target == level])
