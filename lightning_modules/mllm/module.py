"""A multimodal LLM as a LightningModule: trained on the tokens of the answers, read out where the next token stands."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from datamodules.errors import InputError
from datamodules.image_text.batch import IGNORED, ImageTextBatch
from lightning_modules.mllm.families.base import Encoder, Family
from lightning_modules.mllm.features import check_cacheable, features_of
from lightning_modules.mllm.loading import Lora, frozen_model, with_lora
from lightning_modules.schedules import WarmedCosine


class MultimodalModule(pl.LightningModule):
    """A frozen base with LoRA pairs, tuned on answers.

    family: which model and how it is asked. optimizer: called with the parameters to train (FedMLLM: AdamW with betas
    .9, .95 and weight decay .1). lora, also_train: what is trained; lora None: nothing, for zero-shot evaluation alone.
    seed: draws the first LoRA factors. schedule: factor on the rate by (step, steps of this fit). cache_features: keep
    what the frozen vision side makes of an image, for all epochs, rounds and clients.

    `encoder` turns prompts, images and answers into batches; `model` is the model of transformers, inside a PeftModel
    where LoRA is trained (`model.save_pretrained(folder)` exports it).
    """

    def __init__(
        self,
        family: Family,
        optimizer,
        seed: int,
        lora: Lora | None = Lora(),  # noqa: B008 - frozen
        also_train: Sequence[str] = (),
        quantization: str = "none",
        gradient_checkpointing: bool = False,
        cache_features: bool = False,
        schedule: WarmedCosine = WarmedCosine(),  # noqa: B008 - frozen
    ):
        super().__init__()
        self.family, self.seed = family, seed
        self._optimizer, self._schedule = optimizer, schedule
        self.encoder: Encoder = family.encoder()
        model: Any = frozen_model(family, quantization, gradient_checkpointing)
        self.model = model if lora is None else with_lora(model, family, lora, also_train, seed)
        if cache_features:
            check_cacheable(family, also_train)
        self._features = features_of(family) if cache_features else None
        # A batch of texts alone trains no projector.
        self.skips_parameters = "projector" in also_train
        # A checkpoint holds what is trained; the base is there already.
        self.strict_loading = False
        self.train()

    @property
    def base(self) -> PreTrainedModel:
        """The model of transformers, its LoRA pairs in place."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def hidden(self, batch: ImageTextBatch, **options) -> Any:
        """Output of the model below its head: last_hidden_state (N, L, D), and past_key_values with use_cache=True."""
        vision: dict[str, Any] = dict(batch.vision)
        if vision and self._features is not None:
            vision = {"mm_encoder_outputs": {"image": self._features(self.base, vision)}}
        return self.base.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, **vision, **{"use_cache": False, **options}
        )

    def head(self, hidden: Tensor) -> Tensor:
        """(..., V) float32 logits of the next token after hidden states (..., D)."""
        return self.base.get_output_embeddings()(hidden).float()

    def answer_logits(self, batch: ImageTextBatch) -> tuple[Tensor, Tensor]:
        """(A, V) logits at all A answer tokens of the batch and (A,) the tokens; the head sees no other position."""
        answered = batch.labels[:, 1:] != IGNORED
        return self.head(self.hidden(batch).last_hidden_state[:, :-1][answered]), batch.labels[:, 1:][answered]

    def training_step(self, batch: ImageTextBatch, batch_idx: int) -> Tensor:
        """Cross-entropy over all answer tokens of the step, whichever row or rank holds them.

        Accumulated batches weigh alike, as in the released training.
        """
        logits, tokens = self.answer_logits(batch)
        own = torch.tensor(float(len(tokens)), device=self.device)
        world = self.trainer.world_size
        total = self.trainer.strategy.reduce(own, reduce_op="sum") if world > 1 else own
        # DDP takes the mean of the ranks' gradients.
        loss = functional.cross_entropy(logits, tokens, reduction="sum") * world / total.clamp(min=1)
        # By the tokens of all ranks on each, so that the epoch's mean is the mean over its tokens.
        self.log("train/loss", loss.detach(), on_step=False, on_epoch=True, batch_size=int(total), sync_dist=True)
        return loss

    def on_train_start(self) -> None:
        # Lightning trains in the mode it finds, and after an evaluation LoRA's dropout would sleep on.
        self.train()

    def configure_optimizers(self):
        optimizer = self._optimizer([p for p in self.parameters() if p.requires_grad])
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self._schedule(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = self._trained()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises InputError unless the checkpoint holds exactly what is trained here."""
        if apart := sorted(self._trained() ^ set(checkpoint["state_dict"])):
            told = f"expected a checkpoint of what is trained here, found a difference in '{apart[0]}'"
            raise InputError(f"model: {told} ({len(apart)} in all); use the settings it was trained with")

    def _trained(self) -> set[str]:
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}
