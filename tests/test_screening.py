"""Neighbours screened in 8 bits against every similarity in float64, one query at a time."""

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_modules.evaluation import knn, screening
from lightning_modules.evaluation.embedding import Embedding
from lightning_modules.evaluation.knn import KNN, comparable, directed
from lightning_modules.evaluation.screening import BLOCK, Screen, blocks, rounded

CLASSES = 7  # the last has no clip


def features(n: int, seed: int, width: int = 96, kind: str = "gaussian") -> Embedding:
    """gaussian: nothing in common. collapsed: cosines above .99, as of networks. spiky: a few axes hold nearly all."""
    source = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES - 1, (n,), generator=source)
    centres = torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(99))
    x = centres[labels] + torch.randn(n, width, generator=source)
    if kind == "collapsed":
        x = 0.2 * x + 3
    if kind == "spiky":
        x = x * torch.logspace(0, -2, width)
    return Embedding(x, labels, torch.arange(n))


def slowly(train: Embedding, queries: torch.Tensor, metric: str, k: int) -> tuple[np.ndarray, ...]:
    """Rows of the k nearest, the scores of every class and all similarities, in float64, query after query."""
    nearest, scores, all_similar = [], [], []
    rows, labels = train.vectors.double().numpy(), train.labels.numpy()
    for query in queries.double().numpy():
        if metric == "cosine":
            similar = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
        else:
            similar = rows @ query - (rows**2).sum(1) / 2
        all_similar.append(similar)
        nearest.append(np.argsort(-similar, kind="stable")[:k])
        scores.append([similar[labels == c].max() if (labels == c).any() else -np.inf for c in range(CLASSES)])
    return np.array(nearest), np.array(scores), np.array(all_similar)


def screen_of(train: Embedding, queries: torch.Tensor, metric: str) -> tuple[Screen, torch.Tensor]:
    return Screen(train.vectors, *comparable(train.vectors, metric), train.labels, CLASSES), directed(queries, metric)


@pytest.fixture
def small(monkeypatch):
    """Small sets leave larger shares in doubt: screened all the same."""
    monkeypatch.setattr(screening, "SPARSE", 1.0)
    monkeypatch.setattr(screening, "GAIN", 1.0)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("kind", ["gaussian", "collapsed", "spiky"])
def test_screened_neighbours_and_scores_are_those_of_every_similarity(kind, metric, small):
    train, queries = features(900, 0, kind=kind), features(150, 1, kind=kind).vectors
    screen, comparables = screen_of(train, queries, metric)
    found, scores = screen.search(comparables, 20)
    nearest, expected, similar = slowly(train, queries, metric, 20)
    # As near as the truly nearest, but for what float32 cannot tell apart.
    close = {"rtol": 0, "atol": 4e-7 * np.abs(similar).max()}
    np.testing.assert_allclose(*(np.take_along_axis(similar, rows, 1) for rows in (found.numpy(), nearest)), **close)
    assert (found.numpy() == nearest).mean() > 0.95 and all(len(set(row)) == 20 for row in found.tolist())
    np.testing.assert_allclose(scores.numpy(), expected, **close)
    assert np.isneginf(expected[:, -1]).all() and np.isfinite(expected[:, :-1]).all()


def test_few_pairs_are_left_the_nearest_among_them_and_estimates_alone_would_err(small):
    train, queries = features(3000, 0, 512), features(200, 1, 512).vectors
    screen, comparables = screen_of(train, queries, "cosine")
    pairs = screen.pairs(comparables, 20)
    assert 20 * 200 <= len(pairs.row) < 0.2 * 3000 * 200
    nearest, *_ = slowly(train, queries, "cosine", 20)
    held = [set(pairs.row[a:b].tolist()) for a, b in zip(pairs.first, pairs.first[1:], strict=False)]
    assert all(set(row) <= kept for row, kept in zip(nearest.tolist(), held, strict=True))
    rough = estimates(screen, comparables)[0].topk(20, dim=1).indices
    assert not all(set(row) == set(wrong) for row, wrong in zip(nearest.tolist(), rough.tolist(), strict=True))


def estimates(screen: Screen, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(Q, N) products of the centred rows in 8 bits, rows in their own order, and how far they may be off."""
    centred = queries - screen.centre
    integers, scale = rounded(centred, screen.dither[1])
    estimate = torch._int_mm(integers, screen.integers.T).double() * screen.scale * scale[:, None]
    doubt = screen.doubt(queries, centred.norm(dim=1), scale).repeat_interleave(BLOCK, 1)
    place = torch.cat([(screen.row == row).nonzero()[0] for row in range(len(screen.train))])
    return estimate[:, place], doubt[:, place]


@pytest.mark.parametrize("kind", ["gaussian", "collapsed", "spiky"])
def test_estimates_lie_within_their_bounds_which_are_not_idle(kind):
    """The largest of many errors is some deviations of a sum of independent roundings, the bound nine of the widest."""
    train, queries = features(1500, 2, kind=kind), features(400, 3, kind=kind).vectors
    screen, queries = screen_of(train, queries, "cosine")
    estimate, doubt = estimates(screen, queries)
    rows = screen.train * screen.weight[:, None]
    exact = (queries - screen.centre).double() @ (rows - screen.centre).double().T
    share = (estimate - exact).abs() / doubt
    assert 0.1 < share.max() < 0.9


def test_rounding_up_or_down_is_right_on_the_mean():
    x = torch.tensor([[127.0, 0.25, -3.5, 0.0], [0.0, 0.0, 0.0, 0.0]])
    source = torch.Generator().manual_seed(0)
    rounds = torch.stack([rounded(x, torch.rand(4, generator=source))[0] for _ in range(4000)]).double()
    torch.testing.assert_close(rounds.mean(0), x.double(), rtol=0, atol=5 / math.sqrt(4000) / 2)
    assert set(rounds[:, 0, 1].tolist()) == {0, 1} and set(rounds[:, 0, 2].tolist()) == {-4, -3}
    assert (rounds[:, 0, 0] == 127).all() and not rounds[:, 1].any()


def test_blocks_hold_every_row_once_and_one_class_each():
    labels = torch.tensor([2] * 70 + [0] * 32 + [3])
    row, classes = blocks(labels, 5)
    assert sorted(row[row >= 0].tolist()) == list(range(103)) and classes.tolist() == [0, 2, 2, 2, 3]
    for block, number in zip(row.view(-1, BLOCK), classes, strict=True):
        assert (labels[block[block >= 0]] == number).all()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_search_gives_the_same_screened_and_plain(metric, small, monkeypatch):
    train, queries = features(2000, 4, 256), features(300, 5, 256).vectors
    monkeypatch.setattr(knn, "CHUNK", 128)
    screened = []
    search = Screen.search
    monkeypatch.setattr(Screen, "search", lambda self, *args: screened.append(search(self, *args)) or screened[-1])
    plain = KNN(metric=metric).search(train, queries, CLASSES)
    assert not screened
    monkeypatch.setattr(knn, "worthwhile", lambda *_: True)
    ours = KNN(metric=metric).search(train, queries, CLASSES)
    assert len(screened) == 3 and None not in screened
    assert torch.equal(ours[0], plain[0]) and torch.equal(ours[1].argmax(1), ours[0][:, 0])
    torch.testing.assert_close(ours[1], plain[1], rtol=1e-5, atol=1e-6)


@pytest.fixture(params=["plain", "screened"])
def way(request, monkeypatch, small):
    monkeypatch.setattr(knn, "worthwhile", lambda *_: request.param == "screened")
    monkeypatch.setattr(knn, "plainly", None if request.param == "screened" else knn.plainly)


def test_clips_as_near_as_each_other_go_by_their_row_screened_and_plain(way):
    """Small whole numbers: float32 is exact, so that every label and score has to be the slow search's."""
    train, queries = features(900, 8, 24), features(200, 9, 24).vectors.round()
    train.vectors[:] = train.vectors.round()
    train.vectors[600:] = train.vectors[:300].flip(0)  # copies, of other labels
    found, scores = KNN(metric="euclidean").search(train, queries, CLASSES)
    nearest, expected, similar = slowly(train, queries, "euclidean", 20)
    ties = (np.sort(similar)[:, -1] == np.sort(similar)[:, -2]) & (found[:, 0] != train.labels[nearest[:, 1]]).numpy()
    assert ties.sum() > 20
    assert found.tolist() == train.labels[nearest].tolist()
    np.testing.assert_allclose(scores.numpy(), expected, rtol=2e-7)  # a tie's first has the next larger number
    assert torch.equal(scores.argmax(1), found[:, 0])


def test_of_exact_copies_the_first_is_the_nearest_screened_and_plain(way):
    """By cosine of numbers that float32 rounds."""
    train, queries = features(900, 8, 256), features(200, 9, 256).vectors
    train.vectors[450:] = train.vectors[:450].flip(0)
    found, scores = KNN().search(train, queries, CLASSES)
    nearest = slowly(Embedding(train.vectors[:450], train.labels[:450], train.ids[:450]), queries, "cosine", 10)[0]
    expected = train.labels[np.stack([nearest, 899 - nearest], axis=2).reshape(200, 20)]
    assert (expected[:, 0] != expected[:, 1]).sum() > 100
    assert torch.equal(found, expected) and torch.equal(scores.argmax(1), found[:, 0])


def test_lengths_of_rows_count_for_nothing_by_cosine_and_all_zero_rows_are_as_far_as_a_right_angle(way):
    train, queries = features(900, 8, 256), features(200, 9, 256).vectors
    expected = KNN().search(train, queries, CLASSES)
    train.vectors.mul_(2.0 ** (torch.arange(900) % 7 - 3)[:, None])  # exact: the answer is the same to the bit
    longer = KNN().search(train, queries, CLASSES)
    assert all(torch.equal(*pair) for pair in zip(longer, expected, strict=True))
    train.vectors[5], train.labels[5] = 0, CLASSES - 1
    scores = KNN().search(train, queries, CLASSES)[1]
    assert (scores[:, -1] == 0).all() and (scores[:, :-1].amax(1) > 0).all()


class Largest(TorchDispatchMode):
    """Bytes of the largest memory that an operation makes within it."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        there = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if dense(x)}
        made = [x.untyped_storage() for x in tree_leaves(out) if dense(x)]
        self.most = max([self.most, *(x.nbytes() for x in made if x.data_ptr() not in there)])
        return out


def dense(x: object) -> bool:
    return isinstance(x, torch.Tensor) and x.layout is torch.strided


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_search_makes_no_copy_of_the_training_rows(metric, way):
    train, queries = features(9000, 0), features(24, 1).vectors
    with Largest() as memory:
        KNN(metric=metric).search(train, queries, CLASSES)
    assert 0 < memory.most < train.vectors.nbytes / 3


@pytest.mark.parametrize("strange", [0.0, torch.nan])
def test_a_query_that_tells_nothing_is_compared_with_every_row_and_the_others_are_screened(strange, monkeypatch):
    monkeypatch.setattr(screening, "SPARSE", 0.6)
    train, queries = features(3000, 10, 512), features(100, 11, 512).vectors
    queries[[7, 40]] = strange
    screen, comparables = screen_of(train, queries, "cosine")
    pairs = screen.pairs(comparables, 20)
    assert (pairs.first.diff() == 0).nonzero()[:, 0].tolist() == [7, 40]
    assert pairs.padded(pairs.row.float())[0].shape[1] <= 0.6 * 3000
    plain = KNN().search(train, queries, CLASSES)
    found, scores = screen.search(comparables, 20)
    assert torch.equal(train.labels[found], plain[0])
    torch.testing.assert_close(scores, plain[1], rtol=1e-5, atol=1e-6, equal_nan=True)
    if strange == 0:
        assert found[7].tolist() == list(range(20))


@pytest.mark.parametrize("strange", ["equal", "not finite"])
def test_where_nothing_can_be_left_out_the_plain_search_answers(strange, monkeypatch):
    train, queries = features(800, 6), features(300, 7).vectors
    if strange == "equal":
        train.vectors[:] = train.vectors[:1].clone()
    else:
        train.vectors[400:410] = torch.nan
    plain = KNN().search(train, queries, CLASSES)
    tried = []
    search = Screen.search
    monkeypatch.setattr(Screen, "search", lambda self, *args: tried.append(search(self, *args)) or tried[-1])
    monkeypatch.setattr(knn, "worthwhile", lambda *_: True)
    monkeypatch.setattr(knn, "CHUNK", 100)
    ours = KNN().search(train, queries, CLASSES)
    assert tried == [None]
    assert torch.equal(ours[0], plain[0])
    torch.testing.assert_close(ours[1], plain[1], rtol=1e-5, atol=1e-6, equal_nan=True)


def test_only_large_searches_in_float32_are_screened(monkeypatch):
    monkeypatch.setattr(screening, "fast", lambda: True)
    row = torch.zeros(1)
    train, queries = row.expand(40_091, 4096), row.expand(16_487, 4096)
    assert screening.worthwhile(train, queries)
    assert not screening.worthwhile(train[:1020], queries[:464])
    assert not screening.worthwhile(train.double(), queries.double()[:1])
    widest = row.expand(40_091, 133_144)  # 127 * 127 * 133,144 is the last product of 31 bits
    assert screening.worthwhile(widest, row.expand(16_487, 133_144))
    assert not screening.worthwhile(row.expand(40_091, 133_145), row.expand(16_487, 133_145))
    monkeypatch.setattr(screening, "fast", lambda: False)
    assert not screening.worthwhile(train, queries)
