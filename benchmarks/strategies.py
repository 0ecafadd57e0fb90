"""The five generation strategies at batch 64, compared with transformers' ``generate`` where it supports a batch.

    python benchmarks/strategies.py [--batch 64] [--new 64] [--rounds 5] [--quick] [--partial FOLDER]
        [--write docs/benchmarks.md]

Both libraries run a small GPT-2 with the same random weights and GPT-2's vocabulary. The draft of ``speculative`` is
the model's first layer. transformers 5 supports assisted decoding for batch 1 only, and has no built-in contrastive
search.
"""

import argparse
from dataclasses import replace
from typing import Any

import torch
from measure import Variant, add_options, interleave, run_sections, speeds, where
from pairs import DTYPES, build_pair, gpt2, packed
from torch import Tensor

from modular_gpt import GPTConfig, GPTModel

STRATEGIES: dict[str, dict[str, Any]] = {
    "sample": {"top_k": 50, "top_p": 0.9, "temperature": 0.8, "seed": 0},
    "beam": {"strategy": "beam", "num_beams": 4},
    "contrastive": {"strategy": "contrastive", "contrastive_candidates": 4},
    "speculative": {"strategy": "speculative", "draft_tokens": 4, "greedy": True},
    "lookup": {"strategy": "lookup", "draft_tokens": 4, "greedy": True},
}
PEER: dict[str, dict[str, Any]] = {
    "sample": {"do_sample": True, "top_k": 50, "top_p": 0.9, "temperature": 0.8},
    "beam": {"do_sample": False, "num_beams": 4},
}


def draft_of(model: GPTModel) -> GPTModel:
    """Draft model: the first layer of ``model`` with its embeddings and final norm."""
    draft = GPTModel(GPTConfig.from_dict({**model.config.to_dict(), "n_layers": 1})).to(model.embedding.weight)
    weights = model.state_dict()
    draft.load_state_dict({name: weights[name] for name in draft.state_dict()})
    return draft.eval()


@torch.inference_mode()
def batch(options: argparse.Namespace) -> str:
    """Time every strategy on the same prompts and number of new tokens."""
    rows, new = (4, 6) if options.quick else (options.batch, options.new)
    sizes = (2, 64, 4, 128, 97) if options.quick else (options.layers, 256, 4, 256, 50257)
    hf_model, plain_model = build_pair(gpt2(*sizes), DTYPES[options.dtype])
    ids = torch.randint(97, (rows, 32), generator=torch.Generator().manual_seed(1))
    hf_model.generation_config.pad_token_id, hf_model.generation_config.eos_token_id = 0, None

    def run_hf(settings: dict[str, Any]) -> Tensor:
        mask = torch.ones_like(ids)
        return hf_model.generate(ids, attention_mask=mask, min_new_tokens=new, max_new_tokens=new, **settings)

    draft, model = draft_of(plain_model), packed(plain_model)

    def run(settings: dict[str, Any]) -> Tensor:
        extra = {"draft": draft} if settings.get("strategy") == "speculative" else {}
        return model.generate(ids, new, **settings, **extra)

    variants = [
        Variant(f"transformers {name}", lambda s=settings: run_hf(s), rows * new, peer=True)
        for name, settings in PEER.items()
    ]
    variants += [
        Variant(f"modular_gpt {name}", lambda s=settings: run(s), rows * new) for name, settings in STRATEGIES.items()
    ]
    interleave(variants, options.rounds)
    shape = f"{sizes[0]} layers of {sizes[1]}, {sizes[4]:,} ids"
    title = f"{options.dtype}, batch {rows}, prompts of 32 tokens, {new} new tokens, {shape}."
    tables = []
    for name in PEER:
        same = [variant for variant in variants if variant.name.endswith(f" {name}")]
        tables.append(speeds(same, "transformers"))
    own_variants = [replace(variant, peer="sample" in variant.name) for variant in variants if not variant.peer]
    return "\n\n".join([title, where(), *tables, speeds(own_variants, "sample")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, 5, {"batch"})
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    run_sections("strategies", {"batch": batch}, parser.parse_args())


if __name__ == "__main__":
    main()
