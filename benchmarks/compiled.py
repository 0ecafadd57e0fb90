"""Compare the compiled decoding step with the eager one, unpacked and packed, on one thread and on two.

    python benchmarks/compiled.py [--rounds 7] [--quick] [--partial FOLDER] [--write docs/benchmarks.md]

All variants decode into caches of the same size; the compiled step reads its whole cache under a mask. The first step,
which compiles, is not timed; the compilation time is reported below the table.
"""

import argparse
import copy
import time
from functools import partial

import torch
from measure import Variant, add_options, interleave, run_sections, speeds, where
from pairs import packed
from torch import Tensor

from modular_gpt import GPTConfig, GPTModel
from modular_gpt.deploy.cpu_packing import pack_int8
from modular_gpt.generation.compiled import compiled_step

CAPACITY = 256
SHAPES = {
    "default": {"n_layers": 4, "d_model": 128, "n_heads": 4, "vocab_size": 512},
    "124M": {"n_layers": 12, "d_model": 768, "n_heads": 12, "vocab_size": 50257},
}


class Steps:
    """Decode single tokens with a model, compiled or eager, from the middle of a cache."""

    def __init__(self, model: GPTModel, batch: int, compiled: bool) -> None:
        self.model = model
        self.cache = model.new_cache(batch, CAPACITY)
        self.ids = torch.zeros(batch, 1, dtype=torch.long)
        self.step = compiled_step() if compiled else None

    def __call__(self, count: int) -> Tensor:
        for column in range(CAPACITY // 2, CAPACITY // 2 + count):
            if self.step is None:
                self.cache.seek(column)
                logits = self.model(self.ids, cache=self.cache)
            else:
                self.cache.seek(torch.tensor(column))
                logits = self.step(self.model, self.ids, self.cache)
        return logits


@torch.inference_mode()
def decoding(options: argparse.Namespace, shape: str, batch: int) -> str:
    """Table of decoding times for each dtype and number of threads."""
    config = GPTConfig(**SHAPES["default" if options.quick else shape], context_length=CAPACITY)
    tables, new = [], 2 if options.quick else options.new
    before = torch.get_num_threads()
    for dtype in (torch.float32, torch.bfloat16):
        for threads in (1,) if options.quick else (1, 2):
            torch.set_num_threads(threads)
            model = GPTModel(config).to(dtype).eval()
            int8 = pack_int8(copy.deepcopy(model))
            forms = {"eager": model, "eager, onednn": packed(model), "eager, int8": int8}
            variants, compiling = [], []
            for name, form in [*forms.items(), ("compiled", model), ("compiled, int8", int8)]:
                steps = Steps(form, batch, name.startswith("compiled"))
                begun = time.perf_counter()
                steps(1)
                compiling.append(time.perf_counter() - begun)
                variants.append(Variant(name, partial(steps, new), batch * new, peer=name == "eager"))
            interleave(variants, options.rounds)
            title = f"{shape}, batch {batch}, {str(dtype).removeprefix('torch.')}, {threads} threads."
            tables += [title, speeds(variants, "eager"), f"Compiling took {compiling[-2]:.0f} s."]
    torch.set_num_threads(before)
    return "\n\n".join([where(), *tables])


SECTIONS = {
    f"{shape}-batch-{batch}": partial(decoding, shape=shape, batch=batch) for shape in SHAPES for batch in (1, 8)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, 7, SECTIONS)
    parser.add_argument("--new", type=int, default=32, help="tokens decoded per round")
    run_sections("compiled", SECTIONS, parser.parse_args())


if __name__ == "__main__":
    main()
