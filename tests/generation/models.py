"""Small models with large weights, so that their output depends on the whole input."""

from typing import Any

import torch
from torch import Tensor

from modular_gpt import GPTModel

ATTENTIONS: dict[str, dict[str, Any]] = {
    "mha": {"name": "mha"},
    "mqa": {"name": "mqa"},
    "swa": {"name": "swa", "window": 3},
    "mla": {"name": "mla", "kv_lora_rank": 8},
    "mla-window": {"name": "mla", "kv_lora_rank": 8, "window": 5},
    "linear": {"name": "linear"},
    "streaming": {"name": "sparse", "pattern": "streaming", "window": 3, "global_tokens": 2},
}
POSITIONS = ("rope", "alibi", "none", "learned", "sinusoidal")
PAIRS = [(a, p) for a in ATTENTIONS for p in POSITIONS if (a, p) != ("linear", "alibi")]
SLIDING = [(a, p) for a, p in PAIRS if p in ("rope", "alibi", "none")]


def tiny(attention: str | dict[str, Any] = "mha", pos: str = "rope", seed: int = 0, **settings: Any) -> GPTModel:
    torch.manual_seed(seed)
    model = GPTModel(
        **{
            "vocab_size": 13,
            "d_model": 24,
            "n_heads": 4,
            "n_layers": 1,
            "context_length": 48,
            "attention": ATTENTIONS[attention] if isinstance(attention, str) else attention,
            "pos": pos,
            "init_std": 0.4,
            "tie_embeddings": False,
            **settings,
        }
    )
    return model.eval()


def prompts(batch: int = 2, length: int = 6, vocab_size: int = 13) -> Tensor:
    return torch.randint(0, vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def naive_greedy(model: GPTModel, ids: Tensor, count: int) -> Tensor:
    """Greedy decoding without a cache: a pass over the whole text for every token."""
    for _ in range(count):
        ids = torch.cat([ids, model(ids)[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids
