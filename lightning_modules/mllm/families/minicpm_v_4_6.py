"""MiniCPM-V 4.6, native in transformers: openbmb/MiniCPM-V-4.6.

Its published language model is Qwen3.5, whose layers are mostly linear attention without q, k, v, o: LoRA reaches only
the full-attention layers there. A Qwen3 language model (`text_config.model_type: qwen3`) has them in every layer.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import AutoImageProcessor, AutoTokenizer, MiniCPMV4_6ForConditionalGeneration, ProcessorMixin
from transformers.models.minicpmv4_6.processing_minicpmv4_6 import MiniCPMV4_6Processor

from lightning_modules.mllm.families.base import Family


class ImageProcessor(MiniCPMV4_6Processor):
    """MiniCPM-V's processor without videos: the stock one demands a video processor, and that demands torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
        self.slice_mode, self.video_slice_mode = image_processor.slice_mode, False
        self.default_use_image_id = image_processor.use_image_id
        self.image_token_divisor = 4 if image_processor.downsample_mode == "4x" else 16
        for name in ("image", "video"):
            setattr(self, f"{name}_token", getattr(tokenizer, f"{name}_token", None))
            setattr(self, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id", None))
        for name in ("image", "slice", "image_id"):
            for end in ("start", "end"):
                setattr(self, f"{name}_{end}_token", getattr(tokenizer, f"{name}_{end}_token"))

    @classmethod
    def from_pretrained(cls, source, **options):
        """From the files of image processor and tokenizer: AutoProcessor would give the tokenizer alone, in silence."""
        shared = {key: options[key] for key in ("revision", "trust_remote_code") if key in options}
        image_processor = AutoImageProcessor.from_pretrained(source, backend="pil", **shared)
        return cls(image_processor, AutoTokenizer.from_pretrained(source, **shared))


@dataclass(frozen=True)
class MiniCPMV46(Family):
    """Asked in the words of its chat template where the files hold one, else in ChatML without thinking."""

    source: str = "openbmb/MiniCPM-V-4.6"
    dtype: str = "bfloat16"

    architecture = MiniCPMV4_6ForConditionalGeneration
    processor_class = ImageProcessor
    parts: ClassVar = {"embeddings": "embed_tokens", "projector": "model.merger"}  # not vit_merger
    unquantised = ("model.vision_tower", "model.merger", "lm_head")
    packs_images = True

    def ask(self, prompt: str, with_image: bool, processor: ProcessorMixin) -> str:
        if processor.tokenizer.chat_template is None:
            image = processor.image_token + "\n" if with_image else ""
            return f"<|im_start|>user\n{image}{prompt}<|im_end|>\n<|im_start|>assistant\n"
        content = [{"type": "image"}] * with_image + [{"type": "text", "text": prompt}]
        turns = [{"role": "user", "content": content}]
        return processor.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )

    def processor_options(self) -> dict[str, Any]:
        return {}
