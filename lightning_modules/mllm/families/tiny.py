"""The embedded default: a LLaVA of a million parameters (SigLIP and Llama), made on this machine."""

from dataclasses import dataclass

from transformers import LlavaForConditionalGeneration, ProcessorMixin

from lightning_modules.mllm.families.base import Family


@dataclass(frozen=True)
class Tiny(Family):
    """A model of `lightning_modules.mllm.tiny_model`: image, prompt, a blank, answer."""

    architecture = LlavaForConditionalGeneration

    def ask(self, prompt: str, with_image: bool, processor: ProcessorMixin) -> str:
        return f"{processor.image_token if with_image else ''}{prompt}"

    def answer(self, answer: str) -> str:
        return f" {answer}"
