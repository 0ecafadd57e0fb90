"""Output for users: summary() and print(model)."""

import re

from modular_gpt import GPTConfig, GPTModel
from tests.components.cases import ALL, MODEL, Case, parametrize

LLAMA = GPTConfig(
    vocab_size=100, d_model=32, n_heads=4, n_layers=4, context_length=64, bias=False, tie_embeddings=False, pos="rope",
    norm="rmsnorm", attention="gqa", ffn={"name": "swiglu", "hidden": 40}, head_bias=True,
    layers={"variants": {"light": {"ffn": {"hidden": 8}, "attention": {"n_kv_heads": 1}}}, "prefix": ["light"]},
)  # fmt: skip
TABLE = """\
module                     type                parameters   share  cache/token
------------------------------------------------------------------------------
embedding                  Embedding                3,200   11.7%
positions                  RoPE                         0    0.0%
block 0 attention          MultiHeadAttention       2,560    9.4%         64 B
block 0 ffn                GatedLinearUnit            768    2.8%
block 0 attention_norm     RMSNorm                     32    0.1%
block 0 ffn_norm           RMSNorm                     32    0.1%
blocks 1-3 attention       MultiHeadAttention       9,216   33.6%        384 B
blocks 1-3 ffn             GatedLinearUnit         11,520   42.0%
"""


def numbers(column: str, table: str) -> list[int]:
    place = table.splitlines()[0].index(column) + len(column)
    found = [re.search(r"([\d,]+)( B)?$", line[:place].rstrip()) for line in table.splitlines()[2:]]
    return [int(match[1].replace(",", "")) for match in found if match]


def test_summary() -> None:
    table = GPTModel(LLAMA).summary()
    rows = TABLE.splitlines()
    assert [line.split() for line in table.splitlines()[:2]] == [line.split() for line in rows[:2]]
    for row in rows[2:]:
        name, kind, parameters = re.split(r"\s{2,}", row)[:3]
        assert re.search(rf"^{re.escape(name)}\s+{kind}\s+{parameters}\b", table, re.MULTILINE), row
    assert all(len(line) <= 100 and line == line.rstrip() for line in table.splitlines())


@parametrize(ALL)
def test_summary_is_complete(case: Case) -> None:
    """Every parameter is in exactly one line, and the cache sizes of the layers add up to that of the model."""
    model = GPTModel(case.config())
    *lines, total = numbers("parameters", model.summary())
    assert sum(lines) == total == model.num_parameters().total


def test_summary_of_the_cache() -> None:
    lines = GPTModel(LLAMA).summary().splitlines()
    cached = [int(match[1]) for line in lines if (match := re.search(r"(\d+) B$", line))]
    assert cached == [64, 384, 448]
    assert LLAMA.cache_bytes(1, 10) == 10 * 448


def test_equal_blocks_share_their_lines_in_any_pattern() -> None:
    def labels(n_layers: int, cycle: list[str]) -> list[str]:
        variants = {"local": {"attention": {"window": 5}}}
        layers = {"variants": variants, "cycle": cycle}
        table = GPTModel(**{**MODEL, "n_layers": n_layers}, layers=layers).summary()
        return [line.partition(" attention ")[0] for line in table.splitlines() if " attention " in line]

    assert labels(3, ["base"]) == ["blocks 0-2"]
    assert labels(3, ["local", "base"]) == ["blocks 0, 2", "block 1"]
    assert labels(6, ["local", "local", "base"]) == ["blocks 0-1, 3-4", "blocks 2, 5"]
    assert labels(12, ["local", "base"]) == ["6 blocks 0, 2, 4, ...", "6 blocks 1, 3, 5, ..."]


def test_print_tells_layers_apart() -> None:
    settings = {"n_layers": 3, "pos": {"name": "rope", "theta": 50.0}}
    layers = {"variants": {"local": {"attention": {"name": "swa", "window": 5}, "pos": "none"}}, "prefix": ["local"]}
    printed = repr(GPTModel(**{**MODEL, **settings}, layers=layers))
    for excerpt in (
        "(0): RoPE(rope, theta=50.0)",
        "(1): NoPosition(none)",
        "swa, window=5; pos none",
        "mha; pos rope, theta",
    ):
        assert excerpt in printed, excerpt
    assert "(1-2): 2 x TransformerBlock" in printed


def test_print_names_every_module_with_its_shape() -> None:
    printed = repr(GPTModel(LLAMA))
    for excerpt in (
        "(embedding): Embedding(100, 32)",
        "(positions): ModuleList",
        "(1-3): 3 x TransformerBlock",
        "(attention): MultiHeadAttention",
        "(query): Linear(in_features=32, out_features=32, bias=False)",
        "(key): Linear(in_features=32, out_features=16, bias=False)",
        "(ffn): GatedLinearUnit",
        "activation=silu",
        "RMSNorm(32, eps=1e-05)",
        "(head): Linear(in_features=32, out_features=100, bias=False)",
    ):
        assert excerpt in printed, excerpt
    assert len(printed.splitlines()) < 60
    assert "8 experts (glu, hidden 88), top_k=2" in repr(GPTModel(**{**MODEL, "ffn": "moe"}))
