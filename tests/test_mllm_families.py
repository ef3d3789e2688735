"""Each family's glue: placeholders, templates, round trips through a folder, what is said where files are missing."""

import pickle
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from toys_mllm import ADAMW, ANSWERS, PROMPTS, images, llava, minicpm, picture

from datamodules.errors import InputError
from federated.lora_reach import lora_reach
from lightning_modules.mllm.answers import Asking, Reading, answer, generate
from lightning_modules.mllm.families.base import Family, weights_digest
from lightning_modules.mllm.families.llava_1_5 import Llava15
from lightning_modules.mllm.families.minicpm_v_4_6 import MiniCPMV46
from lightning_modules.mllm.families.tiny import Tiny
from lightning_modules.mllm.module import MultimodalModule

MADE = {
    "tiny": (Tiny, llava),
    "llava_1_5": (Llava15, llava),
    "minicpm_v_4_6 with qwen3": (MiniCPMV46, minicpm),
    "minicpm_v_4_6 as published": (MiniCPMV46, partial(minicpm, text_model="qwen3_5_text", layers=4)),
}


@pytest.fixture(scope="module", params=MADE)
def family(request, tmp_path_factory) -> Family:
    kind, make = MADE[request.param]
    return kind(source=str(make(tmp_path_factory.mktemp(request.param))), dtype="float32")


def built(family: Family, **options) -> MultimodalModule:
    return MultimodalModule(family, ADAMW, seed=1, **options).eval()


def test_mixed_batches_equal_rows_alone_and_can_be_answered(family):
    made = built(family)
    batch = made.encoder(PROMPTS, images(), ANSWERS)
    with torch.no_grad():
        together = made.answer_logits(batch)[0]
        rows = [made.encoder([p], [i], [a]) for p, i, a in zip(PROMPTS, images(), ANSWERS, strict=True)]
        torch.testing.assert_close(
            together, torch.cat([made.answer_logits(row)[0] for row in rows]), atol=1e-4, rtol=1e-3
        )
    asked = made.encoder(PROMPTS, images(), None)._replace(ids=tuple("abcd"))
    found = answer(made, [asked], Asking(options=["yes", "no, it is not"], published=True))
    assert all(len(one.log_probs) == 2 and one.text is not None for one in found)
    shown, hidden = (made.encoder(PROMPTS[:1], [image], None) for image in (picture(0), None))
    with torch.no_grad():
        seen, unseen = (made.head(made.hidden(b).last_hidden_state[:, -1]) for b in (shown, hidden))
    assert not torch.allclose(seen, unseen)


def test_kept_keys_and_values_do_not_change_generation(family):
    made = built(family)
    asked = made.encoder(PROMPTS, images(), None)
    with torch.no_grad():
        told = generate(Reading(made, asked), 4)
        for row, tokens in enumerate(told):
            again = made.encoder(PROMPTS[row : row + 1], [images()[row]], None)
            for token in tokens:
                logits = made.head(made.hidden(again).last_hidden_state[:, -1])
                assert logits.argmax().item() == token
                ids = torch.cat([again.input_ids, torch.tensor([[token]])], dim=1)
                again = again._replace(input_ids=ids, attention_mask=torch.ones_like(ids))


def test_lora_reaches_every_attention_layer_of_the_language_model_alone(family):
    made = built(family)
    reached = {name.split(".lora_")[0] for name, p in made.named_parameters() if p.requires_grad}
    text = made.base.config.get_text_config()
    depth = text.num_hidden_layers
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * depth
    layers = [layer for layer, kind in enumerate(kinds) if kind == "full_attention"]
    assert layers == ([3] if text.model_type == "qwen3_5_text" else [0, 1])
    names = [f".language_model.layers.{layer}.self_attn.{part}_proj" for layer in layers for part in "qkvo"]
    assert len(reached) == len(names) and all(any(one.endswith(name) for one in reached) for name in names)
    assert lora_reach(made) == f"{len(names)} modules in {len(layers)} of {depth} layers"
    assert lora_reach(built(family, lora=None)) == ""


def test_a_saved_model_reads_as_the_same(family, tmp_path):
    model, encoder = family.load(), family.encoder()
    model.save_pretrained(tmp_path)
    encoder.processor.tokenizer.save_pretrained(tmp_path)
    encoder.processor.image_processor.save_pretrained(tmp_path)
    if not isinstance(family, MiniCPMV46):
        encoder.processor.save_pretrained(tmp_path)
    again = replace(family, source=str(tmp_path))
    batch, other = (e(PROMPTS, images(), ANSWERS) for e in (encoder, again.encoder()))
    assert torch.equal(batch.input_ids, other.input_ids)
    assert all(torch.equal(batch.vision[name], other.vision[name]) for name in batch.vision)
    with torch.no_grad():
        one, two = (m.model(batch.input_ids, **batch.vision).last_hidden_state for m in (model, again.load()))
    assert torch.equal(one, two) and weights_digest(tmp_path) == weights_digest(Path(family.source))


def test_the_encoder_survives_pickling_and_knows_answers_as_training_does(family):
    encoder = pickle.loads(pickle.dumps(family.encoder()))
    batch = encoder(PROMPTS, images(), ANSWERS)
    assert torch.equal(batch.input_ids, family.encoder()(PROMPTS, images(), ANSWERS).input_ids)
    assert [encoder.decode(encoder.answer_ids(a)) for a in ANSWERS] == ANSWERS


def test_another_kind_of_also_trained_parts_is_trained(family):
    made = built(family, also_train=["projector"])
    trained = {name for name, p in made.named_parameters() if p.requires_grad and "lora" not in name}
    projector = family.parts["projector"].split(".")[-1]
    assert trained and all(f"model.{projector}.modules_to_save." in name for name in trained)


def test_images_above_a_slice_become_several_for_minicpm(tmp_path):
    encoder = MiniCPMV46(str(minicpm(tmp_path)), dtype="float32").encoder()
    small, large = (encoder(["is it red ?"], [picture(0, side)], None) for side in (32, 60))
    assert len(large.vision["target_sizes"]) > len(small.vision["target_sizes"]) == 1
    image = encoder.processor.image_token_id
    assert (large.input_ids == image).sum() == large.vision["target_sizes"].prod(1).sum() // 16


def test_a_language_model_without_an_attention_layer_is_refused(tmp_path):
    family = MiniCPMV46(str(minicpm(tmp_path, "qwen3_5_text", layers=2)), dtype="float32")
    with pytest.raises(InputError, match=r"expected modules named .* found none"):
        built(family)


def test_features_of_packed_images_cannot_be_kept(tmp_path):
    with pytest.raises(InputError, match="MiniCPMV46 packs its images"):
        built(MiniCPMV46(str(minicpm(tmp_path)), dtype="float32"), cache_features=True)


def test_missing_files_say_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"expected .* files in a folder .*fetch them with `hf download"):
        Llava15(str(tmp_path)).encoder()
    with pytest.raises(InputError, match=r"llava-hf/llava-1.5-7b-hf"):
        Llava15().load()
    with pytest.raises(InputError, match="dtype of float32, bfloat16, found 'float16'"):
        Llava15(dtype="float16")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_name_on_the_hub_stands_with_the_commit_that_is_loaded(tmp_path, monkeypatch):
    """A hub's cache as it lies on a disk, without a network; main moves on between two runs."""
    stored = tmp_path / "hub" / "models--some--llava"
    for commit in (COMMIT, COMMIT[::-1]):
        llava(stored / "snapshots" / commit)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(COMMIT)
    for name in ("huggingface_hub.constants.HF_HUB_CACHE", "transformers.utils.hub.constants.HF_HUB_CACHE"):
        monkeypatch.setattr(name, str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    one = Llava15("some/llava", dtype="float32")
    assert one.fingerprint() == f"some/llava@{COMMIT}"
    (stored / "refs" / "main").write_text(COMMIT[::-1])
    moved = Llava15("some/llava")
    assert moved.fingerprint() == f"some/llava@{COMMIT[::-1]}"
    (stored / "snapshots" / COMMIT[::-1] / "model.safetensors").unlink()
    one.load(), one.encoder()  # what it was fingerprinted as
    with pytest.raises(InputError, match="expected LlavaForConditionalGeneration files"):
        moved.load()
    assert Llava15("some/llava", revision=COMMIT).fingerprint() == f"some/llava@{COMMIT}"


@pytest.mark.parametrize(
    "name",
    ["config.json", "processor_config.json", "tokenizer.json", "chat_template.jinja", "vocab.txt", "spiece.model"],
)
def test_what_is_read_beside_the_weights_is_part_of_the_model(tmp_path, name):
    """Unlike what tells of it, and the place where it lies."""
    one = llava(tmp_path / "one")
    before = Llava15(str(one)).fingerprint()
    other = shutil.copytree(one, tmp_path / "other")
    for told in ("README.md", "trained.json"):
        (other / told).write_text("{}")
    assert Llava15(str(other)).fingerprint() == before
    with (other / name).open("a") as file:
        file.write("\n")
    assert Llava15(str(other)).fingerprint() != before


def test_a_folder_without_weights_is_no_model(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match=r"expected weights \(\*.safetensors\) in .*, found none; save") as raised:
        Llava15(str(tmp_path)).fingerprint()
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="nobody/nothing"):
        Llava15("nobody/nothing").fingerprint()


def test_half_precision_bases_train_single_precision_pairs(family):
    made = built(replace(family, dtype="bfloat16"))
    assert {p.dtype for p in made.parameters() if p.requires_grad} == {torch.float32}
    batch = made.encoder(PROMPTS, images(), ANSWERS)
    made.answer_logits(batch)[0].sum().backward()
    assert made.answer_logits(batch)[0].dtype == torch.float32
