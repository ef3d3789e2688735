"""Tiny multimodal models on disk, with random weights and a tokenizer trained on a few words."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

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
