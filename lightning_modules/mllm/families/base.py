"""What a family of vision-language models has to say of itself, and how every one of them is loaded and fed."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.utils.hub import cached_file, extract_commit_hash

from datamodules.errors import InputError
from datamodules.image_text.batch import IGNORED, ImageTextBatch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
READ = (".json", ".jinja", ".model", ".txt")  # endings of configuration, processor, tokenizer, chat template
TOLD = "trained.json"  # what `tiny_base` tells of its training, seconds included: nothing reads it


@dataclass(frozen=True)
class Family:
    """A pretrained model: a local folder or a name on the hub, and what differs from one architecture to another.

    source: folder with config.json, weights and processor files, or a hub name. revision: a commit of the hub.
    dtype: of the frozen weights, float32 or bfloat16. max_length: tokens of a row, image and answer included.

    architecture: the class of transformers. lora_targets: regex that the full name of a module must match to get a
    LoRA pair: q, k, v, o of the language model, never of the vision tower. parts: what else can be trained, by the
    name used in configurations. unquantised: modules that keep their precision. packs_images: whether the vision side
    takes all images of a batch as one; otherwise its arguments hold one row an image.
    """

    source: str
    revision: str | None = None
    dtype: str = "float32"
    max_length: int = 1200

    architecture: ClassVar[type[PreTrainedModel]]
    processor_class: ClassVar[Any] = AutoProcessor
    lora_targets: ClassVar[str] = r".*language_model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj"
    parts: ClassVar[Mapping[str, str]] = {"embeddings": "embed_tokens", "projector": "multi_modal_projector"}
    unquantised: ClassVar[Sequence[str]] = ("model.vision_tower", "model.multi_modal_projector", "lm_head")
    packs_images: ClassVar[bool] = False

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise InputError(f"model: expected dtype of {', '.join(DTYPES)}, found {self.dtype!r}")

    def ask(self, prompt: str, with_image: bool, processor: ProcessorMixin) -> str:
        """The whole text before the answer, one image placeholder in it where there is an image."""
        raise NotImplementedError

    def answer(self, answer: str) -> str:
        """What follows that text. Byte-level vocabularies know words by the blank before them."""
        return answer

    def folder(self) -> str:
        """Where the files are; a family that makes its own model makes it here."""
        return self.source

    def load(self, **options) -> PreTrainedModel:
        """The model in eval mode; options of `from_pretrained`."""
        return self._loaded(self.architecture, dtype=DTYPES[self.dtype], **options)

    def encoder(self) -> "Encoder":
        """Prompts, images and answers -> batch."""
        return Encoder(self, self._loaded(self.processor_class, **self.processor_options()))

    def processor_options(self) -> dict[str, Any]:
        """Without torchvision the image processors of PIL are used."""
        return {"backend": "pil"}

    def fingerprint(self) -> str:
        """What stands for the model in the identity of a run.

        Of a folder the SHA-256 over its weights and over the files beside them that say how these are read and fed:
        other pixels or other tokens are another model. Of a name on the hub the name and the commit, which covers all.
        Raises InputError for a folder without weights, and where the hub's files are out of reach.
        """
        folder = Path(self.folder())
        if not folder.is_dir():
            return f"{self.source}@{self.commit}"
        digest = hashlib.sha256(weights_digest(folder).encode())
        for path in sorted(folder.iterdir()):
            if path.suffix in READ and path.name != TOLD and path.is_file():
                digest.update(path.name.encode() + b"\0" + _digest(path))
        return digest.hexdigest()

    @cached_property
    def commit(self) -> str | None:
        """That of the hub's files, found once: a branch that moves on meanwhile changes nothing. None for a folder."""
        if Path(self.folder()).is_dir():
            return None
        with self._reached("config.json"):
            path = cached_file(self.folder(), "config.json", revision=self.revision or "main")
        found = extract_commit_hash(path, None)
        if found is None:
            told = f"expected the commit of {self.source!r} on the hub, found none"
            raise InputError(f"model: {told}; download it and give the folder as source")
        return found

    def _loaded(self, kind: Any, **options) -> Any:
        revision = self.commit or "main"
        with self._reached(kind.__name__):
            return kind.from_pretrained(self.folder(), revision=revision, trust_remote_code=False, **options)

    @contextmanager
    def _reached(self, what: str) -> Iterator[None]:
        """Says in one line what to do where files are missing or the hub is out of reach."""
        try:
            yield
        except (OSError, ValueError) as error:  # transformers' words for either
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"model: expected {what} files in a folder or on the hub under {self.folder()!r}, found none "
                f"({reason}); fetch them with `hf download {self.source}` and give the folder as source"
            ) from error


def weights_digest(folder: Path) -> str:
    """SHA-256 over the `*.safetensors` of a folder, by their names in order. Raises InputError where there is none."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        found = f"expected weights (*.safetensors) in {str(folder)!r}, found none"
        raise InputError(f"model: {found}; save the model there with save_pretrained")
    return hashlib.sha256(b"".join(map(_digest, weights))).hexdigest()


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@dataclass(frozen=True)
class Encoder:
    """Tokens and pixels of a family, as datamodules.image_text.batch.Encode asks for."""

    family: Family
    processor: ProcessorMixin

    def __call__(
        self, prompts: Sequence[str], images: Sequence[Image.Image | None], answers: Sequence[str] | None
    ) -> ImageTextBatch:
        """Raises InputError for a row whose image and answer alone exceed the family's `max_length`."""
        rows, vision = self._prompts(prompts, images)
        tails = (
            [[*self.answer_ids(answer), self.end] for answer in answers] if answers is not None else [[]] * len(rows)
        )
        rows = [self._shortened(row, len(tail)) for row, tail in zip(rows, tails, strict=True)]
        width = max(len(row) + len(tail) for row, tail in zip(rows, tails, strict=True))
        shape = (len(rows), width)
        ids, mask = torch.full(shape, self._pad), torch.zeros(shape, dtype=torch.int64)
        labels = torch.full(shape, IGNORED)
        for i, (row, tail) in enumerate(zip(rows, tails, strict=True)):
            size = len(row) + len(tail)
            begin = 0 if answers is not None else width - size
            ids[i, begin : begin + size] = torch.tensor(row + tail)
            mask[i, begin : begin + size] = 1
            labels[i, begin + len(row) : begin + size] = torch.tensor(tail, dtype=torch.int64)
        return ImageTextBatch(ids, mask, labels, vision, ids=(), classes=torch.full((len(rows),), -1))

    def answer_ids(self, answer: str) -> list[int]:
        """Tokens of an answer as they stand in training, without the end token."""
        return self.processor.tokenizer(self.family.answer(answer), add_special_tokens=False).input_ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated tokens."""
        return self.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()

    @property
    def end(self) -> int:
        """The token that ends an answer."""
        return self.processor.tokenizer.eos_token_id

    @property
    def _pad(self) -> int:
        pad = self.processor.tokenizer.pad_token_id
        return self.end if pad is None else pad

    def _prompts(
        self, prompts: Sequence[str], images: Sequence[Image.Image | None]
    ) -> tuple[list[list[int]], dict[str, Tensor]]:
        """Token ids of each prompt with its image's placeholders, and the vision inputs of all images."""
        # A caption that spells the placeholder out must not call for an image that is not there.
        clean = [prompt.replace(self.processor.image_token, "") for prompt in prompts]
        texts = [
            self.family.ask(prompt, image is not None, self.processor)
            for prompt, image in zip(clean, images, strict=True)
        ]
        shown = [image for image in images if image is not None]
        inputs = self.processor(
            text=texts, images=shown or None, padding=True, padding_side="left", return_tensors="pt"
        )
        kept = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        # A row without anything to look back at would have no next token.
        rows = [ids[mask.bool()].tolist() or [self.end] for ids, mask in kept]
        vision = {
            name: value
            for name, value in inputs.items()
            if name not in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
        }
        return rows, vision

    def _shortened(self, row: list[int], answer: int) -> list[int]:
        """The row without the middle of its text where it is too long: the question stands last, the image first."""
        excess = len(row) + answer - self.family.max_length
        if excess <= 0:
            return row
        image = self.processor.image_token_id
        begin = 1 + max((at for at, token in enumerate(row) if token == image), default=0)
        if len(row) - begin <= excess:
            raise InputError(
                f"model: expected rows of at most {self.family.max_length} tokens, found {len(row)} in a prompt with "
                f"{begin} of them for the image and {answer} for the answer; raise max_length"
            )
        middle = begin + (len(row) - begin - excess) // 2
        return row[:middle] + row[middle + excess :]
