"""Run the comparisons of docs/comparison.md with mgpt-compare on one CPU thread (about 45 minutes of CPU time).

    python benchmarks/comparisons.py --folder compares/docs [--only attention ffn] [--write docs/comparison.md]

Each comparison has a folder of its name. After an interruption the script resumes and does not repeat finished
trainings. Other load on the machine changes the columns of seconds, but not the losses.

A smoke test takes seconds: --seeds 1 --settings trainer.max_steps=10 trainer.eval_batches=1 lr=4e-3
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "docs" / "scripts"))

from comparison_results import write_sections

from modular_gpt.cli import compare
from modular_gpt.comparison.plan import PLAN

# for the pair whose order depends on the learning rate
ADAMW = ["trainer.max_steps=300", "optim=adamw", "schedule=cosine"]
COMPARISONS: dict[str, list[str]] = {
    "attention": ["attention=mha,gqa,mqa,mla,swa,linear", "budget=params"],
    "mixers": ["attention=mha,sparse,lightning,gated_delta,kda,shortconv", "budget=params"],
    "ffn": ["ffn=mlp,swiglu,geglu,reglu,moe", "budget=params"],
    "activation": ["ffn=mlp", "ffn.activation=gelu,relu,relu2,silu", "budget=params"],
    "norm": ["norm=layernorm,rmsnorm,scalenorm", "budget=params"],
    "pos": ["pos=rope,alibi,learned,sinusoidal,none", "budget=params"],
    "gelu-3e-3": ["ffn=mlp,swiglu", "budget=params", "lr=3e-3", *ADAMW],
    "gelu-1e-2": ["ffn=mlp,swiglu", "budget=params", "lr=1e-2", *ADAMW],
    "gelu-auto": ["ffn=mlp,swiglu", "budget=params", *ADAMW],
    "aa": ["attention=mha,mha,mha,mha,mha", "budget=tokens", "lr=4e-3"],
    "handicap": ["model.dropout=0,0.3", "budget=tokens", "lr=4e-3"],
}
COMMON = ["trainer.threads=1", "decoding=false", "pages=false"]  # no effect on the losses


def run(name: str, folder: Path, seeds: int, settings: list[str]) -> Path:
    """Run a comparison, or resume the one in ``folder / name``; returns its directory.

    Raises:
        SystemExit: the command failed or was stopped.
    """
    latest = folder / name / "latest"
    if (latest / PLAN).is_file():
        arguments = [f"resume={latest}", f"seeds={seeds}"]
    else:
        given = {setting.partition("=")[0] for setting in settings}
        kept = [setting for setting in [*COMPARISONS[name], *COMMON] if setting.partition("=")[0] not in given]
        arguments = [*kept, *settings, f"seeds={seeds}", f"compares={folder / name}"]
    print(f"{name}: mgpt-compare {' '.join(arguments)}", flush=True)
    code = compare.main(arguments)
    if code:
        raise SystemExit(code)
    return latest.resolve()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("compares/docs"), help="folder of all comparisons")
    parser.add_argument("--only", nargs="+", choices=list(COMPARISONS), default=list(COMPARISONS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--settings", nargs="+", default=[], metavar="KEY=VALUE", help="further settings of all comparisons"
    )
    parser.add_argument("--write", type=Path, help="page whose sections are replaced, or added before the last one")
    options = parser.parse_args()
    found = {name: run(name, options.folder, options.seeds, options.settings) for name in options.only}
    if options.write is not None:
        write_sections(options.write, found)


if __name__ == "__main__":
    main()
