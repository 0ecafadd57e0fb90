"""Compare mixtures of experts and gated units with transformers' Mixtral and Llama of the same weights.

    python benchmarks/experts.py [--layers 4] [--rounds 5] [--quick] [--partial FOLDER] [--write docs/benchmarks.md]

Measures decoding after a prompt of 32 tokens and prefill of 512. ``benchmarks/train.py --table`` measures training.
"""

import argparse
import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from measure import Variant, add_options, interleave, run_sections, speeds, where
from pairs import DTYPES, add_pair_options, build_pair, hf_decoding, llama, mixtral, our_decoding, packed

from modular_gpt.deploy.cpu_packing import pack_int8

PROMPT, PREFILL = 32, 512
CONFIGS = {"moe": mixtral, "gated": llama}
PEERS = {"moe": "transformers Mixtral", "gated": "transformers Llama"}


def models(options: argparse.Namespace, name: str, context: int) -> Iterator[tuple[str, Any, bool]]:
    """(name, model, whether it is a peer) of one of ``CONFIGS``."""
    sizes = (2, 48, 3, context, 97) if options.quick else (options.layers, 768, 12, context, 50257)
    hf_model, own_model = build_pair(CONFIGS[name](*sizes), DTYPES[options.dtype])
    peer = PEERS[name]
    if name == "moe":
        for experts in ("eager", "grouped_mm"):
            model = copy.deepcopy(hf_model)
            model.set_experts_implementation(experts)
            yield f"{peer}, {experts}", model, True
    else:
        yield peer, hf_model, True
    yield "modular_gpt, not packed", own_model, False
    yield "modular_gpt", packed(own_model), False
    yield "modular_gpt, int8", pack_int8(copy.deepcopy(own_model)), False


@torch.inference_mode()
def decoding(options: argparse.Namespace, name: str, batch: int) -> str:
    """Time decoding of a fixed number of tokens per round."""
    new = 2 if options.quick else options.new
    capacity = PROMPT + (options.rounds + 1) * new + 1
    ids = torch.randint(97, (batch, PROMPT), generator=torch.Generator().manual_seed(1))
    variants = []
    for label, model, peer in models(options, name, capacity):
        decode = hf_decoding(model, ids, capacity, False) if peer else our_decoding(model, ids, capacity)
        variants.append(Variant(label, partial(decode, new), batch * new, peer))
    interleave(variants, options.rounds)
    return "\n\n".join([f"{title(options, name)}, batch {batch}, {new} tokens a round.", where(), speeds(variants)])


@torch.inference_mode()
def prefill(options: argparse.Namespace, name: str) -> str:
    """Time prefill of a prompt into a cache."""
    ids = torch.randint(97, (1, PREFILL), generator=torch.Generator().manual_seed(1))
    variants = []
    for label, model, peer in models(options, name, PREFILL + 1):
        run: Callable[[], object] = partial(our_decoding, model, ids, PREFILL + 1)
        if peer:
            run = partial(hf_decoding, model, ids, PREFILL + 1, False)
        variants.append(Variant(label, run, PREFILL, peer))
    interleave(variants, options.rounds)
    return "\n\n".join([f"{title(options, name)}, prefill of {PREFILL} tokens.", where(), speeds(variants)])


def title(options: argparse.Namespace, name: str) -> str:
    """Dtype and shape."""
    width = 48 if options.quick else 768
    units = f"two of eight experts of {4 * width // 3}" if name == "moe" else f"gated units of {8 * width // 3}"
    return f"{options.dtype}, {2 if options.quick else options.layers} layers of {width}, {units}"


SECTIONS = {
    "moe-decoding-1": partial(decoding, name="moe", batch=1),
    "moe-decoding-8": partial(decoding, name="moe", batch=8),
    "moe-prefill": partial(prefill, name="moe"),
    "gated-decoding-1": partial(decoding, name="gated", batch=1),
    "gated-prefill": partial(prefill, name="gated"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, 5, SECTIONS)
    add_pair_options(parser, new=32)
    run_sections("experts", SECTIONS, parser.parse_args())


if __name__ == "__main__":
    main()
