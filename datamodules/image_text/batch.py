"""The batch that travels from every image-text set to every multimodal LLM, and who makes it."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from PIL import Image
from torch import Tensor


class ImageTextBatch(NamedTuple):
    """N samples, each with image and text, one of them or neither.

    input_ids, attention_mask: (N, L) int64. Padded on the right where answers are in them (training), on the left
    where they end with the prompt (evaluation), so that the next token stands at L in every row.
    labels: (N, L) int64, the input token on the tokens of the answer, `IGNORED` everywhere else.
    vision: what the model wants to know of all images of the batch, in row order, by the name of its argument
    (`pixel_values`, ...); empty where no row has an image. Not cut by row.
    ids: of the samples, () where unknown. classes: (N,) int64 class index, -1 where there is none.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    vision: dict[str, Tensor]
    ids: tuple[str, ...]
    classes: Tensor


IGNORED = -100  # the label of a token that is not part of an answer, as cross-entropy knows it


class Encode(Protocol):
    """Prompts, images and answers -> batch; every model family has its own. Must survive pickling (loader workers)."""

    def __call__(
        self, prompts: Sequence[str], images: Sequence[Image.Image | None], answers: Sequence[str] | None
    ) -> ImageTextBatch:
        """answers: None for evaluation. The batch's ids are () and its classes -1: the caller knows them."""
