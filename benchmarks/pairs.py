"""Pairs of models with equal weights, of transformers and of this package, and their decoding loops."""

import argparse
import copy
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor

from modular_gpt import GPTModel
from modular_gpt.deploy.cpu_packing import can_pack, pack
from modular_gpt.pretrained import load_pretrained

transformers.utils.logging.disable_progress_bar()

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Decode = Callable[[int], None]  # decodes this number of tokens, one at a time, after all earlier ones


def add_pair_options(parser: argparse.ArgumentParser, new: int) -> None:
    """Add the options of scripts that decode with a pair; new: default number of tokens."""
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--new", type=int, default=new, help="tokens decoded per round")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")


def build_pair(config: Any, dtype: torch.dtype) -> tuple[Any, GPTModel]:
    """Model of transformers with random weights, and the same model of this package."""
    torch.manual_seed(0)
    hf_model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        hf_model.save_pretrained(folder)
        model = load_pretrained(folder).to(dtype).eval()
    return hf_model.to(dtype), model


def packed(model: GPTModel) -> GPTModel:
    """A copy packed for the CPU where that is supported."""
    return pack(copy.deepcopy(model)) if can_pack(model) else model


def gpt2(layers: int, width: int, heads: int, context: int, vocabulary: int) -> Any:
    """GPT-2: multi-head attention and learned positions."""
    return transformers.GPT2Config(
        vocab_size=vocabulary, n_positions=context, n_embd=width, n_layer=layers, n_head=heads,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip


def llama(layers: int, width: int, heads: int, context: int, vocabulary: int, **changes: Any) -> Any:
    """Llama: rotary positions, RMSNorm, gated units, and a third of the heads for keys and values."""
    return transformers.LlamaConfig(
        **_sizes(layers, width, heads, context, vocabulary), num_key_value_heads=max(heads // 3, 1), **changes
    )


def mistral(layers: int, width: int, heads: int, context: int, vocabulary: int) -> Any:
    """Mistral: Llama with a sliding window, here of 256 tokens."""
    return transformers.MistralConfig(
        **_sizes(layers, width, heads, context, vocabulary), num_key_value_heads=max(heads // 3, 1), sliding_window=256
    )


def mixtral(layers: int, width: int, heads: int, context: int, vocabulary: int) -> Any:
    """Mixtral: two of eight experts, each half as wide as Llama's gated units."""
    sizes = _sizes(layers, width, heads, context, vocabulary)
    sizes["intermediate_size"] //= 2
    return transformers.MixtralConfig(
        **sizes, num_key_value_heads=max(heads // 3, 1), num_local_experts=8, num_experts_per_tok=2, sliding_window=None
    )


def deepseek(layers: int, width: int, heads: int, context: int, vocabulary: int) -> Any:
    """DeepSeek-V3's multi-head latent attention with dense feed-forward networks."""
    head = width // heads
    return transformers.DeepseekV3Config(
        **_sizes(layers, width, heads, context, vocabulary), num_key_value_heads=heads, q_lora_rank=None,
        kv_lora_rank=width // 6, qk_rope_head_dim=head // 2, qk_nope_head_dim=head, v_head_dim=head,
        first_k_dense_replace=layers,
    )  # fmt: skip


def _sizes(layers: int, width: int, heads: int, context: int, vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 8 * width // 3,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": context,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def hf_decoding(model: Any, ids: Tensor, capacity: int, static: bool, chunk: int | None = None) -> Decode:
    """Read ``ids`` (B, T) into a cache of transformers, growing or of fixed ``capacity``; then decode greedily.

    chunk: number of ids read at once; None: all
    """
    config, count = model.config, ids.shape[1]
    cache = (
        transformers.StaticCache(config=config, max_cache_len=capacity)
        if static
        else transformers.DynamicCache(config=config)
    )
    for first in range(0, count, chunk or count):
        block = ids[:, first : first + (chunk or count)]
        where = torch.arange(first, first + block.shape[1])[None].expand(len(ids), -1)
        out = model(block, past_key_values=cache, use_cache=True, position_ids=where, logits_to_keep=1)
    token, position = out.logits.argmax(-1), torch.tensor([count])

    def decode(count: int) -> None:
        nonlocal token, position
        for _ in range(count):
            out = model(token, past_key_values=cache, use_cache=True, position_ids=position[None].expand(len(token), 1))
            token, position = out.logits.argmax(-1), position + 1

    return decode


def our_decoding(model: GPTModel, ids: Tensor, capacity: int) -> Decode:
    """Read ``ids`` (B, T) into a cache of ``capacity`` tokens; then decode greedily."""
    cache = model.new_cache(len(ids), capacity)
    token = model(ids, cache=cache, last_only=True).argmax(-1)

    def decode(count: int) -> None:
        nonlocal token
        for _ in range(count):
            token = model(token, cache=cache, last_only=True).argmax(-1)

    return decode
