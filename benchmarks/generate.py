"""Compare decoding and prefill at the shape of GPT-2 124M with transformers, and with litgpt where it is installed.

    python benchmarks/generate.py [--dtype bfloat16] [--batch 1 8] [--rounds 5] [--quick] [--partial FOLDER]
        [--write docs/benchmarks.md]

Every GPT-2 has the same random weights; decoding is greedy; all variants are interleaved in one run. ``bound`` is the
fraction of the bandwidth bound: bytes of weights read per step, times steps per second, over the copy bandwidth.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import Variant, copy_bandwidth, interleave, machine, run_section, table
from pairs import DTYPES, build_pair, gpt2, packed
from torch import Tensor

from modular_gpt import GPTConfig, GPTModel
from modular_gpt.deploy.cpu_packing import can_pack

Peers = dict[str, Callable[[Tensor, int], Tensor]]  # (ids, number of new tokens) -> all ids
ATTENTIONS = ("gqa", "mqa", "swa", "mla", "linear")


def peers(dtype: torch.dtype, device: torch.device) -> tuple[GPTModel, Peers]:
    """GPT-2 of this package, and transformers' ``generate`` with the same weights."""
    hf_model, model = build_pair(gpt2(12, 768, 12, 1024, 50257), dtype)
    hf_model, model = hf_model.to(device), model.to(device)
    hf_model.generation_config.pad_token_id = 0

    def generate(ids: Tensor, new: int, cache: str) -> Tensor:
        return hf_model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=new,
            max_new_tokens=new,
            do_sample=False,
            cache_implementation=cache,
        )

    return model, {
        "transformers, dynamic cache": lambda ids, new: generate(ids, new, "dynamic"),
        "transformers, static cache": lambda ids, new: generate(ids, new, "static"),
    }


def litgpt_peer(dtype: torch.dtype, device: torch.device) -> Callable[[Tensor, int], Tensor] | None:
    """litgpt's model of the same shape in a plain greedy loop with its cache; None where it is not installed."""
    try:
        from litgpt import GPT, Config
    except ImportError:
        return None
    config = Config(
        block_size=1024, vocab_size=50257, padded_vocab_size=50257, n_layer=12, n_head=12, n_embd=768,
        rotary_percentage=1.0, bias=True, norm_class_name="LayerNorm", mlp_class_name="GptNeoxMLP",
    )  # fmt: skip
    model = GPT(config).to(device, dtype).eval()

    def generate(ids: Tensor, new: int) -> Tensor:
        batch, count = ids.shape
        with torch.device(device):
            model.set_kv_cache(batch_size=batch, max_seq_length=count + new, dtype=dtype)
        where = torch.arange(count, device=device)
        for _ in range(new):
            token = model(ids[:, where], where)[:, -1:].argmax(-1)
            ids = torch.cat([ids, token], dim=1)
            where = where[-1:] + 1
        return ids

    return generate


def our_models(base: GPTModel, dtype: torch.dtype, quick: bool) -> dict[str, GPTModel]:
    """GPT-2 unpacked and packed, and one packed model of every other attention."""
    models = {"modular_gpt mha, not packed": base}
    if can_pack(base):
        models["modular_gpt mha"] = packed(base)
    for attention in () if quick else ATTENTIONS:
        pos = "rope" if attention == "mla" else "learned"
        config = GPTConfig.from_dict({**base.config.to_dict(), "attention": attention, "pos": pos})
        model = GPTModel(config).to(base.embedding.weight).eval()
        models[f"modular_gpt {attention}"] = packed(model)
    return models


def weight_bytes(config: GPTConfig, dtype: torch.dtype) -> int:
    """Bytes of weights read by one decoding step: all but embedding tables, of which it reads single rows."""
    with torch.device("meta"):
        count = GPTModel(config).num_parameters()
    head = config.vocab_size * config.d_model if config.tie_embeddings else 0
    return (count.non_embedding + head) * dtype.itemsize


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--batch", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--prefill", type=int, default=512, help="tokens of the prefill prompt; 0: no prefill table")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="measure GPT-2 only, no other attentions")
    parser.add_argument(
        "--partial", type=Path, metavar="FOLDER", help="keep finished tables here and skip them in later calls"
    )
    parser.add_argument("--write", type=Path, metavar="PAGE", help="page whose sections are replaced by the tables")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    bandwidth = copy_bandwidth(torch.device(options.device))
    for dtype in options.dtype:
        for section, measure in tables(DTYPES[dtype], options, bandwidth):
            run_section(f"generate-{dtype}-{section}", measure, options)


def tables(dtype: torch.dtype, options: Any, bandwidth: float) -> Iterator[tuple[str, Callable[[], str]]]:
    """Name and measurement of each table of one dtype."""
    device = torch.device(options.device)
    base, others = peers(dtype, device)
    litgpt = litgpt_peer(dtype, device)
    if litgpt is not None:
        others["litgpt"] = litgpt
    models = our_models(base, dtype, options.quick)
    for batch in options.batch:
        yield f"batch-{batch}", partial(decoding, models, others, dtype, batch, bandwidth, options)
    if options.prefill:
        yield "prefill", partial(prefill, models, others, dtype, bandwidth, options)


def decoding(
    models: dict[str, GPTModel], others: Peers, dtype: torch.dtype, batch: int, bandwidth: float, options: Any
) -> str:
    """Table of decoding after a short prompt."""
    ids = torch.randint(50257, (batch, options.prompt), generator=torch.Generator().manual_seed(1)).to(options.device)
    variants = compare(models, others, ids, options.new)
    interleave(variants, options.rounds)
    title = f"{short(dtype)}, batch {batch}, prompt {options.prompt}, {options.new} new tokens."
    text = [title, where(bandwidth, options), report(variants, models, dtype, batch, bandwidth)]
    if dtype == torch.float32:
        hf_ids = others["transformers, dynamic cache"](ids, options.new)
        same = hf_ids.equal(models["modular_gpt mha"].generate(ids, options.new, greedy=True))
        text.append(f"Same greedy tokens as transformers: {'yes' if same else 'no'}.")
    return "\n\n".join(text)


def prefill(models: dict[str, GPTModel], others: Peers, dtype: torch.dtype, bandwidth: float, options: Any) -> str:
    """Table of prefill without decoding."""
    ids = torch.randint(50257, (1, options.prefill)).to(options.device)
    variants = compare(models, others, ids, 1)
    interleave(variants, options.rounds)
    title = f"{short(dtype)}, prefill of {options.prefill} tokens."
    return "\n\n".join([title, where(bandwidth, options), report(variants, models, dtype, 1, None)])


def short(dtype: torch.dtype) -> str:
    """The name of a dtype without its module."""
    return str(dtype).removeprefix("torch.")


def where(bandwidth: float, options: Any) -> str:
    """The machine, its bandwidth and the date."""
    device = torch.device(options.device)
    return f"{machine(device)}; copy bandwidth {bandwidth / 1e9:.1f} GB/s, {time.strftime('%Y-%m-%d')}"


def compare(models: dict[str, GPTModel], others: Peers, ids: Tensor, new: int) -> list[Variant]:
    """One variant per model that generates ``new`` tokens after ``ids``; with one new token the prompt is timed."""
    work = ids.numel() if new == 1 else ids.shape[0] * new
    own_variants = [
        Variant(name, lambda model=model: model.generate(ids, new, greedy=True), work) for name, model in models.items()
    ]
    return [
        Variant(name, lambda run=run: run(ids, new), work, peer=True) for name, run in others.items()
    ] + own_variants


def report(
    variants: list[Variant], models: dict[str, GPTModel], dtype: torch.dtype, batch: int, bandwidth: float | None
) -> str:
    best = min(variant.median for variant in variants if variant.peer)
    rows = []
    for variant in variants:
        speed = variant.tokens / variant.median
        row = [
            variant.name,
            f"{variant.median:.3f}",
            f"{variant.spread:.0%}",
            f"{speed:,.0f}",
            f"{best / variant.median:.2f}",
        ]
        if bandwidth is not None:
            model = models.get(variant.name, models["modular_gpt mha, not packed"])
            row.append(f"{weight_bytes(model.config, dtype) * speed / batch / bandwidth:.0%}")
        rows.append(row)
    header = ["", "seconds", "spread", "tokens/s", "vs best peer"] + (["bound"] if bandwidth is not None else [])
    return table(header, rows)


if __name__ == "__main__":
    main()
