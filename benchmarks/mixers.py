"""Compare attentions: speed of chunked recurrences, and bits per byte after small trainings of equal settings.

    python benchmarks/mixers.py speed [--tokens 2048] [--rounds 7] [--write docs/attention.md]
    python benchmarks/mixers.py train --runs DIRECTORY [--steps 200] [--attention mha kda] [--write docs/attention.md]

``speed`` times one layer of width 128 with 4 heads at batch 1 in float32, and compares the chunked delta rule and
decayed products with their recurrences token by token. A step is a forward and a backward pass. Timings are
interleaved: each variant runs once per round.

``train`` trains a nano model of each attention on the standard library of Python with the same settings, seed and
tokens, and evaluates it on the same windows of the validation text. Runs found in the directory are not repeated.
"""

import argparse
import datetime
import json
from collections.abc import Callable
from pathlib import Path

import torch
from measure import Variant, interleave, machine, table, write_section
from torch import Tensor

import modular_gpt
from modular_gpt import GPTConfig, GPTModel
from modular_gpt.core.contracts import Positions
from modular_gpt.nn.decay import decayed_products
from modular_gpt.nn.delta_rule import delta_rule

WIDTH, HEADS = 128, 4
LAYERS = ("mha", "linear", "lightning", "gated_delta", "kda", "shortconv")
TRAINED = ("mha", "sparse", "linear", "lightning", "gated_delta", "kda", "shortconv")
Results = tuple[Tensor, Tensor]
Rule = Callable[[list[Tensor]], Results]


def steps(name: str, forward: Callable[[], Tensor], tokens: int) -> list[Variant]:
    """Variants of the forward pass without gradients, and of a step with gradients."""

    @torch.no_grad()
    def alone() -> Tensor:
        return forward()

    def step() -> None:
        forward().sum().backward()

    return [Variant(f"{name}, forward", alone, tokens), Variant(f"{name}, step", step, tokens)]


def layer(name: str, tokens: int) -> list[Variant]:
    """One attention layer with its projections."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=2, d_model=WIDTH, n_heads=HEADS, n_layers=1, context_length=tokens)
    attention = GPTModel(GPTConfig(**sizes, pos="none", attention=name)).blocks[0].attention
    x = torch.randn(1, tokens, WIDTH, requires_grad=True)
    return steps(name, lambda: attention(x, Positions(0, tokens, None, x.device)), tokens)


def rules() -> dict[str, tuple[int, Rule, Rule]]:
    """Chunk size, chunked form and recurrence of each rule on q, k, v, log_decay and rate."""

    def delta(chunk: int) -> Rule:
        return lambda x: delta_rule(x[0], x[1], x[2], (x[3], x[4]), None, chunk)

    def products(chunk: int) -> Rule:
        return lambda x: decayed_products(x[0], x[1], x[2], x[3], None, chunk, None)

    def delta_by_token(x: list[Tensor]) -> Results:
        memory, outs = None, []
        for q, k, v, decay, rate in zip(*(tensor.split(1, dim=2) for tensor in x), strict=True):
            out, memory = delta_rule(q, k, v, (decay, rate), memory, 1)
            outs.append(out)
        assert memory is not None
        return torch.cat(outs, dim=2), memory

    def products_by_token(x: list[Tensor]) -> Results:
        memory, outs = x[0].new_zeros(1, HEADS, WIDTH // HEADS, WIDTH // HEADS), []
        for q, k, v, decay in zip(*(tensor.split(1, dim=2) for tensor in x[:4]), strict=True):
            memory = decay.exp().transpose(-1, -2) * memory + k.transpose(-1, -2) @ v
            outs.append(q @ memory)
        return torch.cat(outs, dim=2), memory

    return {
        "lightning": (64, products(64), products_by_token),
        "gated_delta": (64, delta(64), delta_by_token),
        "kda": (64, delta(64), delta_by_token),
    }


def inputs(name: str, tokens: int) -> list[Tensor]:
    torch.manual_seed(0)
    width = WIDTH // HEADS
    q, k, v, decay = (torch.randn(1, HEADS, tokens, n) for n in (width, width, width, width if name == "kda" else 1))
    rate = torch.rand(1, HEADS, tokens, 1)
    tensors = [q, k / k.norm(dim=-1, keepdim=True), v, -0.1 * decay.exp(), rate]
    return [tensor.requires_grad_() for tensor in tensors]


def speed(options: argparse.Namespace) -> str:
    tokens = options.tokens
    variants = [variant for name in LAYERS for variant in layer(name, tokens)]
    for name, (chunk, chunked, by_token) in rules().items():
        tensors = inputs(name, tokens)
        variants += steps(f"{name}: rule in chunks of {chunk}", lambda f=chunked, x=tensors: f(x)[0], tokens)
        variants += steps(f"{name}: recurrence", lambda f=by_token, x=tensors: f(x)[0], tokens)
    interleave(variants, options.rounds)
    rows = [
        [forward.name.removesuffix(", forward"), *(cell for variant in (forward, step) for cell in timed(variant))]
        for forward, step in zip(variants[::2], variants[1::2], strict=True)
    ]
    header = [f"{tokens:,} tokens", "forward, ms", "spread", "step, ms", "spread"]
    conditions = (
        f"{WIDTH} wide, {HEADS} heads, one row, float32. {machine(torch.device('cpu'))}, {datetime.date.today()}; "
        f"medians of {options.rounds} rounds, spread: half the distance between the quartiles."
    )
    return f"{conditions}\n\n{table(header, rows)}"


def timed(variant: Variant) -> list[str]:
    return [f"{variant.median * 1e3:,.1f}", f"{variant.spread:.0%}"]


def trained(name: str, options: argparse.Namespace) -> list[str]:
    """Parameters, validation loss and bits per byte after the last step of a run; trains where there is no run."""
    where = options.runs / name
    if evaluation(where, options.steps) is None:
        settings = [f"attention={name}", "model_size=nano", "model_size.context_length=128", "trainer.batch_size=8"]
        settings += [f"trainer.max_steps={options.steps}", "trainer.device=cpu", f"trainer.threads={options.threads}"]
        settings += [f"trainer.eval_interval={options.steps}", "pos=rope", "optim=adamw", "seed=0"]
        settings += ["optim.learning_rate=0.003", "schedule=cosine"]
        modular_gpt.train(modular_gpt.compose(*settings, f"runs={where}"), quiet=True)
    found = evaluation(where, options.steps)
    assert found is not None
    size = json.loads((where / "latest" / "run.json").read_text())["parameters"]["total"]
    return [f"{size:,}", f"{found['validation_loss']:.3f}", f"{found['bits_per_byte']:.3f}"]


def evaluation(where: Path, step: int) -> dict[str, float] | None:
    """The evaluation after a step of the last run in a directory; None where there is none."""
    path = where / "latest" / "metrics.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    found = [entry for entry in entries if entry["step"] == step and "bits_per_byte" in entry]
    return found[-1] if found else None


def train(options: argparse.Namespace) -> str:
    rows = []
    for name in options.attention:
        rows.append([name, *trained(name, options)])
        print(*rows[-1], flush=True)
    conditions = (
        f"`model_size=nano`, context 128, 8 rows a step, {options.steps} steps ({options.steps * 1024:,} tokens), "
        f"`pos=rope`, learning rate 0.003, seed 0, data=python_stdlib; {datetime.date.today()}. With one seed "
        "and one learning rate, a small difference means nothing: [comparison.md](comparison.md) is the way to compare."
    )
    return f"{conditions}\n\n{table(['attention', 'parameters', 'validation loss', 'bits per byte'], rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "train"))
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--attention", nargs="+", default=list(TRAINED))
    parser.add_argument("--runs", type=Path, help="directory of the trainings")
    parser.add_argument("--write", type=Path, help="page whose section 'measured mixers speed' or 'train' is replaced")
    options = parser.parse_args()
    if options.what == "train" and options.runs is None:
        parser.error("train needs --runs")
    torch.set_num_threads(options.threads)
    text = {"speed": speed, "train": train}[options.what](options)
    print(text)
    if options.write:
        write_section(options.write, f"mixers {options.what}", text)


if __name__ == "__main__":
    main()
