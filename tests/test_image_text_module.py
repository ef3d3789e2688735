"""The image-text DataModule: who holds what, what is shown, and in which order."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
import torch

from datamodules.errors import InputError
from datamodules.image_text.batch import ImageTextBatch
from datamodules.image_text.modality import Aligned, CrossModal, Hybrid, Missing
from datamodules.image_text.module import CONDITIONS, ImageTextDataModule
from datamodules.image_text.prompts import Prompts
from datamodules.image_text.readers.hateful_memes import HatefulMemes
from datamodules.image_text.sample import Corpus, Sample
from datamodules.miniature.memes import write_memes
from datamodules.partition import IID, ByAttribute, Dirichlet, Pooled

PROMPTS = Prompts(text="caption {text}", question="bad?", answer="{name}", names=("no", "yes"))
THREE = Prompts(text="caption {text}", question="bad?", answer="{name}", names=("no", "yes", "perhaps"))
GOLDEN = json.loads((Path(__file__).parent / "golden" / "heterogeneity.json").read_text())


class Recorder:
    """An `Encode` that keeps what it was given; a batch holds how long prompts and answers are."""

    def __init__(self):
        self.calls = []

    def __call__(self, prompts, images, answers) -> ImageTextBatch:
        self.calls.append((prompts, images, answers))
        ids = torch.tensor([[len(prompt)] for prompt in prompts])
        return ImageTextBatch(ids, torch.ones_like(ids), ids, {}, (), torch.full((len(prompts),), -1))


def plain(samples: list[Sample], options=("not-hateful", "hateful"), **changes) -> Corpus:
    task = "classification" if options else "generation"
    facts = {"name": "toy", "title": "Toy", "task": task, "miniature": True, "fingerprint": "f", "test": samples[:4]}
    return Corpus(options=options, train=samples, **(facts | changes))


def toy(labels=(0, 1) * 12, **changes) -> Corpus:
    samples = [
        Sample(f"m{number}", None, f"text {number}", "?", label, group=f"event{number % 3}")
        for number, label in enumerate(labels)
    ]
    return plain(samples, **changes)


def module(corpus=None, encode=None, **settings) -> ImageTextDataModule:
    settings = {"partition": Pooled(), "scenario": Aligned(), "batch_size": 5, "seed": 3} | settings
    return ImageTextDataModule(
        corpus or toy(), settings.pop("prompts", PROMPTS), encode=encode or Recorder(), **settings
    )


@pytest.fixture(scope="module")
def memes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memes") / "raw"
    write_memes(folder, train=40, dev=8, test=12)
    return HatefulMemes().read(folder)


def ids(loader, epoch=0) -> list[str]:
    loader.sampler.set_epoch(epoch)
    return [name for batch in loader for name in batch.ids]


def test_a_batch_is_what_the_model_is_to_learn(memes):
    encode = Recorder()
    data = module(memes, encode, batch_size=16)
    batches = list(data.train_dataloader())
    assert [len(batch.ids) for batch in batches] == [16, 16, 8]
    by_id = {sample.id: sample for sample in memes.train}
    for batch, (prompts, images, answers) in zip(batches, encode.calls, strict=True):
        samples = [by_id[name] for name in batch.ids]
        assert prompts == [f"caption {sample.text}\nbad?" for sample in samples]
        assert answers == [("no", "yes")[sample.label] for sample in samples]
        assert batch.classes.tolist() == [sample.label for sample in samples]
        assert all(image.size == (64, 64) and image.mode == "RGB" for image in images)


def test_a_set_of_one_class_has_no_curve_and_is_told_by_name():
    module(toy()).check_classes("test")
    module(toy(labels=(1,) * 4, options=("a", "b", "c")), prompts=THREE).check_classes("test")
    told = "expected samples of not-hateful and hateful in the set 'test', found 4 of one class; complete"
    with pytest.raises(InputError, match=told):
        module(toy(labels=(1,) * 4)).check_classes("test")
    module(toy(labels=(1,) * 4, test=[]), partial=True).check_classes("test")  # a side that is elsewhere


def test_order_is_a_function_of_seed_and_epoch():
    data = module()
    first = ids(data.train_dataloader(0, seed=7))
    assert sorted(first) == sorted(f"m{number}" for number in range(24))
    assert first == ids(data.train_dataloader(0, seed=7)) == ids(module().train_dataloader(0, 7))
    others = [ids(data.train_dataloader(0, seed=8)), ids(data.train_dataloader(0, seed=7), epoch=1)]
    assert first not in others and others[0] != others[1]
    assert ids(data.train_dataloader()) == ids(data.train_dataloader(0, seed=3))  # the run's own seed


def test_workers_change_nothing(memes):
    one, two = (module(memes, _lengths, num_workers=workers, batch_size=16) for workers in (0, 2))
    for left, right in zip(one.train_dataloader(), two.train_dataloader(), strict=True):
        assert left.ids == right.ids and torch.equal(left.input_ids, right.input_ids)


def _lengths(prompts, images, answers) -> ImageTextBatch:
    return Recorder()(prompts, images, answers)


def test_golden_heterogeneity_through_the_module():
    rows = GOLDEN["manifest"]
    samples = [Sample(row["id"], None, "x", "?", row["label"]) for row in rows]
    scenarios = {
        "missing/rate0.4": Missing(0.4),
        "cross_modal/image_clients5": CrossModal(5),
        "hybrid/rate0.3": Hybrid(0.3),
    }
    for name, scenario in scenarios.items():
        data = module(plain(samples), partition=Dirichlet(0.5, 10), scenario=scenario)
        for client in range(10):
            held, shown = data._held[client]
            found = [[samples[row].id, *mask] for row, mask in zip(held, shown.astype(int).tolist(), strict=True)]
            assert found == GOLDEN[name][str(client)]


def test_masks_decide_what_is_shown(memes):
    encode = Recorder()
    data = module(memes, encode, partition=IID(4), scenario=CrossModal(2))
    kinds = []
    for client in range(data.clients):
        encode.calls.clear()
        assert len(ids(data.train_dataloader(client, 0))) == data.num_samples(client) == 10
        kinds.append(
            {
                (image is not None, prompt.startswith("caption"))
                for prompts, images, _ in encode.calls
                for prompt, image in zip(prompts, images, strict=True)
            }
        )
    assert Counter(map(frozenset, kinds)) == {frozenset({(True, False)}): 2, frozenset({(False, True)}): 2}


def test_test_sets_show_both_or_what_is_asked(memes):
    encode = Recorder()
    data = module(memes, encode, partition=IID(4), scenario=Missing(1.0), eval_batch_size=5)
    assert data.sides == ("test", "dev_seen")
    for condition, (image_there, text_there) in CONDITIONS.items():
        encode.calls.clear()
        found = [name for batch in data.ordered("test", condition) for name in batch.ids]
        assert found == [sample.id for sample in memes.test]
        for prompts, images, answers in encode.calls:
            assert answers is None
            assert all((image is not None) == image_there for image in images)
            assert all(prompt == "bad?" or text_there for prompt in prompts)
    assert next(iter(data.ordered("dev_seen", answers=True))) and encode.calls[-1][2] is not None


def test_samples_that_ask_the_same_are_asked_once(memes):
    data = module(memes, partition=IID(4), eval_batch_size=5)
    for condition, (image_there, text_there) in CONDITIONS.items():
        loader, place = data.distinct("test", condition)
        ids = [name for batch in loader for name in batch.ids]
        asked = [(s.image if image_there else None, s.text if text_there else None) for s in memes.test]
        assert len(ids) == len(set(asked)) == max(place) + 1 and len(place) == len(memes.test)
        question_of = dict(zip((sample.id for sample in memes.test), asked, strict=True))
        assert [question_of[ids[at]] for at in place] == asked
        assert ids == sorted(ids, key=list(question_of).index)  # the first to ask, in the order of the file
    assert len(data.distinct("test", "neither")[0]) == 1 and len(data.distinct("test", "both")[1]) == len(memes.test)


def test_pooling_keeps_what_every_client_shows(memes):
    apart = module(memes, partition=IID(4), scenario=CrossModal(2))
    pooled = module(memes, partition=IID(4), scenario=CrossModal(2), pooled=True)
    assert pooled.clients == 1 and pooled.num_samples(0) == 40 == pooled.counts["train"]
    shown = Counter()
    for counts in apart.manifest()["shown"]:
        shown.update(counts)
    assert pooled.manifest()["shown"] == [dict(shown)]
    assert apart.fingerprint != pooled.fingerprint
    assert sorted(ids(apart.train_dataloader())) == sorted(ids(pooled.train_dataloader(0, 1)))


def test_a_pair_of_sets_is_dropped_whole_not_stripped(memes):
    cards = [Sample(f"card{number}", None, f"what is {number}?", "?", 0) for number in range(20)]
    corpus = plain([*memes.train, *cards])
    encode = Recorder()
    rule = IID(4, within="pictured")  # every client gets ten memes and five cards, and then drops one of the two
    data = module(corpus, encode, partition=rule, scenario=CrossModal(1), paired=True)
    kinds = []
    for client in range(4):
        encode.calls.clear()
        names = ids(data.train_dataloader(client, 0))
        kinds.append({name.startswith("card") for name in names})
        assert all(prompt.startswith("caption") for prompts, _, _ in encode.calls for prompt in prompts)
    assert sorted(map(sorted, kinds)) == [[False], [True], [True], [True]]
    assert sorted(data.manifest()["held"]) == [5, 5, 5, 10] and data.manifest()["sizes"] == [15] * 4


def test_the_manifest_is_plain_and_says_it_all(memes):
    told = module(memes, partition=IID(4), scenario=Missing(0.5), batch_size=4).manifest()
    assert json.loads(json.dumps(told)) == told
    assert told["sizes"] == told["held"] == [10] * 4 and told["miniature"] and 0 <= told["skew"] <= 1
    assert told["settings"]["seed"] == 41 and told["scenario"] == {
        "kind": "Missing",
        "settings": {"rate": 0.5, "seed": 42},
    }
    assert all(sum(counts.values()) == 10 for counts in told["shown"])
    other = module(memes, partition=IID(4), scenario=Missing(0.5, seed=1)).manifest()
    assert other["masks_digest"] != told["masks_digest"] and other["digest"] == told["digest"]


def test_what_is_not_there_is_not_counted_as_shown():
    shown = module(toy(), scenario=Aligned()).manifest()["shown"]
    assert shown == [{"both": 0, "image only": 0, "text only": 24, "neither": 0}]


def test_clients_by_event():
    data = module(partition=ByAttribute("groups"))
    assert [data.num_samples(client) for client in range(data.clients)] == [8, 8, 8]
    assert data.manifest()["kind"] == "ByAttribute"


def test_the_fingerprint_is_of_corpus_partition_and_masks():
    kinds = [
        module(),
        module(toy(fingerprint="g")),
        module(partition=IID(2)),
        module(partition=IID(2), scenario=Missing(0.5)),
        module(partition=IID(2), scenario=Missing(0.5, seed=1)),
    ]
    assert len({data.fingerprint for data in kinds}) == 5
    assert module().fingerprint == module(batch_size=7, eval_batch_size=9).fingerprint


def test_open_questions_have_no_class():
    samples = [Sample(f"q{number}", None, "where?", "left lung", None, closed=False) for number in range(8)]
    data = module(plain(samples, options=()), prompts=Prompts(text="{text}", question=""), partition=IID(2))
    batch = next(iter(data.train_dataloader(0, 0)))
    assert batch.classes.tolist() == [-1] * 4 and data.encode.calls[0][2] == ["left lung"] * 4


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: module(prompts=Prompts(text="{text}", question="?")), "for options"),
        (lambda: module(partition=Dirichlet(0.1, 9)), "expected a sample of label"),
        (lambda: module().ordered("valid"), "expected a set of train, test, found 'valid'"),
        (lambda: module().ordered("test", "text"), "condition of both, image only, text only, neither, found 'text'"),
        (lambda: module(toy(), scenario=CrossModal(1), paired=True), "samples for client 0, found none"),
    ],
)
def test_mistakes_are_told(make, told):
    with pytest.raises(InputError, match=told):
        make()


@pytest.mark.skipif("SKELFED_REALDATA" not in os.environ, reason="real data not given")
def test_the_real_hateful_memes_manifest_is_stable():
    corpus = HatefulMemes("text_only").read(Path(os.environ["SKELFED_REALDATA"]) / "hateful-memes")
    told = module(corpus, partition=Dirichlet(0.5, 10), scenario=Missing(0.5)).manifest()
    assert told["sizes"] == [523, 1433, 173, 30, 1014, 3, 4285, 123, 507, 409]
    assert told["skew"] == pytest.approx(0.2388, abs=1e-4)
    assert (told["digest"][:16], told["masks_digest"][:16]) == ("8a1039a5f590767a", "a2b52d65d01bc1c0")
    for scenario, pinned in ((CrossModal(5), "f4d3505ab5fe7ff4"), (Hybrid(0.4), "01337e8adabe75d9")):
        told = module(corpus, partition=Dirichlet(0.5, 10), scenario=scenario).manifest()
        assert (told["digest"][:16], told["masks_digest"][:16]) == ("8a1039a5f590767a", pinned)
