"""The multimodal module: labels, loss, LoRA, mixed batches, quantisation, export."""

import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from peft import PeftModel
from torch.utils.data import DataLoader
from toys_mllm import ANSWERS, PROMPTS, SIZE, images, llava, module
from transformers import get_cosine_schedule_with_warmup

from datamodules.errors import InputError
from datamodules.image_text.batch import IGNORED
from federated.adapter import Adapter
from federated.client import Client, ClientTask, ClientUpdate
from federated.data import PartitionedData
from federated.terms import FedProx
from lightning_modules.mllm.families.tiny import Tiny
from lightning_modules.mllm.loading import Lora, frozen_model
from lightning_modules.schedules import WarmedCosine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture
def made(folder):
    return module(folder)


@pytest.fixture
def batch(made):
    return made.encoder(PROMPTS, images(), ANSWERS)


def quiet_trainer() -> pl.Trainer:
    return pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def fit(made, batches) -> pl.Trainer:
    trainer = quiet_trainer()
    trainer.fit(made, DataLoader(batches, batch_size=None))
    return trainer


def test_labels_lie_exactly_on_the_answers(made, batch):
    for row, answer in enumerate(ANSWERS):
        labelled = batch.labels[row] != IGNORED
        tokens = [*made.encoder.answer_ids(answer), made.encoder.end]
        assert batch.labels[row][labelled].tolist() == batch.input_ids[row][labelled].tolist() == tokens
        shown = batch.input_ids[row][batch.attention_mask[row].bool()].tolist()
        assert shown[-len(tokens) :] == tokens and labelled.nonzero()[-1] + 1 == len(shown)
        told = made.encoder.decode(shown[: -len(tokens)])
        assert told == PROMPTS[row]
    assert (batch.labels == IGNORED).any() and (batch.attention_mask[:, 0] == 1).all()


def test_evaluation_pads_on_the_left_and_asks_the_same(made, batch):
    asked = made.encoder(PROMPTS, images(), None)
    assert (asked.labels == IGNORED).all() and (asked.attention_mask[:, -1] == 1).all()
    for row in range(len(PROMPTS)):
        prompt = batch.input_ids[row][(batch.attention_mask[row] == 1) & (batch.labels[row] == IGNORED)]
        assert asked.input_ids[row][asked.attention_mask[row] == 1].tolist() == prompt.tolist()


def test_a_prompt_cannot_call_for_an_image_that_is_not_there(made):
    token = made.encoder.processor.image_token_id
    batch = made.encoder([f"is it {made.encoder.processor.image_token} red ?"], [None], ["no"])
    assert token not in batch.input_ids and batch.vision == {}


def test_an_empty_prompt_can_be_answered(made):
    asked = made.eval().encoder(["", "is it red ?"], [None, None], None)
    assert asked.attention_mask.sum(1).min() == 1
    assert made.hidden(asked).last_hidden_state[:, -1].isfinite().all()


def test_long_rows_lose_the_middle_of_their_text(folder):
    short = Tiny(str(folder), max_length=16).encoder()
    whole = Tiny(str(folder)).encoder()
    prompt = "is it red ? " * 6 + "what is this"
    ids = short([prompt], images()[:1], ["yes"]).input_ids[0].tolist()
    full = whole([prompt], images()[:1], ["yes"]).input_ids[0].tolist()
    assert len(ids) == 16 < len(full)
    assert ids[:8] == full[:8] and ids[-6:] == full[-6:]
    with pytest.raises(InputError, match="at most 5 tokens"):
        Tiny(str(folder), max_length=5).encoder()([prompt], images()[:1], ["yes"])


def slow_loss(made, batch) -> float:
    """Mean over all answer tokens, token by token, from the logits of every position."""
    losses = []
    logits = made.head(made.hidden(batch).last_hidden_state)
    for row in range(len(batch.input_ids)):
        for place in range(1, batch.input_ids.shape[1]):
            if (token := batch.labels[row, place].item()) != IGNORED:
                table = logits[row, place - 1].double()
                losses.append(-(table[token] - torch.logsumexp(table, 0)).item())
    return sum(losses) / len(losses)


def test_loss_equals_a_slow_loop_and_is_normalised_over_the_batch(made, batch):
    made.eval()
    expected = slow_loss(made, batch)
    assert expected == pytest.approx(math.log(300), abs=2)
    made.on_train_start = made.eval  # without dropout
    trainer = fit(made, [batch])
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(expected, rel=1e-5)


def test_ranks_with_unequal_answers_share_the_loss_of_their_union(made):
    """Two ranks, played one after the other: the mean of their losses, which DDP takes, is the union's."""
    made.eval()
    halves = [made.encoder(PROMPTS[rows], images()[rows], ANSWERS[rows]) for rows in (slice(0, 3), slice(3, 4))]
    counts = [(half.labels != IGNORED).sum().item() for half in halves]
    assert counts[0] != counts[1]
    strategy = SimpleNamespace(reduce=lambda own, reduce_op: torch.tensor(float(sum(counts))))
    made._trainer = SimpleNamespace(world_size=2, strategy=strategy)  # read by the `trainer` property
    made.log = lambda *arguments, **options: None
    losses = [made.training_step(half, 0) for half in halves]
    expected = slow_loss(made, made.encoder(PROMPTS, images(), ANSWERS))
    assert (sum(losses) / 2).item() == pytest.approx(expected, rel=1e-5)


def test_each_row_of_a_mixed_batch_answers_as_it_would_alone(made, batch):
    made.eval()
    together = made.answer_logits(batch)[0]
    alone = []
    for row in range(len(PROMPTS)):
        alone.append(made.answer_logits(made.encoder(PROMPTS[row : row + 1], [images()[row]], [ANSWERS[row]]))[0])
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_lora_trains_q_k_v_o_of_the_language_model_and_nothing_else(made):
    trained = {name for name, p in made.named_parameters() if p.requires_grad}
    layers = {
        f"model.base_model.model.model.language_model.layers.{layer}.self_attn.{part}_proj.lora_{factor}.default.weight"
        for layer in range(2)
        for part in "qkvo"
        for factor in "AB"
    }
    assert trained == layers
    assert not any("lora" in name for name, _ in made.named_parameters() if "vision_tower" in name)
    pairs = [p for name, p in made.named_parameters() if name in trained]
    assert all(8 in p.shape and p.dtype == torch.float32 for p in pairs)
    assert sum(p.numel() for p in pairs) == sum(8 * (a + b) for a, b in [(16, 16), (8, 16), (8, 16), (16, 16)]) * 2


def test_what_else_is_trained_is_named(folder):
    parts = module(folder, also_train=["embeddings", "projector"])
    trained = [name for name, p in parts.named_parameters() if p.requires_grad and "lora" not in name]
    assert sorted(re.findall(r"(embed_tokens|multi_modal_projector).modules_to_save", " ".join(trained))) == (
        ["embed_tokens"] + ["multi_modal_projector"] * 4
    )
    exchanged = Adapter(parts).names
    assert any("embed_tokens" in name for name in exchanged)
    assert any(re.search(r"projector\..*linear_[12]", name) for name in exchanged)
    held = FedProx(unnumbered=False).regularised(exchanged)
    assert held == [name for name in exchanged if ".language_model.layers." in name and "lora" in name]
    with pytest.raises(InputError, match="also_train of embeddings, projector, found 'head'"):
        module(folder, also_train=["head"])
    with pytest.raises(InputError, match="cache_features=false where the projector"):
        module(folder, also_train=["projector"], cache_features=True)


def test_the_seed_draws_the_first_factors_and_nothing_else_does(folder):
    torch.manual_seed(5)
    one = module(folder)
    torch.manual_seed(6)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), module(folder).parameters(), strict=True))


def test_training_moves_lora_alone_with_dropout_awake(made, batch):
    made.eval()
    before = {name: p.clone() for name, p in made.named_parameters()}
    fit(made, [batch] * 3)
    moved = {name for name, p in made.named_parameters() if not torch.equal(before[name], p)}
    assert moved and moved <= {name for name, p in made.named_parameters() if p.requires_grad}
    assert made.training


def test_a_federated_client_trains_it_as_it_is(made):
    rows = list(zip(PROMPTS, images(), ANSWERS, strict=True)) * 3

    def collate(some):
        return made.encoder(*(list(column) for column in zip(*some, strict=True)))

    adapter = Adapter(made)
    data = PartitionedData(rows, [torch.arange(7).numpy(), torch.arange(7, 12).numpy()], 2, collate=collate)
    client = Client(made, adapter, data, device="cpu")
    start = adapter.extract()
    first, again = (client.run(ClientTask(0, 0, start, 1.0, 3)) for _ in range(2))
    assert isinstance(first, ClientUpdate) and isinstance(again, ClientUpdate) and first.steps == 4
    assert all(torch.equal(first.state[name], again.state[name]) for name in start)
    assert any(not torch.equal(first.state[name], start[name]) for name in start)
    assert 0 < first.metrics["train/loss"] < 10


def test_export_reloads_to_the_same_logits(made, batch, folder, tmp_path):
    fit(made, [batch] * 3)
    made.eval()
    with torch.no_grad():
        ours = made.answer_logits(batch)[0]
        untuned = module(folder).eval().answer_logits(batch)[0]
    made.model.save_pretrained(tmp_path)
    reloaded = module(folder, lora=None)
    reloaded.model = PeftModel.from_pretrained(frozen_model(reloaded.family), tmp_path)
    reloaded.eval()
    with torch.no_grad():
        assert torch.equal(reloaded.answer_logits(batch)[0], ours)
    assert not torch.allclose(untuned, ours)


def test_checkpoints_hold_what_is_trained_and_load(made, batch, folder, tmp_path):
    trainer = fit(made, [batch] * 3)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    held = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    assert set(held) == {name for name, p in made.named_parameters() if p.requires_grad}
    other = module(folder)
    quiet_trainer().fit(
        other, DataLoader([batch] * 3, batch_size=None), ckpt_path=tmp_path / "x.ckpt", weights_only=True
    )
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), other.parameters(), strict=True))
    with pytest.raises(InputError, match=r"found a difference in 'model\.base_model.*\(.* in all\)"):
        module(folder, also_train=["projector"]).on_load_checkpoint({"state_dict": held})


def test_gradient_checkpointing_gives_the_same_gradients(folder, made, batch):
    saving = module(folder, gradient_checkpointing=True)
    for one in (made, saving):
        one.train()
        torch.manual_seed(0)
        one.answer_logits(batch)[0].logsumexp(-1).sum().backward()
    assert saving.base.is_gradient_checkpointing and not made.base.is_gradient_checkpointing
    for (name, one), (_, other) in zip(made.named_parameters(), saving.named_parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(other.grad, one.grad, msg=name)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.filterwarnings("ignore")
def test_quantised_bases_answer_nearly_the_same_and_train(tmp_path, quantization):
    folder = llava(tmp_path, replace(SIZE, width=64))  # bitsandbytes packs 32 outputs together on the CPU
    made, small = module(folder), module(folder, quantization=quantization)
    batch = made.encoder(PROMPTS, images(), ANSWERS)
    layer = small.base.model.language_model.layers[0].self_attn.q_proj.base_layer
    assert layer.weight.dtype == {"nf4": torch.uint8, "int8": torch.int8}[quantization]
    assert all(p.dtype == torch.float32 for p in small.base.model.vision_tower.parameters())
    adapter = Adapter(small)
    assert all("lora" in name for name in adapter.names)
    before = adapter.extract()
    adapter.load(before)
    for _ in range(2):  # answering and training take turns, as in a federation
        made.eval(), small.eval()
        with torch.no_grad():
            exact, near = made.answer_logits(batch)[0], small.answer_logits(batch)[0]
        assert torch.nn.functional.cosine_similarity(exact, near, dim=-1).min() > 0.8
        fit(small, [batch] * 2)
        adapter.check_frozen()
        after = adapter.extract()
        assert any(not torch.equal(before[name], after[name]) for name in after)
        adapter.load(before)


def test_wrong_quantisation_is_named(folder):
    with pytest.raises(InputError, match="quantization of none, nf4, int8, found 'int3'"):
        module(folder, quantization="int3")


def test_without_lora_nothing_is_trained(folder):
    assert not [p for p in module(folder, lora=None).parameters() if p.requires_grad]


def test_rank_and_alpha_scale_the_pairs(folder):
    layer = module(folder, lora=Lora(rank=4, alpha=8, dropout=0.0)).base.model.language_model.layers[0].self_attn.q_proj
    assert layer.scaling == {"default": 2.0} and layer.lora_A["default"].weight.shape == (4, 16)


def test_warmed_cosine():
    rate = WarmedCosine(0.01)
    assert [rate(step, 4) for step in range(5)] == pytest.approx([1, 0.8535534, 0.5, 0.1464466, 0])
    assert [rate(step, 300) for step in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1])
    assert rate(300, 300) == pytest.approx(0) and rate(0, 1) == 1
    kept = WarmedCosine(0.1, lowest=1.0)
    assert [kept(step, 20) for step in (0, 1, 2, 11, 20)] == [pytest.approx(x) for x in (1 / 3, 2 / 3, 1, 1, 1)]
    assert WarmedCosine(0.1, lowest=0.2)(20, 20) == pytest.approx(0.2)


def test_warmed_cosine_as_released():
    """Closed form, and the schedule of transformers' Trainer with warmup_ratio .01, which the released training is."""
    rate = WarmedCosine(0.01, released=True)
    assert rate(0, 1) == 0 and [rate(step, 3) for step in range(3)] == pytest.approx([0, 1, 0.5])
    assert [rate(step, 300) for step in (0, 1, 2, 3)] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    for steps in (1, 4, 100, 101, 250):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        theirs = get_cosine_schedule_with_warmup(optimizer, math.ceil(0.01 * steps), steps)
        for step in range(steps):
            assert theirs.get_last_lr() == pytest.approx([rate(step, steps)])
            optimizer.step()
            theirs.step()
