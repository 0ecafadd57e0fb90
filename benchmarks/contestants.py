"""Training steps of the libraries that benchmarks/train.py compares, each as its users would write it.

All read batches of the same size and do the same work in a step: loss, gradients, clipping to norm 1, AdamW.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modular_gpt import GPTConfig
from modular_gpt.data import BatchSource, PreparedText, TokenSplit

LEARNING_RATE = 1e-4

Step = Callable[[], object]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Size:
    """Shape of the model and of a batch; ``steps`` is the number of steps timed together."""

    name: str
    layers: int
    width: int
    heads: int
    context: int
    batch: int
    vocabulary: int
    steps: int

    @property
    def tokens(self) -> int:
        """Tokens per step."""
        return self.batch * self.context

    @property
    def title(self) -> str:
        """Heading of the table."""
        return (
            f"{self.name}: {self.layers} layers, {self.width} wide, context {self.context}, batch {self.batch}, "
            f"{self.vocabulary:,} ids"
        )


SIZES = {
    size.name: size
    for size in (
        Size("tiny", layers=1, width=48, heads=3, context=32, batch=2, vocabulary=65, steps=1),
        Size("small", layers=4, width=128, heads=4, context=64, batch=12, vocabulary=65, steps=20),
        Size("medium", layers=6, width=384, heads=6, context=256, batch=16, vocabulary=65, steps=2),
        Size("124M", layers=12, width=768, heads=12, context=256, batch=2, vocabulary=50257, steps=1),
    )
}


@dataclass(frozen=True)
class Contestant:
    """One row of the table.

    library: one of ``LIBRARIES``; precision: of our trainer, or float32 | bf16 (autocast) of a peer
    compile: of our trainer, or torch.compile around a peer's loss; model: settings that differ from GPT-2's
    label: names the settings in the row; empty: they are listed
    """

    library: str
    precision: str
    compile: Any = False
    model: dict[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def peer(self) -> bool:
        """Whether it is another library."""
        return self.library != "modular_gpt"

    @property
    def name(self) -> str:
        """Label of the row."""
        settings = [self.label] if self.label else [f"{key}={value}" for key, value in self.model.items()]
        compiled = {"auto": "compile=auto", True: "compiled", False: ""}[self.compile]
        precision = "precision=auto" if self.precision == "auto" else self.precision
        return ", ".join([" ".join([self.library, *settings]), *filter(None, [precision, compiled])])

    def build(self, size: Size, tokens: TokenSplit, device: torch.device) -> Step:
        """Build the training step, a function that can be called repeatedly."""
        return LIBRARIES[self.library](self, size, tokens, device)


def model_settings(size: Size, changes: dict[str, Any]) -> dict[str, Any]:
    """Model settings of this package at a size: GPT-2 as published, with the changes applied."""
    plain = {"n_layers": size.layers, "d_model": size.width, "n_heads": size.heads, "context_length": size.context}
    plain |= {"vocab_size": size.vocabulary, "attention": "mha", "ffn": "mlp", "norm": "layernorm", "pos": "learned"}
    if changes.get("attention") == "mla":
        plain["pos"] = "rope"
    return GPTConfig.from_dict({**GPTConfig(**plain, bias=True, dropout=0.0).to_dict(), **changes}).to_dict()


def own_step(contestant: Contestant, size: Size, tokens: TokenSplit, device: torch.device) -> Step:
    """``Trainer.update`` of a run with these settings: a complete step of this package."""
    from modular_gpt.distributed import build_parallel
    from modular_gpt.runtime.cpu_allocator import keep_memory
    from modular_gpt.runtime.device import float32_products
    from modular_gpt.runtime.processes import ProcessGroup
    from modular_gpt.training import RunConfig, TrainerConfig
    from modular_gpt.training.build import build_trainer
    from modular_gpt.training.compile import ordered_sums
    from modular_gpt.training.forward import Placement

    keep_memory()

    config = RunConfig(
        model=model_settings(size, contestant.model),
        optim={"name": "adamw", "learning_rate": LEARNING_RATE},
        schedule="constant",
        trainer=TrainerConfig(
            max_steps=10**6, batch_size=size.batch, compile=contestant.compile, sample_tokens=0, device=device.type
        ),
    )
    data = PreparedText(tokens, tokens, {"tokenizer": {"vocab_size": size.vocabulary}})
    tokenizer: Any = SimpleNamespace(vocab_size=size.vocabulary)
    placement = Placement(device, contestant.precision, build_parallel("none", ProcessGroup()))
    trainer = build_trainer(config, data, tokenizer, placement)
    trainer.model.train()

    def step() -> None:
        with float32_products(trainer.precision, device), ordered_sums(trainer.forward.compiled):
            trainer.update()
        trainer.progress.step += 1

    return step


def peer(loss: Loss, model: nn.Module, contestant: Contestant, size: Size, tokens: TokenSplit, device: Any) -> Step:
    """A standard training loop around a peer's loss of ids and targets (B, T), with PyTorch's fused AdamW."""
    model.to(device).train()
    run = torch.compile(loss, dynamic=False) if contestant.compile else loss
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), fused=True)
    batches = cycled_batches(size, tokens)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")

    def step() -> None:
        ids, targets = (tensor.to(device) for tensor in next(batches))
        with torch.autocast(device.type, torch.bfloat16, enabled=contestant.precision == "bf16"):
            value = run(ids, targets)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def cycled_batches(size: Size, tokens: TokenSplit) -> Iterator[tuple[Tensor, Tensor]]:
    """Cycle over batches drawn in advance from the trainer's data source."""
    source = BatchSource(tokens, size.context, size.batch, seed=0)
    drawn = [source.batch(number) for number in range(16)]
    while True:
        yield from drawn


def transformers_gpt2(contestant: Contestant, size: Size, tokens: TokenSplit, device: torch.device) -> Step:
    """transformers' GPT2LMHeadModel, which shifts the targets itself."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=size.vocabulary, n_positions=size.context, n_embd=size.width, n_layer=size.layers,
        n_head=size.heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    return peer(lambda ids, _: model(ids, labels=ids).loss, model, contestant, size, tokens, device)


def llama_settings(size: Size) -> dict[str, Any]:
    """Model settings of Llama at a size, with a third of the heads for keys and values."""
    attention = {"name": "gqa", "n_kv_heads": max(size.heads // 3, 1)}
    ffn = {"name": "swiglu", "hidden": 8 * size.width // 3}
    plain = {"norm": "rmsnorm", "pos": "rope", "bias": False, "tie_embeddings": False}
    return {"attention": attention, "ffn": ffn, **plain}


def mixtral_settings(size: Size) -> dict[str, Any]:
    """Llama's settings with top-2 of eight experts, each half as wide, and only the load-balancing loss."""
    experts = {"name": "moe", "n_experts": 8, "top_k": 2, "hidden": 4 * size.width // 3, "z_weight": 0.0}
    return {**llama_settings(size), "ffn": experts}


def transformers_llama(contestant: Contestant, size: Size, tokens: TokenSplit, device: torch.device) -> Step:
    """transformers' LlamaForCausalLM."""
    from pairs import llama
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(llama(size.layers, size.width, size.heads, size.context, size.vocabulary, use_cache=False))
    return peer(lambda ids, _: model(ids, labels=ids).loss, model, contestant, size, tokens, device)


def transformers_mixtral(contestant: Contestant, size: Size, tokens: TokenSplit, device: torch.device) -> Step:
    """transformers' MixtralForCausalLM with its load-balancing loss."""
    from pairs import mixtral
    from transformers import MixtralForCausalLM

    model = MixtralForCausalLM(mixtral(size.layers, size.width, size.heads, size.context, size.vocabulary))
    model.config.use_cache = False

    def loss(ids: Tensor, _: Tensor) -> Tensor:
        return model(ids, labels=ids, output_router_logits=True).loss

    return peer(loss, model, contestant, size, tokens, device)


def litgpt(contestant: Contestant, size: Size, tokens: TokenSplit, device: torch.device) -> Step:
    """litgpt's GPT with biases, LayerNorm and a GELU MLP, as in GPT-2, but with rotary positions and an untied head."""
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    model = GPT(
        Config(
            block_size=size.context, vocab_size=size.vocabulary, padded_vocab_size=size.vocabulary,
            n_layer=size.layers, n_head=size.heads, n_embd=size.width, rotary_percentage=1.0, bias=True,
            norm_class_name="LayerNorm", mlp_class_name="GptNeoxMLP",
        )
    )  # fmt: skip
    return peer(
        lambda ids, targets: chunked_cross_entropy(model(ids), targets, chunk_size=0),
        model, contestant, size, tokens, device,
    )  # fmt: skip


def x_transformers(contestant: Contestant, size: Size, tokens: TokenSplit, device: torch.device) -> Step:
    """x-transformers' decoder with its defaults, flash attention on, and tied embeddings."""
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(dim=size.width, depth=size.layers, heads=size.heads, attn_flash=True,
                     attn_dim_head=size.width // size.heads)  # fmt: skip
    model = TransformerWrapper(
        num_tokens=size.vocabulary, max_seq_len=size.context, attn_layers=layers, tie_embedding=True
    )
    return peer(
        lambda ids, targets: F.cross_entropy(model(ids).flatten(0, 1).float(), targets.flatten()),
        model, contestant, size, tokens, device,
    )  # fmt: skip


class PlainBlock(nn.Module):
    """Pre-norm attention and MLP with one matrix for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(self.norms[0](x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x)), approximate="tanh"))


class PlainGPT(nn.Module):
    """Minimal GPT-2."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.positions = nn.Embedding(size.context, size.width)
        self.blocks = nn.Sequential(*(PlainBlock(size.width, size.heads) for _ in range(size.layers)))
        self.norm = nn.LayerNorm(size.width)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * size.layers))

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, V)"""
        x = self.tokens(ids) + self.positions.weight
        return F.linear(self.norm(self.blocks(x)), self.tokens.weight)


def plain(contestant: Contestant, size: Size, tokens: TokenSplit, device: torch.device) -> Step:
    """Minimal GPT-2 in a plain training loop."""
    model = PlainGPT(size)
    return peer(
        lambda ids, targets: F.cross_entropy(model(ids).flatten(0, 1), targets.flatten()),
        model, contestant, size, tokens, device,
    )  # fmt: skip


LIBRARIES: dict[str, Callable[[Contestant, Size, TokenSplit, torch.device], Step]] = {
    "modular_gpt": own_step,
    "transformers": transformers_gpt2,
    "transformers Llama": transformers_llama,
    "transformers Mixtral": transformers_mixtral,
    "litgpt": litgpt,
    "x-transformers": x_transformers,
    "plain loop": plain,
}


def write_tokens(path: Any, size: Size, count: int = 2**18) -> TokenSplit:
    """Write a file of random ids."""
    ids = np.random.default_rng(0).integers(size.vocabulary, size=count).astype(np.uint16)
    ids.tofile(path)
    return TokenSplit("random", path, ids.dtype, count, bytes=count, fingerprint="", zlib_bits_per_byte=None)
