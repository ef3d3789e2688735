"""Tiny multimodal models on disk, with random weights and a tokenizer trained on a few words."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import MiniCPMV4_6Config, MiniCPMV4_6ForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

from lightning_modules.mllm import tiny_model
from lightning_modules.mllm.families.tiny import Tiny
from lightning_modules.mllm.module import MultimodalModule

WORDS = ["is it red ?", " yes", " no", "a big green star", "what is this", " circle", "USER: ASSISTANT:"] * 5
SIZE = tiny_model.Size(side=16, patch=8, vision_width=16, vision_layers=1, width=16, layers=2, heads=2, vocabulary=320)
ADAMW = partial(torch.optim.AdamW, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)

PROMPTS = ["is it red ?", "what is this ?", "is it a big green star ?", "red ?"]
ANSWERS = ["yes", "circle", "no, it is not", "no"]


def llava(folder: Path, size: tiny_model.Size = SIZE, seed: int = 0) -> Path:
    """A LLaVA of 16-pixel images in `folder`."""
    words = tiny_model.tokenizer(WORDS, size.vocabulary)
    tiny_model.save(folder, tiny_model.model(words, size, seed), tiny_model.processor(words, size))
    return folder


def picture(seed: int, side: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def module(folder: Path, **options) -> MultimodalModule:
    return MultimodalModule(Tiny(str(folder)), ADAMW, seed=1, **options)


def images() -> list[Image.Image | None]:
    """Both, text only, both, neither (its prompt holds no text modality)."""
    return [picture(0), None, picture(1), None]


def minicpm(folder: Path, text_model: str = "qwen3", layers: int = 2) -> Path:
    """A MiniCPM-V 4.6 in `folder` that cuts images above 32 pixels into slices.

    text_model: the published one is `qwen3_5_text`, of whose layers every fourth is full attention.
    """
    words = tiny_model.tokenizer(WORDS, 320)
    marks = {
        "video_token": "<|video_pad|>",
        "image_start_token": "<im>",
        "image_end_token": "</im>",
        "slice_start_token": "<slice>",
        "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>",
        "image_id_end_token": "</image_id>",
    }
    words.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *marks.values()]})
    known = PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        extra_special_tokens={"image_token": "<image>", **marks},
    )
    text = {
        "model_type": text_model,
        "vocab_size": len(known),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "pad_token_id": known.pad_token_id,
        "eos_token_id": known.eos_token_id,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 4,
    }
    config = MiniCPMV4_6Config(
        text_config=text,
        vision_config=vision,
        insert_layer_id=0,
        image_size=32,
        image_token_id=known.image_token_id,
        video_token_id=known.video_token_id,
    )
    torch.manual_seed(0)
    MiniCPMV4_6ForConditionalGeneration(config).save_pretrained(folder)
    known.save_pretrained(folder)
    MiniCPMV4_6ImageProcessorPil(scale_resolution=32, patch_size=4, max_slice_nums=2).save_pretrained(folder)
    return folder
