"""Compare decoding and prefill of 4,096 and 16,384 tokens with models of transformers with the same weights.

    python benchmarks/long_context.py [--layers 4] [--rounds 5] [--quick] [--partial FOLDER]
        [--write docs/benchmarks.md]

Layers have the shape of GPT-2 124M. A prompt is read once; then every variant decodes a few tokens per round, so that
its cache holds the prompt and the tokens of earlier rounds. MLA is compared with DeepSeek's model in transformers,
which reads prompts in chunks of 1,024 tokens here: its scores of 16,384 tokens in one pass would take some 30 GB.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from measure import Variant, add_options, interleave, run_sections, speeds, where
from pairs import (
    DTYPES,
    Decode,
    add_pair_options,
    build_pair,
    deepseek,
    gpt2,
    hf_decoding,
    llama,
    mistral,
    our_decoding,
    packed,
)

from modular_gpt import GPTConfig, GPTModel

CHUNK = 1024
FAMILIES = {
    "GPT-2": (gpt2, "mha"),
    "Llama": (llama, "gqa"),
    "Mistral, window 256": (mistral, "swa"),
    "DeepSeek": (deepseek, "mla"),
}


def models(options: argparse.Namespace, context: int, latent: bool) -> Iterator[tuple[str, Any, bool]]:
    """(name, model, whether it is a peer); latent: MLA only."""
    sizes = (2, 48, 3, context, 97) if options.quick else (options.layers, 768, 12, context, 50257)
    for name, (config, attention) in FAMILIES.items():
        if latent == (attention == "mla"):
            hf_model, model = build_pair(config(*sizes), DTYPES[options.dtype])
            yield f"transformers {name}", hf_model, True
            yield f"modular_gpt {attention}", packed(model), False
            if latent:
                yield f"modular_gpt {attention}, not packed", model, False
    if not latent:
        layers, width, heads, context, vocabulary = sizes
        shape = GPTConfig(
            n_layers=layers, d_model=width, n_heads=heads, context_length=context, vocab_size=vocabulary,
            attention="linear", pos="rope",
        )  # fmt: skip
        yield "modular_gpt linear", packed(GPTModel(shape).to(DTYPES[options.dtype]).eval()), False


@torch.inference_mode()
def decoding(options: argparse.Namespace, context: int, latent: bool = False) -> str:
    """Time decoding of a few tokens per round after ``context`` tokens."""
    context, new = (64, 2) if options.quick else (context, options.new)
    capacity = context + (options.rounds + 1) * new + 1
    ids = torch.randint(97, (1, context), generator=torch.Generator().manual_seed(1))
    variants: list[Variant] = []

    def add(name: str, decode: Decode, peer: bool) -> None:
        variants.append(Variant(name, partial(decode, new), new, peer))

    for name, model, peer in models(options, capacity, latent):
        if not peer:
            add(name, our_decoding(model, ids, capacity), peer)
            continue
        for static in (False, True):
            suffix = "static cache" if static else "dynamic cache"
            add(f"{name}, {suffix}", hf_decoding(model, ids, capacity, static, CHUNK), peer)
    interleave(variants, options.rounds)
    title = f"{options.dtype}, batch 1, {new} tokens after {context:,}, {layers(options)}."
    return "\n\n".join([title, where(), speeds(variants)])


@torch.inference_mode()
def prefill(options: argparse.Namespace, context: int, latent: bool = False) -> str:
    """Time prefill of ``context`` tokens into a cache."""
    context = 64 if options.quick else context
    ids = torch.randint(97, (1, context), generator=torch.Generator().manual_seed(1))
    variants = []
    for name, model, peer in models(options, context + 1, latent):
        run: Callable[[], object] = partial(our_decoding, model, ids, context + 1)
        if peer:
            run = partial(hf_decoding, model, ids, context + 1, False, CHUNK if latent else None)
        variants.append(Variant(name, run, context, peer))
    interleave(variants, options.rounds)
    title = f"{options.dtype}, prefill of {context:,} tokens, {layers(options)}."
    return "\n\n".join([title, where(), speeds(variants)])


def layers(options: argparse.Namespace) -> str:
    """The shape of the layers for a title."""
    return "2 layers of 48" if options.quick else f"{options.layers} layers of 768 with 12 heads"


SECTIONS = {
    "decoding-4096": partial(decoding, context=4096),
    "decoding-16384": partial(decoding, context=16384),
    "prefill-4096": partial(prefill, context=4096),
    "prefill-16384": partial(prefill, context=16384),
    "mla-decoding-16384": partial(decoding, context=16384, latent=True),
    "mla-prefill-4096": partial(prefill, context=4096, latent=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, 5, SECTIONS)
    add_pair_options(parser, new=16)
    run_sections("long", SECTIONS, parser.parse_args())


if __name__ == "__main__":
    main()
