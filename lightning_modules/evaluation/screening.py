"""Nearest neighbours among many: similarities screened in 8 bits, those that could matter computed in float32.

Products of 8 bits are exact integers and, where the processor has them, several times as fast as those of float32.
What the rounding of features to 8 bits can do to a similarity is bounded, so that only what cannot be among the nearest
is left out and the answer is the one of float32, up to float32's own rounding: it is summed in another order here.
"""

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_modules.evaluation.ranking import nearest, plainly, similarities

LARGEST = 127
BLOCK = 32  # training rows of one class that share a bound
ROWS = 2048  # rounded at once
SLACK = 2.0**-18  # of the product of the norms: more than float32 rounds sums of some thousand numbers by
# A similarity lies outside its bound with a probability below this, by the choice of the rounding alone: in the 6.6e8
# of NTU RGB+D 60 one does with less than 1e-9.
CHANCE = 1e-18
WIDTH = math.sqrt(math.log(2 / CHANCE) / 2)
SEED = 7_402_915_538_261  # of no other draw: features made of the same numbers would not be independent of them
WORTH = 2**39  # multiplications; of noisy classes screening lost at 2**37 of them and won at 2**41
SPARSE = 1 / 32  # where more of a query's pairs are in doubt, its plain product is faster
GAIN = 1 / 2  # of the plain work: with more of it left, the 8 bits before cost what they save
FAST = ("avx512_vnni", "avx_vnni", "amx_int8")


def fast() -> bool:
    """Whether this processor multiplies 8-bit integers faster than float32."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in FAST) and hasattr(torch, "_int_mm")


def worthwhile(train: Tensor, queries: Tensor) -> bool:
    """Whether screening could save time for (N, D) training rows and (Q, D) queries."""
    known = train.dtype == queries.dtype == torch.float32 and train.device.type == "cpu"
    summable = train.shape[1] * LARGEST**2 < 2**31  # in the 32 bits of an integer product
    return known and summable and train.numel() * len(queries) >= WORTH and fast()


def rounded(x: Tensor, dither: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (N, D) as (N, D) int8 and (N,) scales: scale * integer is x on the mean over dither, uniform in [0, 1).

    A number goes to one of its two neighbours, so that it is off by less than the scale.
    """
    scale = (x.abs().amax(1) / LARGEST).clamp(min=1e-30)
    integers = [
        torch.floor(part / part_scale[:, None] + dither).clamp_(-LARGEST, LARGEST).to(torch.int8)
        for part, part_scale in zip(x.split(ROWS), scale.split(ROWS), strict=True)
    ]
    return torch.cat(integers), scale


class Pairs(NamedTuple):
    """What could matter to query q: `row[first[q]:first[q + 1]]`, ascending positions of training rows.

    None for a query of which too many or too few were left: it is open.
    """

    first: Tensor
    row: Tensor

    def similarities(self, queries: Tensor, train: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
        """(pairs,) products in float32, times weight (N,), offset (N,) subtracted.

        Row after row: each training row is read once, the queries of a chunk stay in the processor's cache.
        """
        by_row = (self.row * len(queries) + self.query()).sort()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*beta state.*")  # this layout's, told once
            wanted = torch.sparse_csr_tensor(
                firsts(torch.bincount(self.row, minlength=len(train))),
                by_row.values % len(queries),
                torch.zeros(len(self.row)),
                (len(train), len(queries)),
                check_invariants=False,
            )
        products = torch.sparse.sampled_addmm(wanted, train, queries.T, beta=0).values()
        products = torch.empty_like(products).index_put_((by_row.indices,), products)
        return products * weight[self.row] - offset[self.row]

    def query(self) -> Tensor:
        """(pairs,) number of the query of each pair."""
        return torch.repeat_interleave(self.first.diff())

    def padded(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(Q, most) values of the pairs of each query, -inf after its last, and the rows that they belong to.

        most is at most the share SPARSE of the training rows.
        """
        query = self.query()
        at = query, torch.arange(len(query)) - self.first[query]
        shape = len(self.first) - 1, int(self.first.diff().max())
        return values.new_full(shape, -torch.inf).index_put_(at, values), self.row.new_zeros(shape).index_put_(
            at, self.row
        )


class Screen:
    """Training rows (N, D) in 8 bits. A similarity is x . y - offset[y], of it all that a query compares counts.

    y is a row of `train` times its weight: weighted rows are made in parts and only to be rounded, float32's products
    are those of the rows as they are, multiplied afterwards. Norms and scales here are all of weighted rows.
    Both sides are first taken from the mean row m, which costs no more and leaves small numbers to be rounded:
    x . y = (x - m) . (y - m) + m . y + what y does not change. Each number is rounded up or down by chance, right on
    the mean. So the errors of a product's terms are independent, of mean 0 and each within a range of s |other
    factor|, s the row's scale, and by Hoeffding's inequality (twice, the errors of x given) the product is off by
    more than WIDTH sqrt(s_x^2 |y|^2 + s_y^2 (|x| + s_x sqrt D)^2) with a probability below CHANCE.

    weight, offset: (N,). labels: (N,) classes. Rows of a class stand side by side, in blocks, so that the nearest of
    each class is found.
    """

    def __init__(
        self, train: Tensor, weight: Tensor, offset: Tensor, labels: Tensor, num_classes: int, seed: int = SEED
    ):
        source = torch.Generator().manual_seed(seed)
        self.train, self.weight, self.offset = train, weight, offset
        self.labels, self.num_classes = labels, num_classes
        self.centre = weight @ train / len(train)
        self.dither = torch.rand(2, train.shape[1], generator=source)
        self.row, self.block_class = blocks(labels, num_classes)
        self._round()

    def _round(self) -> None:
        """The 8-bit rows in the order of the blocks, and for each block its largest norm and scale."""
        present = self.row >= 0
        place = self.row.clamp(min=0)
        parts, scales, norms = [], [], []
        for rows in place.split(ROWS):
            centred = self.train[rows].mul_(self.weight[rows, None]).sub_(self.centre)
            integers, scale = rounded(centred, self.dither[0])
            parts.append(integers)
            scales.append(scale)
            norms.append(centred.norm(dim=1))
        self.integers, self.scale, norm = torch.cat(parts), torch.cat(scales), torch.cat(norms)
        shift = self.train @ self.centre * self.weight - self.offset
        self.shift = torch.where(present, shift[place], -torch.inf)
        self.block_scale, self.block_norm = self.scale.view(-1, BLOCK).amax(1), norm.view(-1, BLOCK).amax(1)
        self.slack = SLACK * float((self.train.norm(dim=1) * self.weight).max()), SLACK * float(self.offset.abs().max())

    def pairs(self, queries: Tensor, k: int) -> Pairs | None:
        """For each query (Q, D) every row that may be among its k nearest or the nearest of a class.

        None where they are too many of too many queries to gain by it.
        """
        if len(self.block_class) < k:
            return None
        centred = queries - self.centre
        integers, scale = rounded(centred, self.dither[1])
        # In units of the query's scale. It, and what y does not change, order nothing.
        estimate = torch._int_mm(integers, self.integers.T).float().mul_(self.scale).addr_(1 / scale, self.shift)
        doubt = self.doubt(queries, centred.norm(dim=1), scale) / scale[:, None]
        largest = estimate.view(len(queries), -1, BLOCK).amax(2)
        sure = largest - doubt  # no less than this is the block's largest
        kth = sure.topk(k, dim=1).values[:, -1:]
        of_class = sure.new_full((len(queries), self.num_classes), -torch.inf)
        of_class.scatter_reduce_(1, self.block_class.expand_as(sure), sure, "amax")
        least = torch.minimum(kth, of_class[:, self.block_class]) - doubt
        return self._inside(estimate, largest, least, k)

    def doubt(self, queries: Tensor, norm: Tensor, scale: Tensor) -> Tensor:
        """(Q, blocks) how far estimates may be from float32's similarities, by norms and scales (Q,) of the centred."""
        reach = norm + scale * math.sqrt(queries.shape[1])
        by_chance = torch.hypot(scale[:, None] * self.block_norm, reach[:, None] * self.block_scale)
        return WIDTH * by_chance + (self.slack[0] * queries.norm(dim=1) + self.slack[1])[:, None]

    def _inside(self, estimate: Tensor, largest: Tensor, least: Tensor, k: int) -> Pairs | None:
        """Pairs whose estimate is at least what their block asks."""
        block = (largest >= least).flatten().nonzero()[:, 0]
        query = block // largest.shape[1]
        inside = estimate.view(-1, BLOCK)[block] >= least.flatten()[block, None]
        number = torch.bincount(query, inside.sum(1), minlength=len(largest))
        share = number / (SPARSE * len(self.train))
        opened = (share > 1) | (number < k)  # fewer than k: not finite
        if float(torch.where(opened, 1, share).mean()) >= GAIN:
            return None
        found = (inside & ~opened[query, None]).nonzero()
        block, query = block[found[:, 0]], query[found[:, 0]]
        row = self.row[block % largest.shape[1] * BLOCK + found[:, 1]]
        in_order = (query * len(self.train) + row).sort().values
        return Pairs(firsts(torch.bincount(query, minlength=len(largest))), in_order % len(self.train))

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
        """(Q, k) rows nearest to queries (Q, D), nearest first, and (Q, classes) similarity to the nearest of a class.

        Of equally near rows the lowest comes first. -inf for a class without a row. Open queries are compared with
        every row. None where screening gains nothing (`pairs`).
        """
        pairs = self.pairs(queries, k)
        if pairs is None:
            return None
        exact = pairs.similarities(queries, self.train, self.weight, self.offset)
        values, rows = pairs.padded(exact)
        found = rows.gather(1, nearest(values, k))
        scores = exact.new_full((len(queries) * self.num_classes,), -torch.inf)
        scores.scatter_reduce_(0, pairs.query() * self.num_classes + self.labels[pairs.row], exact, "amax")
        scores, opened = scores.view(len(queries), -1), pairs.first.diff() == 0
        if opened.any():
            similarity = similarities(queries[opened], self.train, self.weight, self.offset)
            found[opened], scores[opened] = plainly(similarity, self.labels, self.num_classes, k)
        return found, scores


def firsts(counts: Tensor) -> Tensor:
    """(N + 1,) where each of N groups that lie one behind the other begins, and the end; counts: (N,) their sizes."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def blocks(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """(blocks * BLOCK,) positions of the rows, class after class, -1 where a block ends early; (blocks,) classes."""
    counts = torch.bincount(labels, minlength=num_classes)
    number = (counts + BLOCK - 1) // BLOCK
    start = (number * BLOCK).cumsum(0) - number * BLOCK
    order = labels.argsort(stable=True)
    within = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    row = labels.new_full((int(number.sum()) * BLOCK,), -1)
    row[start[labels[order]] + within] = order
    return row, torch.repeat_interleave(number)
