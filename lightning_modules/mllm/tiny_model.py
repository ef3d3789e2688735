"""A LLaVA (SigLIP and Llama) from a configuration, with a tokenizer trained on the spot: no hub, no download."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

SPECIAL = ("<pad>", "<s>", "</s>", "<image>")


@dataclass(frozen=True)
class Size:
    """Sides in pixels, widths of both towers (feed-forward twice as wide), vocabulary at most."""

    side: int = 64
    patch: int = 8
    vision_width: int = 96
    vision_layers: int = 3
    width: int = 128
    layers: int = 4
    heads: int = 4
    vocabulary: int = 640


def tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: frequent words of the texts become one token each, every other text is spelled in bytes."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=trained,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )


def processor(words: PreTrainedTokenizerFast, size: Size) -> LlavaProcessor:
    """Images to side x side pixels between -1 and 1, one placeholder a patch."""
    square = {"height": size.side, "width": size.side}
    images = SiglipImageProcessorPil(size=square)
    return LlavaProcessor(images, words, patch_size=size.patch, vision_feature_select_strategy="full")


def model(words: PreTrainedTokenizerFast, size: Size, seed: int) -> LlavaForConditionalGeneration:
    """Random weights drawn by `seed`."""
    text = {
        "model_type": "llama",
        "vocab_size": len(words),
        "hidden_size": size.width,
        "intermediate_size": 2 * size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": max(1, size.heads // 2),
        "max_position_embeddings": 1024,
        "initializer_range": size.width**-0.5,
        "pad_token_id": words.pad_token_id,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": size.vision_width,
        "intermediate_size": 2 * size.vision_width,
        "num_hidden_layers": size.vision_layers,
        "num_attention_heads": size.heads,
        "image_size": size.side,
        "patch_size": size.patch,
        "vision_use_head": False,
    }
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=words.image_token_id,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        made.model.vision_tower.embeddings.position_embedding.weight.copy_(
            places(size.side // size.patch, size.vision_width)
        )
    return made


def places(side: int, width: int) -> Tensor:
    """(side * side, width) sines and cosines of a patch's column and row, wavelengths from 2 to 32 patches.

    What positions start from: the random start of SigLIP is ten times fainter than a plain ground, and a tiny tower
    needs a minute only to learn where a patch is.
    """
    frequencies = torch.pi * 16 ** -torch.linspace(0, 1, width // 4)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [place.reshape(-1, 1) * frequencies for place in (columns, rows)]
    return 0.7 * torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


def save(folder: Path, made: LlavaForConditionalGeneration, feeds: LlavaProcessor) -> None:
    """Files that `from_pretrained` reads."""
    made.save_pretrained(folder)
    feeds.save_pretrained(folder)
