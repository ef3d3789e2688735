"""FedMLLM's presets: every published setting, with the published numbers, and all of them compose and build."""

from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import open_dict

from datamodules.image_text.modality import Aligned, CrossModal, Hybrid, Missing
from datamodules.partition import IID, Dirichlet
from federated.schedule import CosineRate, SampleClients
from federated.terms import FedProx
from tracking import identity
from tracking.build import build, resolve
from tracking.report import Published

CONF = Path(__file__).parents[1] / "conf"
SETTINGS = {
    "alpha_5": Aligned(), "alpha_1": Aligned(), "alpha_05": Aligned(),
    "missing_30": Missing(0.3), "missing_40": Missing(0.4), "missing_50": Missing(0.5),
    "cross_3_7": CrossModal(3), "cross_5_5": CrossModal(5), "cross_7_3": CrossModal(7),
    "hybrid_80": Hybrid(0.2), "hybrid_70": Hybrid(0.3), "hybrid_60": Hybrid(0.4),
}  # fmt: skip
MEDICAL = [name for name in SETTINGS if name.startswith(("cross", "hybrid"))]
ALPHA = {"alpha_5": 5.0, "alpha_1": 1.0}
# Rounds, learning rate, of which labels every client gets one, whether its list is shuffled (methods.md 1.3, 1.5).
CORPORA = {
    "hateful_memes": (25, 2e-5, "every", True), "crisis_mmd": (40, 2e-4, "first", False),
    "medical": (50, 2e-4, None, None),
}  # fmt: skip
PRESETS = [
    f"{corpus}_{name}" for corpus in CORPORA for name in SETTINGS if corpus != "medical" or name in MEDICAL
]  # fmt: skip
# YOCO, table 6: gamma's end and lambda, whole.
YOCO = {
    "hateful_memes_alpha_5": (50, 1e-2), "hateful_memes_alpha_1": (25, 1e-1), "hateful_memes_alpha_05": (200, 1e-4),
    "hateful_memes_missing_30": (50, 1e-2), "hateful_memes_missing_40": (100, 1e-2),
    "hateful_memes_missing_50": (100, 1e-3),
    "hateful_memes_cross_3_7": (300, 1e-3), "hateful_memes_cross_5_5": (100, 1e-2),
    "hateful_memes_cross_7_3": (25, 1e-2),
    "hateful_memes_hybrid_80": (100, 1e-1), "hateful_memes_hybrid_70": (25, 1e-3),
    "hateful_memes_hybrid_60": (100, 1e-4),
    "crisis_mmd_alpha_5": (50, 1e-4), "crisis_mmd_alpha_1": (5, 1e-3), "crisis_mmd_alpha_05": (200, 1e-2),
    "crisis_mmd_missing_30": (50, 1e-4), "crisis_mmd_missing_40": (100, 1e-3), "crisis_mmd_missing_50": (25, 1e-4),
    "crisis_mmd_cross_3_7": (5, 1e-4), "crisis_mmd_cross_5_5": (25, 1e-3), "crisis_mmd_cross_7_3": (25, 1e-2),
    "crisis_mmd_hybrid_80": (50, 1e-4), "crisis_mmd_hybrid_70": (50, 1e-4), "crisis_mmd_hybrid_60": (25, 1e-4),
    "medical_cross_3_7": (25, 1e-4), "medical_cross_5_5": (25, 1e-4), "medical_cross_7_3": (25, 1e-4),
    "medical_hybrid_80": (25, 1e-4), "medical_hybrid_70": (25, 1e-4), "medical_hybrid_60": (25, 1e-4),
}  # fmt: skip
FAST = ("hateful_memes_alpha_5", "crisis_mmd_missing_50", "medical_hybrid_70")


def composed(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("federate", list(overrides))


def test_every_published_setting_is_a_preset():
    found = {path.stem for path in CONF.glob("experiment/fedmllm/*.yaml") if not path.stem.startswith("easy_vqa")}
    assert found == set(PRESETS) and len(found) == 12 + 12 + 6


@pytest.mark.parametrize(
    "preset",
    [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in PRESETS],
)
def test_a_preset_holds_the_published_numbers_and_builds(preset):
    config = composed(f"experiment=fedmllm/{preset}", "federated/strategy=fedyogi")
    corpus = next(name for name in CORPORA if preset.startswith(name))
    setting = preset.removeprefix(f"{corpus}_")
    rounds, rate, at_least_one, shuffle = CORPORA[corpus]
    assert (config.data.split, config.data.name) == (setting, f"fedmllm_{corpus}")
    assert (config.federated.rounds, config.federated.epochs, config.federated.per_round) == (rounds, 1, 2)
    assert config.federated.passes == rounds * 2 / 10
    assert (config.batch_size, config.trainer.accumulate_grad_batches, config.trainer.gradient_clip_val) == (1, 4, 1.0)
    partition = build(config.federated.partition)
    if corpus == "medical":
        expected = Hybrid(SETTINGS[setting].rate, comes_back="client") if "hybrid" in setting else SETTINGS[setting]
        assert partition == IID(10, seed=41, within="pictured") and build(config.modality) == expected
    else:
        drawn = {"seed": 42, "at_least_one": at_least_one, "shuffle": shuffle}
        assert partition == Dirichlet(ALPHA.get(setting, 0.5), 10, **drawn)
        assert build(config.modality) == SETTINGS[setting]
    assert (config.yoco.gamma_end, config.yoco.sparsity) == YOCO[preset]
    optimizer = build(config.method.optimizer)
    assert optimizer.keywords == {"lr": rate, "betas": [0.9, 0.95], "weight_decay": 0.1}
    assert build(config.federated.rate) == CosineRate(0.01)
    assert SampleClients(config.federated.per_round)(0, 10) == [6, 9]  # the golden's first round
    lora = build(config.method.lora)
    assert (lora.rank, lora.alpha, lora.dropout, lora.last_layers) == (8, 8, 0.05, None)
    for prompts in (config.prompts.long, config.prompts.short):
        assert build(prompts.base).ask("x", ("a", "b")) and build(prompts.agnostic).ask("x", ("a", "b"))
    build(config.method.family)
    resolve(config.method._target_)
    resolve(config.workload._target_)
    build(config.corpus.reader)


def test_shuffling_as_ever_changes_no_key_and_leaving_it_out_does():
    shuffled, older, ordered = (composed("experiment=fedmllm/hateful_memes_alpha_1", "scale=mini") for _ in range(3))
    with open_dict(older):
        del older.shares["shuffle"], older.federated.partition["shuffle"]
    ordered.shares.shuffle = False
    assert identity.essence(shuffled) == identity.essence(older) != identity.essence(ordered)


def test_rows_change_what_they_say():
    def row(name, *overrides):
        return composed("experiment=fedmllm/hateful_memes_missing_30", f"row={name}", *overrides).federated

    assert row("zero_shot").rounds == 0
    central = row("centralised")
    assert (central.rounds, central.epochs, central.per_round) == (1, 5, None)
    assert row("local").rounds == 25 and row("local", "scale=mini").rounds == 5
    assert row("local").per_round is None and row("local").strategy._target_.endswith("Local")
    (term,) = build(row("adaptive", "federated/strategy=fedyogi").terms)
    assert term == FedProx(0.01, 0.1, 1 / 7, unnumbered=False)
    kept = term.regularised([f"layers.{layer}.lora_A" for layer in range(28)] + ["embed_tokens"])
    assert kept == [f"layers.{layer}.lora_A" for layer in range(4, 24)]
    one_shot = row("one_shot")
    assert (one_shot.rounds, one_shot.epochs, one_shot.per_round) == (1, 10, None)
    signs, sparse = build(one_shot.terms)
    assert (signs.gamma_end, sparse.weight) == (50.0, 0.01)
    assert build(one_shot.start).factors == "both" and build(row("one_shot_released").start).factors == "B"


@pytest.mark.parametrize(("rounds", "factor"), [(25, 4.0), (40, 2.5), (50, 2.0)])
def test_the_released_rate_keeps_the_fault_of_the_first_round(rounds, factor):
    released = yaml.safe_load((CONF / "federated" / "rate" / "cosine_released.yaml").read_text())
    assert build(released)(0, rounds) == pytest.approx(factor)
    assert build(yaml.safe_load((CONF / "federated" / "rate" / "cosine.yaml").read_text()))(0, rounds) == 1.0


def test_the_tiny_model_is_what_the_mini_scale_trains_and_others_are_chosen_by_name():
    assert composed("experiment=fedmllm/medical_cross_5_5", "scale=mini").model.name == "tiny"
    assert composed("experiment=fedmllm/medical_cross_5_5").model.name == "minicpm_v_4_6"
    other = composed("experiment=fedmllm/crisis_mmd_alpha_1", "model=llava_1_5_7b")
    assert other.model.name == "llava_1_5_7b" and build(other.method.family).dtype == "bfloat16"


@pytest.mark.parametrize("corpus", list(CORPORA))
def test_published_rows_stand_under_the_names_that_records_have(corpus):
    published = Published.of(yaml.safe_load((CONF / "targets" / f"fedmllm_{corpus}.yaml").read_text()))
    allowed = set(MEDICAL if corpus == "medical" else SETTINGS)
    assert all(set(entry["values"]) == allowed for entry in published.numbers)
    values = {(e["method"], e["variant"], e["metric"]): e["values"] for e in published.numbers}
    assert len(values) == len(published.numbers)
    # Read once more from the tables by hand.
    known = {
        "hateful_memes": [("fedadam", "", "auc_hard", "missing_30", 76.82), ("local", "", "auc_hard", "alpha_5", 70.8)],
        "crisis_mmd": [
            ("fedavgm", "", "macro_f1", "missing_30", 32.64),
            ("oneshot", "Mean", "macro_f1", "hybrid_60", 55.48),
        ],
        "medical": [
            ("fedyogi", "", "closed", "hybrid_60", 73.90),
            ("oneshot", "YOCO", "slake: open", "cross_3_7", 63.51),
        ],
    }
    for method, variant, metric, setting, value in known[corpus]:
        assert values[method, variant, metric][setting] == value
