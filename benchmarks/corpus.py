"""Time and peak memory of preparing a corpus, by size and tokenizer, compared with the tokenizers library alone.

    python benchmarks/corpus.py --folder FOLDER [--sizes 50,200,1000] [--rows byte,char,gpt2,bpe] [--write docs/PAGE.md]

The text has a vocabulary of a million words with Zipf-distributed frequencies, in sentences and lines. Each row runs in
a separate process; its peak memory is the resident set size of ``getrusage``. Results and texts are kept in the folder,
and a later call measures only missing rows.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

MEGABYTE = 10**6
CONSONANTS = (*"bcdfghjklmnprstvwz", "th", "sh", "ch", "st", "tr", "pr")
SYLLABLES = [consonant + vowel for consonant in CONSONANTS for vowel in (*"aeiou", "ea", "ou", "ai")]
TYPES = 1_000_000
EXPONENT, OFFSET = 1.05, 2.7  # of the Zipf-Mandelbrot law
VOCAB_SIZE = 4096
LIBRARY = "library"
NAMES = {LIBRARY: "bpe by the tokenizers library alone"}


def word(rank: int) -> str:
    """The word of a frequency rank; frequent words are short."""
    syllables: list[str] = []
    rank += 1
    while rank:
        rank, digit = divmod(rank, len(SYLLABLES))
        syllables.append(SYLLABLES[(digit * 97 + len(syllables) * 31) % len(SYLLABLES)])
    return "".join(syllables)


def write_text(path: Path, size: int) -> None:
    """Write a deterministic text of about ``size`` bytes."""
    random = np.random.default_rng(0)
    words = [word(rank) for rank in range(TYPES)]
    first, last = OFFSET ** (1 - EXPONENT), (TYPES + OFFSET) ** (1 - EXPONENT)
    temporary, done = path.with_suffix(".part"), 0
    with temporary.open("w") as file:
        while done < size:
            inverse = (first + random.random(100_000) * (last - first)) ** (1 / (1 - EXPONENT)) - OFFSET
            ranks = inverse.astype(np.int64).clip(0, TYPES - 1)
            tokens = [words[rank] for rank in ranks.tolist()]
            for place in np.flatnonzero(random.random(len(tokens)) < 0.01).tolist():
                tokens[place] = str(int(ranks[place]) * 7)
            for place in np.flatnonzero(random.random(len(tokens)) < 0.05).tolist():
                tokens[place] += ","
            for place in np.flatnonzero(random.random(len(tokens)) < 0.06).tolist():
                tokens[place] = f"{tokens[place]}.{' ' if place % 5 else chr(10)}{tokens[place].capitalize()}"
            done += file.write(" ".join(tokens))
    temporary.rename(path)


def measure(row: str, text: Path) -> dict[str, float]:
    """Seconds of training the tokenizer and of encoding, CPU seconds of this process, and its peak memory in MiB.

    Training the tokenizer includes the first reading of the text.
    """
    cache = Path(tempfile.mkdtemp(dir=text.parent))
    try:
        begun, learned, tokens = tokenizers_library(text) if row == LIBRARY else prepared(row, text, cache)
        ended = time.perf_counter()
    finally:
        shutil.rmtree(cache)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "learning": learned - begun,
        "encoding": ended - learned,
        "cpu": used.ru_utime + used.ru_stime,
        "peak": used.ru_maxrss / 2**10,
        "tokens": tokens,
    }


def prepared(row: str, text: Path, cache: Path) -> tuple[float, float, int]:
    """Prepare with this package: times of the start and of the trained tokenizer, and the number of tokens."""
    from modular_gpt.data import build_corpus, build_tokenizer, prepare

    begun = time.perf_counter()
    corpus = build_corpus({"name": "text", "path": str(text)})
    settings: dict[str, Any] = {"name": row, **({"vocab_size": VOCAB_SIZE} if row == "bpe" else {})}
    tokenizer = build_tokenizer(settings, corpus, cache)
    learned = time.perf_counter()
    data = prepare(corpus, tokenizer, cache)
    return begun, learned, data.train.count + data.validation.count


def tokenizers_library(text: Path) -> tuple[float, float, int]:
    """The same for the tokenizers library: train a BPE on the whole file, then encode its lines in batches."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    begun = time.perf_counter()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train([str(text)], trainers.BpeTrainer(vocab_size=VOCAB_SIZE, show_progress=False))
    learned, tokens = time.perf_counter(), 0
    with text.open() as file:
        while lines := file.readlines(4 * 2**20):
            tokens += sum(len(encoding.ids) for encoding in tokenizer.encode_batch_fast(lines))
    return begun, learned, tokens


def report(results: dict[str, dict[str, float]]) -> str:
    """Table of all results, with the name of the machine."""
    import torch  # not needed in the processes of the rows
    from measure import machine, table

    lines = []
    for key, found in sorted(results.items(), key=lambda item: (int(item[0].split()[0]), item[0])):
        size, row = key.split()
        rate = int(size) / found["encoding"]
        lines.append([
            f"{int(size):,} MB", NAMES.get(row, row), f"{found['learning']:.1f}", f"{found['encoding']:.1f}",
            f"{found['cpu']:.1f}", f"{rate:.1f}", f"{found['peak']:,.0f}",
        ])  # fmt: skip
    header = ["text", "tokenizer", "learning, s", "encoding, s", "CPU s in all", "MB encoded/s", "peak memory, MiB"]
    return f"{machine(torch.device('cpu'))}, {date.today()}.\n\n{table(header, lines)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--sizes", default="50,200,1000", help="megabytes")
    parser.add_argument("--rows", default=f"byte,char,gpt2,bpe,{LIBRARY}")
    parser.add_argument("--write", type=Path, help="page whose section 'measured corpus' is replaced")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        print(json.dumps(measure(arguments.work[0], Path(arguments.work[1]))))
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    kept = arguments.folder / "results.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    for size in map(int, arguments.sizes.split(",")):
        text = arguments.folder / f"{size}.txt"
        if not text.exists():
            write_text(text, size * MEGABYTE)
        for row in arguments.rows.split(","):
            if f"{size} {row}" not in results:
                command = [sys.executable, __file__, "--folder", str(arguments.folder), "--work", row, str(text)]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                results[f"{size} {row}"] = json.loads(output)
                kept.write_text(json.dumps(results, indent=1))
    print(report(results))
    if arguments.write:
        from measure import write_section

        write_section(arguments.write, "corpus", report(results))


if __name__ == "__main__":
    main()
