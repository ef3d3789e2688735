"""Neighbours screened in 8 bits against every similarity in float64, one query at a time."""

import math

import numpy as np
import pytest
import torch

from lightning_modules.evaluation import knn, screening
from lightning_modules.evaluation.embedding import Embedding
from lightning_modules.evaluation.knn import KNN, comparable
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
        nearest.append(np.argsort(-similar)[:k])
        scores.append([similar[labels == c].max() if (labels == c).any() else -np.inf for c in range(CLASSES)])
    return np.array(nearest), np.array(scores), np.array(all_similar)


def screen_of(train: Embedding, queries: torch.Tensor, metric: str) -> tuple[Screen, torch.Tensor]:
    rows, queries, offset = comparable(train.vectors, queries, metric)
    return Screen(rows, offset, train.labels, CLASSES), queries


@pytest.fixture
def small(monkeypatch):
    """Small sets leave larger shares in doubt: screened all the same."""
    monkeypatch.setattr(screening, "SPARSE", 1.0)


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
    exact = (queries - screen.centre).double() @ (screen.train - screen.centre).double().T
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
    assert torch.equal(ours[0], plain[0])
    torch.testing.assert_close(ours[1], plain[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strange", ["equal", "not finite"])
def test_where_nothing_can_be_left_out_the_plain_search_answers(strange, monkeypatch):
    train, queries = features(800, 6), features(300, 7).vectors
    if strange == "equal":
        train.vectors[:] = train.vectors[:1].clone()
    else:
        queries[40:50] = torch.nan
    plain = KNN().search(train, queries, CLASSES)
    tried = []
    search = Screen.search
    monkeypatch.setattr(Screen, "search", lambda self, *args: tried.append(search(self, *args)) or tried[-1])
    monkeypatch.setattr(knn, "worthwhile", lambda *_: True)
    monkeypatch.setattr(knn, "CHUNK", 100)
    ours = KNN().search(train, queries, CLASSES)
    assert tried == [None]
    torch.testing.assert_close(ours[1], plain[1], rtol=1e-5, atol=1e-6, equal_nan=True)


def test_only_large_searches_in_float32_are_screened(monkeypatch):
    monkeypatch.setattr(screening, "fast", lambda: True)
    row = torch.zeros(1)
    train, queries = row.expand(40_091, 4096), row.expand(16_487, 4096)
    assert screening.worthwhile(train, queries)
    assert not screening.worthwhile(train[:1020], queries[:464])
    assert not screening.worthwhile(train.double(), queries.double()[:1])
    monkeypatch.setattr(screening, "fast", lambda: False)
    assert not screening.worthwhile(train, queries)
