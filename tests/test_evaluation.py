"""Frozen protocols against scikit-learn and against what they must find on data made for it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from toys import ToyMethod, toy_data, write_toy_stores

from datamodules.errors import InputError
from lightning_modules.evaluation.embedding import Embedding, cached, coordinates, embed
from lightning_modules.evaluation.fusion import fused
from lightning_modules.evaluation.knn import KNN, neighbours, vote
from lightning_modules.evaluation.linear import LinearProbe, standardise
from lightning_modules.evaluation.measured import confusion, top1
from lightning_modules.evaluation.ranking import led, nearest, nearest_of_class
from lightning_modules.evaluation.subject import Subject
from lightning_modules.schedules import StepDecay


class Given:
    """A subject whose embeddings are there already."""

    num_classes = 4

    def __init__(self, train: Embedding, test: Embedding):
        self.sides = {"train": train, "test": test}

    def embedding(self, side):
        return self.sides[side]

    def label_rows(self, fraction):
        return self.sides["train"].ids[: round(fraction * len(self.sides["train"].ids))]


def clouds(n: int, seed: int, spread: float = 1.0) -> Embedding:
    source = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4
    centres = 2 * torch.eye(4).repeat(1, 3)
    return Embedding(centres[labels] + spread * torch.randn(n, 12, generator=source), labels, torch.arange(n))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_knn_equals_scikit_learn(metric):
    train, test = clouds(200, 0), clouds(90, 1)
    found = KNN(ks=(1, 5, 20), metric=metric).measure(Given(train, test))
    assert top1(found.scores) == found.metrics["k1"]
    for k in (1, 5, 20):
        theirs = KNeighborsClassifier(k, metric=metric, algorithm="brute").fit(train.vectors, train.labels)
        assert found.metrics[f"k{k}"] == pytest.approx(100 * theirs.score(test.vectors, test.labels), abs=1e-4)
    assert 50 < found.metrics["k1"] < 100


def test_chunks_do_not_change_neighbours():
    train, test = clouds(50, 0).vectors, clouds(33, 1).vectors
    assert torch.equal(neighbours(train, test, 5, "cosine", chunk=7), neighbours(train, test, 5, "cosine"))


def test_a_tied_vote_goes_to_the_smallest_class():
    assert vote(torch.tensor([[3, 1, 1, 3], [2, 0, 2, 1]]), 4).tolist() == [1, 2]


def test_more_neighbours_than_clips_is_said():
    with pytest.raises(InputError, match="k=20 neighbours asked of 8"):
        KNN().measure(Given(clouds(8, 0), clouds(4, 1)))


def probe(**kwargs) -> LinearProbe:
    return LinearProbe(**({"epochs": 30, "lr": 0.1, "batch_size": 32, "schedule": StepDecay((20,))} | kwargs))


def test_linear_probe_separates_what_a_line_separates():
    found = probe().measure(Given(clouds(400, 0, 0.3), clouds(100, 1, 0.3)))
    assert found.metrics == {"top1": 100, "labels": 400} and top1(found.scores) == 100
    labels = torch.arange(400).flip(0) % 4
    nonsense = Embedding(torch.randn(400, 12, generator=torch.Generator().manual_seed(0)), labels, torch.arange(400))
    assert probe().measure(Given(nonsense, clouds(400, 1))).metrics["top1"] < 45


def test_linear_probe_is_a_function_of_its_seed_and_uses_only_the_labels_it_may():
    given = Given(clouds(400, 0), clouds(100, 1))
    first, again = probe().measure(given), probe().measure(given)
    assert first.metrics == again.metrics and torch.equal(first.scores.vectors, again.scores.vectors)
    few = probe(fraction=0.05).measure(given)
    assert few.metrics["labels"] == 20 and few.best["top1"] >= few.metrics["top1"] == top1(few.scores)
    damaged = clouds(400, 0)
    damaged.vectors[20:] = 1e6
    assert probe(fraction=0.05).measure(Given(damaged, clouds(100, 1))).metrics == few.metrics


def test_standardising_by_the_training_side_keeps_constant_features_at_zero():
    train, test = torch.randn(50, 3), torch.randn(20, 3)
    train[:, 1] = test[:, 1] = 7.0
    ours, theirs = standardise(train, test)
    assert torch.allclose(ours.mean(0), torch.zeros(3), atol=1e-5) and not ours[:, 1].any() and not theirs[:, 1].any()
    np.testing.assert_allclose(ours[:, 0].std(correction=0), 1, rtol=1e-5)


def test_scores_of_nearest_neighbours_leave_out_classes_without_a_clip():
    similarity = torch.tensor([[0.1, 0.9, 0.5], [-0.2, -0.4, -0.3]])
    scores = nearest_of_class(similarity, torch.tensor([2, 0, 2]), 4)
    assert scores.tolist() == [
        pytest.approx([0.9, -torch.inf, 0.5, -torch.inf]),
        pytest.approx([-0.4, -torch.inf, -0.2, -torch.inf]),
    ]


def test_equal_neighbours_come_in_the_order_of_their_rows():
    source = torch.Generator().manual_seed(0)
    similarity = torch.randint(0, 6, (40, 60), generator=source).float()
    similarity[0], similarity[1, 50:] = 1, 9
    for k in (1, 7, 60):
        expected = np.argsort(-similarity.numpy(), axis=1, kind="stable")[:, :k]
        assert nearest(similarity, k).tolist() == expected.tolist()


def test_the_largest_score_is_that_of_the_nearest_clip_where_classes_tie():
    scores = torch.tensor([[0.5, 0.9, 0.9], [0.5, 0.2, -torch.inf], [1.0, 1.0, 1.0]])
    found = led(scores, torch.tensor([2, 0, 1]))
    assert found.argmax(1).tolist() == [2, 0, 1] and torch.equal(found[1], scores[1])
    torch.testing.assert_close(found, scores, rtol=2e-7, atol=0)


def scored(*rows: list[float], labels=(0, 1, 2)) -> Embedding:
    return Embedding(torch.tensor(rows), torch.tensor(labels), torch.arange(len(labels)))


def test_fused_scores_are_the_weighted_sum():
    joint = scored([1.0, 0, 0], [1.0, 0, 0], [0, 0, 1.0])
    motion = scored([0, 2.0, 0], [0, 2.0, 0], [0, 0, 0.5])
    both = fused({"joint": joint, "motion": motion}, {"joint": 0.6, "motion": 0.4})
    torch.testing.assert_close(both.vectors, torch.tensor([[0.6, 0.8, 0], [0.6, 0.8, 0], [0, 0, 0.8]]))
    assert top1(both) == pytest.approx(100 * 2 / 3)
    alone = fused({"joint": joint}, {"joint": 0.6})
    assert top1(alone) == top1(joint)


def test_streams_of_other_clips_or_without_weight_are_not_fused():
    joint = scored([1.0, 0, 0], [1.0, 0, 0], [0, 0, 1.0])
    with pytest.raises(InputError, match="positive weights"):
        fused({"joint": joint}, {"joint": 0.0})
    with pytest.raises(InputError, match="same clips, see bone"):
        fused({"joint": joint, "bone": replace(joint, ids=joint.ids + 1)}, {"joint": 1.0, "bone": 1.0})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return toy_data(write_toy_stores(tmp_path_factory.mktemp("stores")))


def test_an_embedding_is_computed_once_and_read_afterwards(data, tmp_path):
    calls = []

    def backbone():
        calls.append(1)
        torch.manual_seed(0)
        return ToyMethod()

    def subject(key):
        return Subject("toy", key, tmp_path, tmp_path, data, 60, trainer={}, make_data=toy_data, make_backbone=backbone)

    first, again = subject("key").embedding("train"), subject("key").embedding("train")
    assert len(calls) == 1 and first.vectors.shape == (33, 16)
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in ("vectors", "labels", "ids"))
    other = subject("other key").embedding("train")
    assert len(calls) == 2 and torch.equal(other.vectors, first.vectors)


def test_the_cache_is_not_asked_with_another_key(tmp_path):
    path = tmp_path / "e.safetensors"
    one, two = clouds(8, 0), clouds(8, 1)
    cached(path, "one", lambda: one)
    assert torch.equal(cached(path, "one", lambda: two).vectors, one.vectors)
    assert torch.equal(cached(path, "two", lambda: two).vectors, two.vectors)


def test_coordinates_know_the_class_and_not_the_padding(data):
    batch = next(iter(data.ordered("train")))
    padded = batch._replace(joints=torch.cat([batch.joints, torch.zeros_like(batch.joints)], dim=2))
    assert torch.equal(coordinates(batch), coordinates(padded))
    embedding = embed(coordinates, data.ordered("train"), torch.device("cpu"), "coordinates")
    assert embedding.vectors.shape == (33, 3 * 32 * 25 * 2)


def test_confusion_counts_clips_by_label_and_prediction():
    scores = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]])
    found = confusion(Embedding(scores, torch.tensor([0, 0, 2, 2]), torch.arange(4)))
    assert found == [[1, 1, 0], [0, 0, 0], [1, 0, 1]]
