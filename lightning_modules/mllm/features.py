"""What a frozen vision side makes of an image, computed once."""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from datamodules.errors import InputError
from lightning_modules.mllm.families.base import Family


class FeatureCache:
    """Features of images by the bytes of their pixels; the oldest go first beyond `limit` bytes.

    Each image is computed alone, so that its features are the same bits in whatever batch it is met first.
    """

    def __init__(self, limit: int = 1 << 30):
        self._limit, self._held = limit, 0
        self._known: OrderedDict[bytes, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def __call__(self, model, vision: Mapping[str, Tensor]) -> BaseModelOutputWithPooling:
        """What `model.get_image_features` gives for all images of a batch; vision: arguments of one row an image."""
        images = [
            {name: value[row : row + 1] for name, value in vision.items()} for row in range(len(vision["pixel_values"]))
        ]
        device = vision["pixel_values"].device  # another than that of a run before it in this process
        return BaseModelOutputWithPooling(pooler_output=[self._of(model, image).to(device) for image in images])

    def _of(self, model, image: Mapping[str, Tensor]) -> Tensor:
        digest = hashlib.blake2b(b"".join(image[name].cpu().numpy().tobytes() for name in sorted(image))).digest()
        if digest not in self._known:
            with torch.no_grad():
                (features,) = model.get_image_features(**image).pooler_output
            self._known[digest] = features
            self._held += _bytes(features)
            while self._held > self._limit and len(self._known) > 1:
                self._held -= _bytes(self._known.popitem(last=False)[1])
        return self._known[digest]


@lru_cache(maxsize=1)
def features_of(family: Family) -> FeatureCache:
    """The cache of a family's frozen base: rows of a sweep, which run in one process, meet the same images on it."""
    return FeatureCache()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def check_cacheable(family: Family, trained: Sequence[str]) -> None:
    """Raises InputError where features cannot be kept: the projector is trained, or the model packs its images."""
    if family.packs_images:
        raise InputError(f"model: {type(family).__name__} packs its images: expected cache_features=false")
    if "projector" in trained:
        raise InputError("model: expected cache_features=false where the projector is trained: its features change")
