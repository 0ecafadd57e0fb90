"""lm-evaluation-harness on models of this package: local tasks, and results equal to those of its HF model class."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from modular_gpt import ConfigError, DataError, GPTConfig, GPTModel
from modular_gpt.core.errors import NonFiniteError
from modular_gpt.data import Tokenizer, build_tokenizer
from modular_gpt.data.tokenizers.byte import ByteTokenizer

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")

from lm_eval.api.instance import Instance

from modular_gpt.evaluation.harness import HarnessModel, run_tasks

CONTEXT = 24
QUESTIONS = [
    ("The sky is", [" blue", " green", " a"], 0),
    ("Two and two make", [" four", " five", "?"], 0),
    ("Once upon a time, in a house longer than the context, there was", [" a", " no"], 1),
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
"""
CHOICE = """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list: [{metric: acc}]
"""
PERPLEXITY = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: bits_per_byte}]
"""
GENERATION = """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 5}
metric_list: [{metric: exact_match}]
"""


def small() -> GPTModel:
    torch.manual_seed(0)
    config = dict(vocab_size=256, d_model=32, n_heads=4, n_layers=2, context_length=CONTEXT, pos="rope", init_std=0.3)
    return GPTModel(GPTConfig(**config)).eval()  # type: ignore[arg-type]


@pytest.fixture
def tokenizer() -> Tokenizer:
    return build_tokenizer("byte")


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "questions.jsonl"
    keys = ("question", "choices", "answer")
    data.write_text("\n".join(json.dumps(dict(zip(keys, question, strict=True))) for question in QUESTIONS))

    def write(name: str, rest: str) -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(TASK.format(name=name, data=data) + rest)
        return str(path)

    return write


def log_probability(model: GPTModel, context: str, text: str) -> tuple[float, bool]:
    """Log-probability and greediness of a text, one byte-level token at a time."""
    ids, total, greedy = list((context + text).encode()), 0.0, True
    for at in range(len(context.encode()), len(ids)):
        # the model reads at most the last CONTEXT tokens before the last one
        first = max(0, len(ids) - 1 - CONTEXT)
        with torch.no_grad():
            logits = model(torch.tensor([ids[first:at]]))[0, -1]
        total += logits.double().log_softmax(-1)[ids[at]].item()
        greedy &= int(logits.argmax()) == ids[at]
    return total, greedy


def ask(request_type: str, *arguments: Any) -> Instance:
    return Instance(request_type=request_type, doc={}, arguments=arguments, idx=0)


def test_log_probabilities_equal_a_naive_twin(tokenizer: Tokenizer) -> None:
    model = small()
    pairs = [(context, choice) for context, choices, _ in QUESTIONS for choice in choices]
    pairs.append(("abc", HarnessModel(model, tokenizer).generate_until([ask("g", "abc", {"max_gen_toks": 4})])[0]))
    found = HarnessModel(model, tokenizer, batch_size=4).loglikelihood([ask("loglikelihood", *pair) for pair in pairs])
    for pair, (value, greedy) in zip(pairs, found, strict=True):
        expected = log_probability(model, *pair)
        assert value == pytest.approx(expected[0], rel=1e-5) and greedy == expected[1]
    if len(pairs[-1][1].encode()) == 4:  # greedy text is greedy if it is valid UTF-8
        assert found[-1][1]


def test_tasks_from_local_files(tokenizer: Tokenizer, task: Any) -> None:
    model = small()
    found = run_tasks(
        model,
        tokenizer,
        [task("small_choice", CHOICE), task("small_perplexity", PERPLEXITY), task("small_generation", GENERATION)],
        batch_size=2,
    )
    best = [max(choices, key=lambda c: log_probability(model, text, c)[0]) for text, choices, _ in QUESTIONS]
    right = sum(choices[answer] == chosen for (_, choices, answer), chosen in zip(QUESTIONS, best, strict=True))
    assert found["small_choice"]["acc,none"] == pytest.approx(right / len(QUESTIONS))
    assert found["small_perplexity"]["bits_per_byte,none"] > 1
    assert found["small_generation"]["exact_match,none"] == 0


def test_results_equal_those_of_the_harness_for_transformers(tokenizer: Tokenizer) -> None:
    from lm_eval.models.huggingface import HFLM

    from modular_gpt.hf import ModularGPTForCausalLM, to_transformers

    model = small()
    wrapped = to_transformers(tokenizer)
    wrapped.add_special_tokens({"eos_token": "\u010a", "pad_token": "\u010a"})  # how byte-level vocabularies write \n
    reference = HFLM(ModularGPTForCausalLM.from_gpt(model), tokenizer=wrapped, max_length=CONTEXT, device="cpu")
    ours = HarnessModel(model, tokenizer)
    pairs = [ask("loglikelihood", text, choice) for text, choices, _ in QUESTIONS for choice in choices]
    for result, other in zip(ours.loglikelihood(pairs), reference.loglikelihood(pairs), strict=True):
        assert result[0] == pytest.approx(other[0], rel=1e-4) and result[1] == other[1]
    whole = [ask("loglikelihood_rolling", text + choices[0]) for text, choices, _ in QUESTIONS]
    expected = reference.loglikelihood_rolling(whole)
    assert ours.loglikelihood_rolling(whole) == pytest.approx(expected, rel=1e-4)
    requests = [
        ask("generate_until", text, {"until": ["e"], "max_gen_toks": 6, "do_sample": False}) for text, _, _ in QUESTIONS
    ]
    assert ours.generate_until(requests) == reference.generate_until(requests)


def test_invalid_calls_are_refused(tokenizer: Tokenizer, task: Any, tmp_path: Path) -> None:
    model = small()
    with pytest.raises(ConfigError, match="no setting 'num_beams'"):
        HarnessModel(model, tokenizer).generate_until([ask("generate_until", "a", {"num_beams": 3})])
    with pytest.raises(DataError, match="more than the model's context of 24"):
        HarnessModel(model, tokenizer).loglikelihood([ask("loglikelihood", "a", "b" * 30)])
    with pytest.raises(ConfigError, match="cannot read the task"):
        run_tasks(model, tokenizer, [str(tmp_path / "none.yaml")])
    (tmp_path / "nameless.yaml").write_text("output_type: multiple_choice\n")
    with pytest.raises(ConfigError, match="no line 'task:"):
        run_tasks(model, tokenizer, [str(tmp_path / "nameless.yaml")])
    path = task("missing_data", CHOICE)
    (tmp_path / "questions.jsonl").unlink()
    with pytest.raises(DataError, match="cannot load the data of missing_data"):
        run_tasks(model, tokenizer, [path])


class WithBos(ByteTokenizer):
    """Bytes and a beginning-of-text id, as in Llama's and Gemma's tokenizers."""

    bos_id, eos_id, _end_ids = 1, 2, (3,)


@torch.no_grad()
def test_every_context_begins_with_bos() -> None:
    model = HarnessModel(small(), WithBos())
    context, text = "ab", " cd"
    logits = model.gpt(torch.tensor([[1, *b"ab cd"]])).log_softmax(-1)[0]
    whole = [logits[at, token].item() for at, token in enumerate(b"ab cd")]
    assert model.loglikelihood([ask("l", context, text)])[0][0] == pytest.approx(sum(whole[2:]), rel=1e-4)
    assert model.loglikelihood([ask("l", "", "ab cd")])[0][0] == pytest.approx(sum(whole), rel=1e-4)
    assert model.loglikelihood_rolling([ask("l", "ab cd")]) == pytest.approx([sum(whole)], rel=1e-4)
    assert model.tok_encode("a") == [97] and model.tok_encode("a", add_special_tokens=True) == [1, 97]
    assert model._generation_config({}).stop_tokens == [2, 3]
    assert model.generate_until([ask("g", context, {"max_gen_toks": 3})])


def test_non_finite_logits_are_named() -> None:
    model = small()
    with torch.no_grad():
        model.blocks[-1].ffn.down.weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="the model's logits are not finite at the continuation ' cd'"):
        HarnessModel(model, build_tokenizer("byte")).loglikelihood([ask("l", "ab", " cd")])
