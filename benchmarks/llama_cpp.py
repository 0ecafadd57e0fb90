"""Run GGUF files in llama.cpp and compare tokens and greedy text, for each architecture and tokenizer.

``save_gguf`` writes small models with random weights, and a build of llama.cpp reads them, here that of the npm package
node-llama-cpp. Its greedy continuation of a prompt is compared with that of this package id by id. From the checkout:

    npm install --prefix /tmp/llama node-llama-cpp
    python benchmarks/llama_cpp.py /tmp/llama
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from modular_gpt import GPTModel
from modular_gpt.checkpoint.gguf_file import save_gguf
from modular_gpt.core.registry import decode
from modular_gpt.data.corpora import build_corpus
from modular_gpt.data.tokenizers import Tokenizer, build_tokenizer
from modular_gpt.deploy.gguf import ARCHITECTURES
from modular_gpt.pretrained import FAMILIES

PROMPT = "def resolve(name: str) -> "
TEXTS = ["Hello, world!  It's 2 x 3.\n\n\tübung 日本 12345", " a  b\r\n", "x=1", "\x00\x00 <|endoftext|>"]
TOKENIZERS: dict[str, dict[str, Any]] = {
    "bpe": {"name": "bpe", "vocab_size": 600},
    "byte": {"name": "byte"},
    "sentencepiece": {"name": "sentencepiece", "vocab_size": 600, "algorithm": "bpe"},
    "gpt2": {"name": "gpt2"},
}
SIZES = {
    **dict.fromkeys(("hidden_size", "n_embd"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 128),
    **{"num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16, "intermediate_size": 96},
    **{"sliding_window": 16, "n_inner": 96},
}
CHANGES: dict[str, dict[str, Any]] = {"mixtral": {"sliding_window": None}, "gemma3_text": {"num_hidden_layers": 7}}
# scaled rotary positions; the first half of each text is within the length before scaling
LENGTH = {"rope_theta": 10000.0, "original_max_position_embeddings": 64}
SCALED: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    "yarn": {**LENGTH, "rope_type": "yarn", "factor": 2.0},
    "llama3": {**LENGTH, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
}
BY_TYPE = {
    "full_attention": {**SCALED["linear"], "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
JAVASCRIPT = """
import {getLlama, LlamaLogLevel} from "node-llama-cpp";
import fs from "fs";
const cases = JSON.parse(fs.readFileSync(process.argv[2]));
const llama = await getLlama({build: "never", gpu: false, progressLogs: false, logLevel: LlamaLogLevel.error});
const found = {};
for (const [name, {file, texts, prompt, count}] of Object.entries(cases)) {
  const model = await llama.loadModel({modelPath: file});
  const context = await model.createContext({
    contextSize: 128, threads: 1, experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32",
  });
  const greedy = [];
  for await (const token of context.getSequence().evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
    greedy.push(token);
    if (greedy.length >= count) break;
  }
  found[name] = {tokens: texts.map(text => Array.from(model.tokenize(text, false))), greedy};
  await context.dispose();
  await model.dispose();
}
fs.writeFileSync(process.argv[3], JSON.stringify(found));
"""


def tokenizer_named(name: str, folder: Path) -> Tokenizer:
    """Build a tokenizer; one that needs training is trained on the sources of this package."""
    sources = Path(__file__).resolve().parents[1] / "modular_gpt" / "core"
    corpus = folder / "corpus.txt"
    corpus.write_text("".join(path.read_text() for path in sorted(sources.glob("*.py"))))
    data = decode("data", {"name": "text", "path": str(corpus)})
    return build_tokenizer(decode("tokenizer", TOKENIZERS[name]), build_corpus(data))


def random_model(model_type: str, changes: dict[str, Any], vocab_size: int, std: float) -> GPTModel:
    """A small model of a published type with its default settings, and random weights that give varied text."""
    family = FAMILIES[model_type]
    sizes = {key: value for key, value in SIZES.items() if key in family.defaults}
    config = family.config({**sizes, **CHANGES.get(model_type, {}), **changes, "vocab_size": vocab_size})
    torch.manual_seed(0)
    model = GPTModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where node-llama-cpp was installed")
    parser.add_argument("--tokens", type=int, default=60, help="tokens of each continuation")
    parser.add_argument("--std", type=float, default=0.15, help="standard deviation of the weights")
    parser.add_argument("--only", default="", help="run only cases whose label contains this text")
    arguments = parser.parse_args()
    variants: list[tuple[str, str, str, dict[str, Any]]] = [
        *((model_type, "bpe", "", {}) for model_type in ARCHITECTURES),
        *((model_type, "bpe", name, {"rope_parameters": rope}) for model_type in ("llama", "qwen3")
          for name, rope in SCALED.items() if model_type == "llama" or name != "llama3"),
        ("gemma3_text", "bpe", "linear", {"rope_parameters": BY_TYPE}),
        ("llama", "byte", "", {}),
        ("llama", "sentencepiece", "", {}),
        ("gpt2", "gpt2", "", {}),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        folder, cases, expected = Path(temporary), {}, {}
        for model_type, name, variant, changes in variants:
            model_label = " ".join(filter(None, (model_type, variant, name)))
            if arguments.only not in model_label:
                continue
            tokenizer = tokenizer_named(name, folder)
            model = random_model(model_type, changes, tokenizer.vocab_size, arguments.std)
            for dtype in (torch.float32, torch.bfloat16):
                label = f"{model_label} {str(dtype).removeprefix('torch.')}"
                file = folder / f"{label.replace(' ', '-')}.gguf"
                save_gguf(model.to(dtype), file, tokenizer)
                prompt = tokenizer.prompt_ids(PROMPT)
                out = model.float().generate(torch.tensor([prompt]), max_new_tokens=arguments.tokens, greedy=True)
                cases[label] = {"file": str(file), "texts": TEXTS, "prompt": prompt, "count": arguments.tokens}
                greedy = out[0, len(prompt) :].tolist()
                if tokenizer.eos_id in greedy:  # llama.cpp stops there
                    greedy = greedy[: greedy.index(tokenizer.eos_id) + 1]
                texts = list(map(tokenizer.encode, TEXTS))
                expected[label] = {"tokens": texts, "greedy": greedy, "margins": margins(model, out, len(prompt))}
        for name, found in run_node(arguments.folder, cases, folder).items():
            report(name, expected[name], found)


@torch.no_grad()
def margins(model: GPTModel, ids: torch.Tensor, start: int) -> list[float]:
    """Margin of the chosen token over the second one, in standard deviations of all logits, for each new token."""
    logits = model(ids)[0, start - 1 : -1]
    best = logits.topk(2).values
    out: list[float] = ((best[:, 0] - best[:, 1]) / logits.std()).tolist()
    return out


def run_node(node_folder: Path, cases: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run the cases in llama.cpp and return its results by label."""
    script, given, written = node_folder / "gguf_parity.mjs", folder / "cases.json", folder / "found.json"
    script.write_text(JAVASCRIPT)
    given.write_text(json.dumps(cases))
    subprocess.run(["node", str(script), str(given), str(written)], check=True)
    found: dict[str, Any] = json.loads(written.read_text())
    return found


def report(name: str, expected: dict[str, Any], found: dict[str, Any]) -> None:
    """Print a line about one file: whether tokens are equal, and the number of equal greedy ids."""
    same = [a == b for a, b in zip(expected["greedy"], found["greedy"], strict=False)]
    equal = same.index(False) if False in same else len(same)
    tokens = "equal" if expected["tokens"] == found["tokens"] else "different"
    tie = f", where the first choice leads by {expected['margins'][equal]:.0e} deviations" if False in same else ""
    print(f"{name:28} tokens {tokens:10} greedy ids equal: {equal} of {len(expected['greedy'])}{tie}", flush=True)
    if tokens != "equal":
        print(*[f"    {a} | {b}" for a, b in zip(expected["tokens"], found["tokens"], strict=True) if a != b], sep="\n")


if __name__ == "__main__":
    main()
