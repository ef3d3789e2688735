"""federate.py on a multimodal LLM: rows, exports, equalities, kill -9; all with a random model and a few memes."""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import toy_mllm
from omegaconf import OmegaConf
from peft import PeftModel
from toy_federation import elsewhere, same
from toy_mllm import TWO_ROUNDS, composed, write_model
from transformers import LlavaForConditionalGeneration

import federate
from datamodules.alone import alone_in
from datamodules.errors import InputError
from datamodules.miniature.folder import MARK
from datamodules.miniature.memes import write_memes
from federated.adapter import Adapter
from federated.client import Client
from federated.ledger import Ledger
from federated.seeding import seed_of, seeded
from federated.workloads.image_text import check_tone
from lightning_modules.mllm.answers import Asking, answer, score
from lightning_modules.mllm.text_floor import text_floor
from tracking import records
from tracking.build import build

root = toy_mllm.root


@pytest.fixture(scope="module")
def settings(root):
    """Composing takes longer than these rounds, so it is done once."""
    return composed(root, "federated/strategy=fedyogi", "federated.strategy.eta=0.01", *TWO_ROUNDS)


def launched(settings, *overrides: str) -> dict:
    return federate.main.run(OmegaConf.merge(settings, OmegaConf.from_dotlist(list(overrides))))


def state_of(result: dict, settings) -> dict:
    return Ledger(Path(result["folder"]) / "ledger.safetensors", result["key"]).resume().shared


@pytest.fixture(scope="module")
def uninterrupted(settings):
    return launched(settings)


def test_a_record_says_what_was_exchanged_and_how_it_answers(root, settings, uninterrupted):
    (record,) = records.find(root / "records", key=uninterrupted["key"])
    assert (record.kind, record.method, record.variant) == ("federated", "fedyogi", "")
    assert record.data["split"] == "missing_50" and record.data["name"] == "miniature, not Hateful Memes"
    size = sum(tensor.nbytes for tensor in state_of(uninterrupted, settings).values())
    # Two layers of width 16 with two heads of 8, one of keys and values: r 8 in and out of q, k, v, o, float32.
    assert size == 2 * 8 * ((16 + 16) + (16 + 8) + (16 + 8) + (16 + 16)) * 4
    assert record.metrics["bytes_up"] == record.metrics["bytes_down"] == 2 * 2 * size
    assert record.metrics["failed"] == 0 and record.data["lora"] == "8 modules in 2 of 2 layers"
    assert record.metrics["lora_gap_largest"] == max(gap for _, gap in record.curves["LoRA gap"]) > 0
    conditions = {name.partition(", ")[2] for name in record.metrics if name.startswith("auc_probability")}
    assert conditions == {"", "image only", "text only", "neither"}
    # Without anything to see every meme gets the same score.
    assert record.metrics["auc_probability, neither"] == 50


def test_samples_that_ask_the_same_are_answered_as_each_alone(settings):
    workload = build(settings.workload, config=settings)
    module = workload.module()
    measured = workload.evaluate(module)
    samples = {sample.id: sample for sample in workload.data.samples("test")}
    asking = Asking(workload.data.prompts.answers(workload.data.corpus.options), **settings.asking)
    for condition, named in ("both", ""), ("image only", ", image only"), ("text only", ", text only"):
        each = score(answer(module, workload.data.ordered("test", condition), asking), samples, asking)
        for name in ("accuracy", "macro_f1", "auc_probability"):
            assert measured[f"{name}{named}"] == pytest.approx(100 * each[name], abs=1e-6), (name, condition)


def test_what_was_rejected_is_told_recorded_and_kept(root, settings, tmp_path, capsys):
    result = launched(settings, "federated.rounds=0", *elsewhere(tmp_path))
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("hateful_memes: 80 train"))
    assert "16 test, 4 dev_seen, 2 rejected (first img/" in line
    (record,) = records.find(tmp_path / "records")
    assert record.data["rejected"] == {"is missing": 1, "is no whole image": 1}
    kept = json.loads((Path(result["folder"]) / "partition.json").read_text())["rejected"]
    assert sorted(reason.partition(":")[0] for _, reason in kept) == ["is missing", "is no whole image"]
    assert federate.Run.of(settings).workload.rejected == [tuple(one) for one in kept]


def test_of_private_clients_nothing_that_was_rejected_is_told(root, tmp_path, capsys):
    result = launched(composed(root, "federated/privacy=client_level", "federated.rounds=0", *elsewhere(tmp_path)))
    out = capsys.readouterr().out
    (path,) = (tmp_path / "records").glob("*.json")
    told = [out, path.read_text(), (Path(result["folder"]) / "partition.json").read_text()]
    assert not any("img/" in text or "is missing" in text for text in told) and "2 rejected" not in out
    assert "rejected" not in records.read(path).data and "what was rejected of the raw files is the clients'" in out


def test_reasons_are_counted_without_their_details_and_the_rare_ones_together():
    rejected = [("a", "is no whole image: 3 bytes"), ("b", "is no whole image: 4 bytes"), ("c", "is missing")]
    assert federate.by_reason(rejected) == {"is no whole image": 2, "is missing": 1}
    numbered = [(str(number), f"reason {number}") for number in range(12)]
    found = federate.by_reason([*rejected, *numbered])
    assert found["other reasons"] == 4 and sum(found.values()) == 15 and federate.by_reason([]) == {}


def test_neither_record_nor_key_depends_on_where_things_lie(root, settings, uninterrupted, tmp_path):
    (path,) = (root / "records").glob("*.json")
    assert str(root) not in path.read_text()
    copied = shutil.copytree(root / "model", tmp_path / "elsewhere")
    moved = OmegaConf.merge(settings, OmegaConf.from_dotlist([f"method.family.source={copied}"]))
    assert federate.Run.of(moved).key == uninterrupted["key"]
    processor = copied / "processor_config.json"
    settled = json.loads(processor.read_text())
    settled["image_processor"]["image_mean"] = [0.4, 0.5, 0.5]
    processor.write_text(json.dumps(settled))
    assert federate.Run.of(moved).key != uninterrupted["key"]
    other = write_model(tmp_path / "other", seed=1)
    changed = OmegaConf.merge(settings, OmegaConf.from_dotlist([f"method.family.source={other}"]))
    assert federate.Run.of(changed).key != uninterrupted["key"]


def test_the_export_is_what_peft_loads(root, uninterrupted):
    (path,) = uninterrupted["checkpoint"].values()
    base = LlavaForConditionalGeneration.from_pretrained(root / "model").eval()
    ids = torch.arange(5, 17)[None]
    with torch.no_grad():
        before = base(input_ids=ids).logits
        after = PeftModel.from_pretrained(base, path).eval()(input_ids=ids).logits
    assert (after - before).abs().max() > 1e-4


class Killed(Exception):
    pass


def doomed(settings, overrides) -> None:
    """The federation, killed in its second round."""
    runs, calls = Client.run, []

    def run(client, task):
        calls.append(task)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return runs(client, task)

    Client.run = run
    launched(settings, *overrides)


def test_kill_9_and_a_relaunch_give_the_uninterrupted_bytes(settings, uninterrupted, tmp_path):
    process = multiprocessing.get_context("fork").Process(target=doomed, args=(settings, elsewhere(tmp_path)))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert not list(tmp_path.rglob("records/*.json")) and list(tmp_path.rglob("ledger.safetensors"))
    resumed = launched(settings, *elsewhere(tmp_path))
    assert same(state_of(resumed, settings), state_of(uninterrupted, settings))
    compared = {name: value for name, value in resumed.items() if name not in ("folder", "checkpoint")}
    assert compared == {name: uninterrupted[name] for name in compared}


def quietly(settings, folder: Path, name: str) -> None:
    """One launch, what it prints in a file."""
    with (folder / name).open("w", buffering=1) as file, contextlib.redirect_stdout(file):
        launched(settings, *elsewhere(folder))


def test_of_two_launches_at_once_one_runs_and_the_other_finds_the_run(settings, uninterrupted, tmp_path):
    run = federate.Run.of(OmegaConf.merge(settings, OmegaConf.from_dotlist(elsewhere(tmp_path))))
    start = multiprocessing.get_context("fork").Process
    both = [start(target=quietly, args=(settings, tmp_path, name)) for name in "ab"]
    logs = [tmp_path / name for name in "ab"]
    with alone_in(run.lock):  # so that both are at the door
        for process in both:
            process.start()
        until = time.monotonic() + 120
        while not all(log.exists() and "waiting for it" in log.read_text() for log in logs):
            assert time.monotonic() < until and all(process.is_alive() for process in both)
            time.sleep(0.01)
        assert not run.folder.exists()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    said = [log.read_text() for log in logs]
    assert (
        sorted(text.count("federated: ") for text in said) == [0, 1] == sorted(text.count("found: ") for text in said)
    )
    (record,) = records.find(tmp_path / "records")
    assert record.key == uninterrupted["key"] and not run.lock.exists()
    assert not list(tmp_path.rglob("*.writing")) and (run.folder / "ledger.safetensors").exists()


def test_one_client_for_one_round_is_centralised_training(root, tmp_path):
    settings = composed(root, "row=centralised")
    result = launched(settings, *elsewhere(tmp_path))
    assert (result["rounds"], result["clients"]) == (1, 1)
    run = federate.Run.of(settings)
    module, seed = run.workload.module(), seed_of(settings.seed, 0, 0)
    module.seed = seed
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with seeded(seed):
        trainer = pl.Trainer(max_epochs=2, accelerator="cpu", gradient_clip_val=1.0, **options)
        trainer.fit(module, run.workload.data.train_dataloader(0, seed))
    # On the way to the server the mean of one is taken in float64, weighted by the samples.
    for name, tensor in Adapter(module).extract().items():
        assert torch.allclose(tensor, state_of(result, settings)[name], rtol=0, atol=1e-7), name


def test_equal_clients_are_as_one(root, tmp_path):
    """Every client is shown the same memes in the same order, so their mean is the one's."""

    def run(clients: int, folder: Path) -> dict:
        settings = composed(root, "row=centralised", *elsewhere(folder))
        made = federate.Run.of(settings)
        orchestrator = federate.federation(made)
        data = made.workload.data
        orchestrator.engine._client._data = type("Alike", (), {
            "num_samples": lambda self, client: data.num_samples(0),
            "train_dataloader": lambda self, client, seed: data.train_dataloader(0, 7),
        })()  # fmt: skip
        for dropout in (m for m in orchestrator.module.modules() if isinstance(m, torch.nn.Dropout)):
            dropout.p = 0.0
        orchestrator.clients, orchestrator.evaluate, orchestrator.ledger = clients, None, None
        return orchestrator.run().models["global"]

    one, three = run(1, tmp_path / "1"), run(3, tmp_path / "3")
    assert all(torch.allclose(one[name], three[name], rtol=0, atol=1e-6) for name in one)


def test_batch_one_accumulated_over_four_is_a_batch_of_four(settings, tmp_path):
    def run(batch: int, accumulated: int, folder: Path) -> dict:
        overrides = [f"batch_size={batch}", f"trainer.accumulate_grad_batches={accumulated}", "federated.rounds=1"]
        shorter = ["method.lora.dropout=0.0", "prompt.answer=yes {name}", *elsewhere(folder)]
        return state_of(launched(settings, *overrides, *shorter), settings)

    # Answers have as many tokens in every row, so the mean over tokens is the mean over rows.
    four, ones = run(4, 1, tmp_path / "4"), run(1, 4, tmp_path / "1")
    assert all(torch.allclose(four[name], ones[name], rtol=0, atol=1e-5) for name in four)
    assert not same(four, run(2, 1, tmp_path / "2"))


def test_local_models_stay_with_their_clients(root, tmp_path):
    result = launched(composed(root, "row=local", "federated.rounds=2", *elsewhere(tmp_path)))
    assert sorted(result["checkpoint"]) == ["client_0", "client_1", "client_2"] and result["bytes_up"] == 0
    (record,) = records.find(tmp_path / "records")
    assert record.method == "local"
    assert {f"auc_hard @ client {n}" for n in range(3)} <= record.curves.keys()


def test_adapters_have_nothing_that_noise_does_not_cover(root, tmp_path):
    result = federate.main.run(composed(root, "federated/privacy=client_level", *TWO_ROUNDS, *elsewhere(tmp_path)))
    assert result["failed"] == 0 and result["epsilon"] > 0 and list(result["checkpoint"]) == ["global"]
    assert not {"train/loss", "lora_gap_largest"} & result.keys()


def test_zero_shot_measures_the_base_and_keeps_no_adapter(root, tmp_path, capsys):
    settings = composed(root, "row=zero_shot", *elsewhere(tmp_path))
    result = launched(settings)
    assert result["checkpoint"] == {} and result["rounds"] == 0
    assert launched(settings) == result and "found" in capsys.readouterr().out
    (record,) = records.find(tmp_path / "records")
    assert record.method == "zero_shot" and record.seconds > 0


def test_a_run_in_which_every_client_failed_has_its_record_and_is_found(settings, tmp_path, capsys):
    overrides = ["federated.time_limit=0", "federated.max_failed=1", *elsewhere(tmp_path)]
    result = launched(settings, *overrides)
    assert "no adapter of the global model: every tensor is as at the start" in capsys.readouterr().out
    assert result["checkpoint"] == {} and (result["rounds"], result["failed"]) == (2, 4)
    (record,) = records.find(tmp_path / "records", key=result["key"])
    assert record.metrics["failed"] == 4
    assert launched(settings, *overrides) == result and "found: " in capsys.readouterr().out


def test_a_finished_run_whose_adapter_is_gone_is_not_found(settings, uninterrupted, tmp_path, capsys):
    result = launched(settings, *elsewhere(tmp_path))
    shutil.rmtree(result["checkpoint"]["global"])
    assert launched(settings, *elsewhere(tmp_path)) == result and Path(result["checkpoint"]["global"]).is_dir()
    assert "found: " not in capsys.readouterr().out


def test_a_found_run_says_which_curve_it_lacks(settings, uninterrupted, capsys):
    assert launched(settings, "federated.evaluate_every=1") == uninterrupted
    assert (
        "(fresh=true runs again); 1 of its rounds were not measured: fresh=true for the curve"
        in capsys.readouterr().out
    )
    assert launched(settings, "federated.evaluate_every=2") == uninterrupted
    assert "fresh=true for the curve" not in capsys.readouterr().out


def test_one_shot_sends_the_last_query_once(root, tmp_path, capsys):
    result = launched(composed(root, "row=one_shot", "federated.epochs=1", *elsewhere(tmp_path)))
    told = capsys.readouterr().out
    assert result["rounds"] == 1 and result["bytes_up"] == 3 * 8 * (16 + 16) * 4
    (record,) = records.find(tmp_path / "records")
    assert (record.method, record.variant) == ("oneshot", "YOCO Init+BA")
    assert record.data["lora"] == "1 module in 1 of 2 layers" and "LoRA on 1 module in 1 of 2 layers\n" in told
    assert "train/sign_agreement @ client 0" in record.curves and "train/sparsity @ client 0" in record.curves


def test_the_agnostic_prompt_is_asked_in_training_and_testing(root):
    plain, agnostic = (federate.Run.of(composed(root, *row)) for row in ([], ["row=prompt"]))
    assert plain.key != agnostic.key
    assert "picture" in plain.workload.data.prompts.ask("x", ("no", "yes"))
    assert "picture" not in agnostic.workload.data.prompts.ask("x", ("no", "yes"))
    assert agnostic.workload.row(federate.build({"_target_": "federated.strategies.fedyogi.FedYogi"}), 3) == {
        "method": "fedyogi",
        "variant": "modality-agnostic prompt",
    }


@pytest.mark.parametrize("experiment", ["medical_cross_5_5", "easy_vqa_open"])
def test_a_prompt_that_is_the_base_one_is_no_row_of_its_own(root, experiment):
    settings = composed(root, "row=prompt", experiment=experiment, sizes=[])
    with pytest.raises(InputError, match="expected another wording for prompt_tone=agnostic, found the base") as raised:
        federate.Run.of(settings)
    assert "\n" not in str(raised.value)
    for fine in (["row=prompt", "prompt_length=long"], ["row=fedyogi"]):
        check_tone(OmegaConf.to_container(composed(root, *fine, experiment=experiment, sizes=[]), resolve=True))


def test_a_test_set_of_one_class_is_told_before_a_round(root, tmp_path):
    write_memes(tmp_path / "raw", train=80, dev=4, test=16)
    path = tmp_path / "raw" / "test_seen.jsonl"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if json.loads(line)["label"] == 1))
    settings = composed(root, *TWO_ROUNDS, f"raw={tmp_path / 'raw'}", *elsewhere(tmp_path))
    with pytest.raises(InputError, match="not-hateful and hateful in the set 'test', found 8 of one class"):
        launched(settings)
    assert not (tmp_path / "runs").exists()


def test_published_sizes_are_not_run_on_the_miniature(root, tmp_path):
    """Told before anything is written or a model is looked for; a miniature in a folder of its own is one, too."""
    write_memes(tmp_path / "raw", train=80, dev=4, test=16)
    published = ["scale=published", f"paths.root={tmp_path / 'out'}"]
    for raw in ([], [f"raw={tmp_path / 'raw'}"]):
        with pytest.raises(InputError, match="found its miniature: add scale=mini .*, or give raw=folder") as raised:
            federate.main.run(composed(root, *published, *raw))
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "out" / "stores").exists()
    (tmp_path / "raw" / MARK).unlink()
    federate.Run.of(composed(root, *published, f"raw={tmp_path / 'raw'}", "model=tiny"))


OTHERS = {
    "crisis_mmd_hybrid_60": (["federated.partition.alpha=50", "corpus.miniature.train=160", "corpus.miniature.dev=8",
                              "corpus.miniature.test=16"], {"macro_f1", "accuracy, text only"}),
    "medical_cross_5_5": (["modality.image_clients=1", "corpus.miniature.images=12", "corpus.miniature.test_images=4",
                           "corpus.miniature.slake_images=4", "corpus.miniature.cards=12"],
                          {"open", "slake: open", "slake: overall, image only"}),
    "easy_vqa_open": (["federated.partition.alpha=50", "corpus.miniature.images=80", "corpus.miniature.test_images=4"],
                      {"accuracy", "open"}),
}  # fmt: skip


def of_questions(root, folder, *overrides: str, experiment="easy_vqa_open"):
    sizes, _ = OTHERS[experiment]
    more = ["row=zero_shot", "conditions=[both]", *overrides, *elsewhere(folder)]
    return composed(root, *more, experiment=experiment, sizes=sizes)


def test_a_record_of_questions_holds_what_their_text_alone_scores(root, tmp_path):
    settings = of_questions(root, tmp_path)
    result, data = launched(settings), federate.Run.of(settings).workload.data
    floor = text_floor(data.samples("train"), data.samples("test"))
    assert 0 < floor["open"] < 1
    told = {name: value for name, value in result.items() if "floor" in name}
    assert told == {"floor, open": 100 * floor["open"], "floor, overall": 100 * floor["overall"]}
    medical = federate.Run.of(of_questions(root, tmp_path, experiment="medical_cross_5_5")).manifest["floor"]
    kinds = ("open", "closed", "overall")
    assert set(medical) == {f"{side}floor, {kind}" for side in ("", "slake: ") for kind in kinds}


def test_what_clients_answers_tell_is_told_neither_of_private_clients_nor_of_sites(root, tmp_path, settings):
    private = federate.Run.of(of_questions(root, tmp_path, "federated/privacy=client_level"))
    assert "floor" in private.workload.manifest and "floor" not in private.manifest
    sited = of_questions(root, tmp_path)
    sited.federated.partition = {"_target_": "datamodules.partition.Sites"}
    assert "floor" not in federate.build(sited.workload, config=sited).manifest
    assert "floor" not in federate.Run.of(settings).manifest  # memes are no questions


@pytest.mark.slow
@pytest.mark.parametrize("experiment", list(OTHERS))
def test_every_corpus_is_federated(root, tmp_path, experiment):
    sizes, measured = OTHERS[experiment]
    settings = composed(root, "federated.rounds=1", *elsewhere(tmp_path), experiment=experiment, sizes=sizes)
    result = launched(settings)
    assert measured <= result.keys() and result["failed"] == 0 and list(result["checkpoint"]) == ["global"]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["method.lora.matrices=[x]"], "expected modules named .* found none"),
        (["conditions=[blindfolded]"], "expected a condition of both, image only"),
        (["tested=[train set]"], "found 'train set'"),
    ],
)
def test_mistakes_are_told_in_one_line(settings, tmp_path, overrides, told):
    with pytest.raises(InputError, match=told) as raised:
        launched(settings, "federated.rounds=0", *overrides, *elsewhere(tmp_path))
    assert "\n" not in str(raised.value)
