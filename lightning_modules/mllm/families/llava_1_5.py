"""LLaVA 1.5 (CLIP and Vicuna): llava-hf/llava-1.5-7b-hf, 32 layers."""

from dataclasses import dataclass

from transformers import LlavaForConditionalGeneration, ProcessorMixin

from lightning_modules.mllm.families.base import Family


@dataclass(frozen=True)
class Llava15(Family):
    """The conversation is the one printed on the model's card."""

    source: str = "llava-hf/llava-1.5-7b-hf"
    dtype: str = "bfloat16"

    architecture = LlavaForConditionalGeneration

    def ask(self, prompt: str, with_image: bool, processor: ProcessorMixin) -> str:
        return f"USER: {processor.image_token if with_image else ''}\n{prompt} ASSISTANT:"
