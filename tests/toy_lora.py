"""A language model of two layers with LoRA, for what the federation does with adapters."""

import pytorch_lightning as pl
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 20
ALL = r".*layers\.\d+\.self_attn\.(q|k|v|o)_proj"
LAST_QUERY = r".*layers\.1\.self_attn\.q_proj"


def base() -> LlamaForCausalLM:
    torch.manual_seed(11)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes)).eval()


class ToyLoRA(pl.LightningModule):
    """Predicts the next token of short sequences."""

    def __init__(self, targets: str = ALL, alpha: int = 4, lr: float = 1e-2):
        super().__init__()
        self._lr = lr
        options = {"target_modules": targets, "lora_dropout": 0.0, "task_type": "CAUSAL_LM"}
        model = base()
        torch.manual_seed(12)
        self.model = get_peft_model(model, LoraConfig(r=4, lora_alpha=alpha, **options))

    def training_step(self, batch, batch_idx):
        loss = self.model(input_ids=batch, labels=batch).loss
        self.log("train/loss", loss, on_epoch=True, on_step=False, batch_size=len(batch))
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=self._lr)


class Sequences(Dataset):
    """Random sequences of six tokens."""

    def __init__(self, samples: int = 32):
        self.tokens = torch.randint(0, VOCABULARY, (samples, 6), generator=torch.Generator().manual_seed(2))

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return self.tokens[index]
