"""int8 weights on a CPU: change of perplexity, size, and decoding speed compared with bfloat16 and float32.

    python benchmarks/int8.py [--steps 400] [--rounds 7] [--write docs/benchmarks.md]

Perplexity is measured on validation text with a small model that the script trains on the standard library of Python.
Speed is measured at the shape of GPT-2 124M with random weights, batch 1, greedy, on one thread. The packings take
turns in one process and are timed in CPU seconds, which other load on the machine disturbs less than wall time.
"""

import argparse
import copy
import math
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from measure import machine, table, write_section

from modular_gpt import GPTConfig, GPTModel, compose
from modular_gpt.data import Tokenizer, build_corpus
from modular_gpt.deploy.cpu_packing import Int8Linear, PackedLinear, pack, pack_int8
from modular_gpt.evaluation import evaluate_text
from modular_gpt.training import train

VALIDATION = 100_000  # characters
FORMS = {
    "float32, onednn": lambda model: pack(model.float()),
    "bf16, onednn": lambda model: pack(model.bfloat16()),
    "bf16, int8": lambda model: pack_int8(model.bfloat16()),
}


def trained(steps: int, size: str) -> tuple[GPTModel, Tokenizer, str]:
    """Train with AdamW and the default recipe; returns the model, its tokenizer and the validation text."""
    validation = build_corpus(compose().data).documents("validation")
    text = "".join(chunk.text for chunk in islice(validation, 200))[:VALIDATION]
    with tempfile.TemporaryDirectory() as folder:
        settings = (f"model_size={size}", f"trainer.max_steps={steps}", "trainer.final_evaluation=false", "optim=adamw")
        result = train(compose(*settings, "trainer.precision=float32", f"runs={folder}"), quiet=True)
        return result.model.eval(), result.tokenizer, text


def weight_bytes(model: GPTModel) -> int:
    """Bytes of the weights of linear layers and of the head, all of which a decoding step reads."""
    total = 0
    for module in model.modules():
        if isinstance(module, Int8Linear):
            total += module.weight.nbytes + module.scale.nbytes
        elif isinstance(module, PackedLinear):
            total += module.in_features * module.out_features * model.embedding.weight.itemsize
    return total


def perplexities(steps: int, size: str) -> str:
    """Perplexity of a trained model by format of its weights."""
    model, tokenizer, text = trained(steps, size)
    rows, losses = [], []
    for name, form in {"float32": copy.deepcopy, **FORMS}.items():
        losses.append(evaluate_text(form(copy.deepcopy(model)), tokenizer, text).loss)
        change = 100 * (math.exp(losses[-1] - losses[0]) - 1)
        rows.append([name, f"{losses[-1]:.5f}", f"{math.exp(losses[-1]):.4f}", f"{change:+.3f}%"])
    return table(["weights", "nats per token", "perplexity", "change"], rows)


@torch.inference_mode()
def speeds(rounds: int, new: int) -> str:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    shape = {"vocab_size": 50257, "d_model": 768, "n_heads": 12, "n_layers": 12, "context_length": 1024}
    base = GPTModel(GPTConfig(**shape, pos="learned")).eval()
    models = {name: form(copy.deepcopy(base)) for name, form in FORMS.items()}
    ids = torch.randint(50257, (1, 32))
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + 1):
        for name, model in models.items():
            start = time.process_time()
            model.generate(ids, max_new_tokens=new, greedy=True)
            if turn:  # the first turn is the warm-up
                times[name].append(new / (time.process_time() - start))
    reference = times["bf16, onednn"]
    rows = []
    for name, found in times.items():
        ratios = [a / b for a, b in zip(found, reference, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        megabytes = f"{weight_bytes(models[name]) / 2**20:.0f}"
        rows.append([name, megabytes, f"{statistics.median(found):.1f}", f"{statistics.median(ratios):.2f}x", spread])
    return table(
        ["weights", "MiB read for a token", "tokens per CPU second", "speed against bf16", "of the rounds"], rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="training steps")
    parser.add_argument("--size", default="nano", help="model_size of the trained model")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--new", type=int, default=24, help="tokens decoded per round")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="page whose section is replaced by the tables")
    options = parser.parse_args()
    text = f"{machine(torch.device('cpu'))}\n\n{perplexities(options.steps, options.size)}\n\n"
    text += speeds(options.rounds, options.new)
    print(text)
    if options.write:
        write_section(options.write, "int8", text)


if __name__ == "__main__":
    main()
