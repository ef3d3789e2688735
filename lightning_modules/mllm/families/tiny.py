"""The embedded default: a LLaVA of a million parameters (SigLIP and Llama), made on this machine."""

from dataclasses import dataclass
from pathlib import Path

from transformers import LlavaForConditionalGeneration, ProcessorMixin

from lightning_modules.mllm.families.base import Family, weights_digest
from lightning_modules.mllm.tiny_base import Recipe, tiny_base


@dataclass(frozen=True)
class Tiny(Family):
    """Asked without ceremony: image, prompt, a blank, answer.

    source: a folder; empty: the base trained by `recipe`, made below `cache` when it is first asked for.
    """

    source: str = ""
    cache: str = "outputs/models"
    recipe: Recipe = Recipe()  # noqa: RUF009 - frozen

    architecture = LlavaForConditionalGeneration

    def ask(self, prompt: str, with_image: bool, processor: ProcessorMixin) -> str:
        return f"{processor.image_token if with_image else ''}{prompt}"

    def answer(self, answer: str) -> str:
        return f" {answer}"

    def folder(self) -> str:
        return self.source or str(tiny_base(self.recipe, Path(self.cache)))

    def fingerprint(self) -> str:
        """Of the base that the recipe makes its weights alone: the recipe settles the files beside them."""
        return super().fingerprint() if self.source else weights_digest(Path(self.folder()))
