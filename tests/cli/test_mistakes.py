"""Mistakes of users get one helpful sentence and exit code 2, and write nothing to the disk."""

import os
from pathlib import Path

import pytest

from modular_gpt import GPTConfig, compose
from modular_gpt.core.errors import ConfigError, closest
from tests.cli.conftest import Run
from tests.fresh import python

# The arguments, and excerpts of the sentence.
MISTAKES = [
    ("attention=gqq", ["no attention 'gqq'", "did you mean 'gqa'?", "there are: "]),
    ("ffn=moee", ["no ffn 'moee'", "did you mean 'moe'?"]),
    ("experiment=foo", ["no experiment 'foo'", "shakespeare_char"]),
    ("attention=null", ["no attention 'null'"]),
    ("attention=[mha]", ["no attention '[mha]'"]),
    ("attention=mha,gqa", ["2 options", "--multirun"]),
    ("attnetion=gqa", ["no setting 'attnetion'", "did you mean 'attention'?"]),
    ("attention.n_kv_headz=1", ["no setting 'n_kv_headz' of attention", "did you mean 'n_kv_heads'?", "backend"]),
    ("+attention.n_kv_headz=1", ["no setting 'n_kv_headz' of attention"]),
    ("++trainer.max_step=1", ["no setting 'max_step' of trainer", "did you mean 'max_steps'?"]),
    ("n_layers=2", ["did you mean 'model_size.n_layers'?"]),
    ("window=3", ["did you mean 'attention.window'?"]),
    ("data.val_fraction=0.2", ["the chosen data has no setting 'val_fraction'", "shakespeare or text"]),
    ("~attention", ["a setting cannot be removed"]),
    ("attention.name=mla", ["attention=mla"]),
    ("foo", ["cannot read 'foo'", "key=value"]),
    ("=3", ["cannot read '=3'"]),
    ("attention/x=3", ["no setting 'attention/x'"]),
    ("attention@x=gqa", ["no setting 'attention@x'"]),
    ("attention/x.y=gqa", ["attention/x"]),
    ("attention=gqa attention.n_kv_heads=abc", ["attention.n_kv_heads must be a whole number or null, got 'abc'"]),
    ("attention.n_kv_heads=1.5", ["attention.n_kv_heads must be a whole number or null, got 1.5"]),
    ("trainer.max_steps=many", ["trainer.max_steps must be a whole number, got 'many'"]),
    ("trainer.max_steps=[1,2]", ["trainer.max_steps must be a whole number"]),
    ("optim.learning_rate=fast", ["optim.learning_rate must be a number", "got 'fast'"]),
    ("optim.learning_rate_scale=3", ["optim.learning_rate_scale must be a mapping, got 3"]),
    ("optim.learning_rate_scale={embedding*:x}", ["optim.learning_rate_scale={embedding*:x}", "its values numbers"]),
    ("optim.learning_rate_scale={'embeding*':0.1}", ["matches 'embeding*'; there are embedding.weight"]),
    ("optim.learning_rate_scale.embedding=0.1", ["did you mean 'embedding.*'?"]),
    ("trainer.frozen=embeding*", ["trainer.frozen: ", "matches 'embeding*'; there are embedding.weight"]),
    ("trainer.frozen=[*]", ["leaves nothing to train"]),
    ("lora.rank=4", ["lora.rank=4 adapts a model that was trained: give one by init_from="]),
    ("lora.rnk=4", ["no setting 'rnk' of lora", "did you mean 'rank'?"]),
    ("lora.rank=0", ["lora.rank must be above 0"]),
    ("model.bias=maybe", ["model.bias must be true or false, got 'maybe'"]),
    ("seed=null", ["seed must be a whole number"]),
    ("seed.x=1", ["seed must be a whole number"]),
    ("model.topology=sandwhich", ["no choice 'sandwhich'", "did you mean 'sandwich'?"]),
    ("ffn.activation=gelo", ["no choice 'gelo'", "did you mean 'gelu'?"]),
    ("model_size=small model_size.n_heads=3", ["d_model=256 does not divide into n_heads=3"]),
    (
        "model_size=small attention=gqa attention.n_kv_heads=3",
        ["does not divide into attention.n_kv_heads=3", "1, 2, 4, 8"],
    ),
    ("pos=rope attention.head_dim=5", ["5 is odd"]),
    ("pos=rope pos.rotary_dim=3", ["3 is odd"]),
    ("pos=rope pos.scaling.kynd=yarn", ["no setting 'kynd'", "did you mean 'kind'?"]),
    ("pos=rope pos.scaling.kind=yearn", ["did you mean 'yarn'?"]),
    ("attention=swa attention.window=0", ["attention.window must be above 0, got 0"]),
    ("attention=linear pos=alibi", ["no score matrix", "use pos=rope"]),
    ("ffn=moe ffn.top_k=9", ["ffn.top_k=9 is more than the 8 experts"]),
    ("model.dropout=1", ["dropout must lie in [0, 1)"]),
    ("layers=alternating layers.cycle=[globl]", ["no variant 'globl'"]),
    ("trainer.max_steps=0", ["trainer.max_steps must be at least 1"]),
    ("trainer.batch_size=3 trainer.gradient_accumulation=2", ["does not divide"]),
    ("trainer.device=tpu", ["trainer.device=tpu cannot be used here"]),
    ("name=a/b", ["name='a/b'"]),
    ("attention._target_=os.system", ["no setting names code"]),
    ("+_target_=os.system", ["no setting names code"]),
    ("hydra.callbacks.x._target_=os.system", ["no setting names code"]),
    ("pos=rope pos.scaling._target_=os.system", ["no setting names code"]),
    ("--attention=gqa", ["no flag '--attention=gqa'", "without dashes: attention=gqa"]),
    ("--helpp", ["no flag '--helpp'"]),
    ("--cfg", ["expected one argument"]),
    ("--config-dir nowhere", ["'nowhere' is not a folder"]),
    ("--multirun attention=mha,gqq", ["no attention 'gqq'"]),
    ("--multirun trainer.max_step=1,2", ["no setting 'max_step' of trainer"]),
    ("data=text", ["data.path="]),
    ("data=text data.path=none.txt", ["'none.txt'"]),
    ("data=text data.path=**/*.none", ["no file matches '**/*.none'"]),
    ("data=text data.path=latin.txt", ["'latin.txt' is not UTF-8", "offset 3"]),
    ("data=text data.path=binary.txt", ["'binary.txt' has a NUL byte at offset 1"]),
    ("data=text data.path=empty.txt", ["'empty.txt'", "too few"]),
    ("data=text data.path=short.txt tokenizer=byte", ["context_length"]),
    ("model.vocab_size=10", ["the tokenizer has 256 ids but the model only 10"]),
    ("resume=runs/none", ["there is no checkpoint at 'runs/none'"]),
    ("resume=short.txt", ["'short.txt'"]),
    ("resume=", ["is not a checkpoint"]),
    ("init_from=nothing_like_it", ["there is no checkpoint at 'nothing_like_it'", "gpt2-medium"]),
    # settings behind a plus, or of another program
    ("+trainer.lrr=1", ["no setting 'lrr' of trainer"]),
    ("+ffn.topk=2 ffn=moe", ["no setting 'topk' of ffn", "did you mean 'top_k'?"]),
    ("++foo.bar=1", ["no setting 'foo'"]),
    ("epochs=3 steps=5", ["trainer.max_steps and trainer.epochs both set the length of the training: give one"]),
    ("gradient_accumulation_steps=3", ["set trainer.gradient_accumulation instead"]),
    ("pretrained=gpt2", ["init_from=<model>"]),
    ("load=runs/latest", ["resume=<run>"]),
    ("gpus=2", ["torchrun"]),
    ("attention_dims=2", ["did you mean 'attention'?"]),
    ("trainer.max_steps=1e400", ["trainer.max_steps must be a whole number, got inf"]),
    # settings without effect
    ("hydra.run.dir=elsewhere", ["'hydra.run.dir=elsewhere' has no effect", "runs=<folder>"]),
    ("hydra.sweep.dir=elsewhere", ["add --multirun"]),
    ("hydra/launcher=joblib", ["add --multirun"]),
    ("--multirun seed=1,2 hydra.run.dir=elsewhere", ["has no effect"]),
    ("seed=1,2", ["seed=1,2 gives several values: add --multirun"]),
    ("trainer.max_steps=range(1,3)", ["gives several values: add --multirun"]),
    ("model_size.layers=3", ["did you mean 'n_layers'?"]),
    ("optimize=adamw", ["did you mean 'optim'?"]),
    # not readable
    ("trainer.=3", ["cannot read 'trainer.=3'", "key=value"]),
    (".trainer=3", ["cannot read '.trainer=3'"]),
    ("trainer..max_steps=3", ["cannot read 'trainer..max_steps=3'"]),
    ('"seed=3', ["cannot read", "key=value"]),
    ("hydra=3", ["Hydra's own settings"]),
    ("--multirun seed=1,2 hydra/launcher=joblip", ["no launcher 'joblip'", "pip install hydra-joblip-launcher"]),
    ("--resume runs/latest", ["no flag '--resume'", "without dashes, resume=..."]),
    ("--multirun seed=1,two", ["seed must be a whole number, got 'two'"]),
    ("--multirun attention=mha,", ["cannot read 'attention=mha,'"]),
    # numbers out of range
    ("attention=mla attention.kv_lora_rank=0", ["attention.kv_lora_rank must be above 0, got 0"]),
    ("attention=mla attention.q_lora_rank=-1", ["attention.q_lora_rank must be above 0, got -1"]),
    ("ffn=moe ffn.n_experts=2 ffn.top_k=3", ["ffn.top_k=3 is more than the 2 experts"]),
    ("ffn=moe ffn.n_experts=0", ["ffn.n_experts must be above 0"]),
    ("optim.learning_rate=nan", ["optim.learning_rate must be a finite number, got nan"]),
    ("optim.learning_rate=1e400", ["must be a finite number, got inf"]),
    ("optim.learning_rate=-1", ["optim.learning_rate must be above 0"]),
    ("optim.beta2=1", ["optim.beta2 must lie in [0, 1)"]),
    ("schedule.warmup=nan", ["schedule.warmup must be a finite number"]),
    ("schedule=wsd schedule.decay=2", ["schedule.decay must lie in (0, 1]"]),
    ("data=text data.path=short.txt schedule.warmup=9999 model_size.context_length=4", ["more than trainer.max_steps"]),
    ("norm.eps=-1", ["norm.eps must be above 0"]),
    ("trainer.max_steps=1e3", ["trainer.max_steps must be a whole number, got 1000.0"]),
    ("trainer.label_smoothing=1", ["trainer.label_smoothing must lie in [0, 1)"]),
    ("trainer.activation_checkpointing=-1", ["must be at least 0"]),
    ("seed=99999999999999999999", ["at most 64 bits"]),
    ("model_size.n_heads=0", ["model.n_heads must be above 0"]),
    ("lora=8", ["lora must be a group of settings (rank, ", "got 8"]),
    # missing files and runs
    ("trainer.device=meta", ["trainer.device=meta cannot be used here", "trainer.device=auto can"]),
    ("trainer.precision=fp8", ["no choice 'fp8'", "bf16_products"]),
    ("logger=tensorbord", ["no logger 'tensorbord'", "did you mean 'tensorboard'?"]),
    ("logger.also=[wand]", ["no logger 'wand'", "did you mean 'wandb'?"]),
    ("logger.project=x", ["the chosen logger has no setting 'project'", "logger=trackio or wandb"]),
    ("parallel=dpp", ["no parallel 'dpp'", "did you mean 'ddp'?"]),
    ("parallel=ddp", ["torchrun --nproc_per_node"]),
    ("tokenizer=hf", ["tokenizer.path="]),
    (
        "runs=short.txt data=text data.path=short.txt model_size.context_length=4",
        ["'short.txt'", "set runs=<directory>"],
    ),
]


# Settings, values and names of other programs, and their exact counterparts.
UNDERSTOOD = [
    ("n_embd=64", "model_size.d_model=64"),
    ("num_attention_heads=8", "model_size.n_heads=8"),
    ("lr=0.1 grad_clip=2", "optim.learning_rate=0.1 trainer.gradient_clip=2"),
    ("optim.lr=0.1", "optim.learning_rate=0.1"),
    ("optimizer=muon attention=multi_query pos=rotary", "optim=muon attention=mqa pos=rope"),
    ("rms_norm_eps=1e-4", "norm=rmsnorm norm.eps=1e-4"),
    ("attention=gqa latent_dim=8 attention=mla", "attention=mla attention.kv_lora_rank=8"),
    ("attention_bias=false", "attention.qkv_bias=false attention.out_bias=false"),
    ("trainer.precision=bf16-mixed", "trainer.precision=bf16"),
    ("gradient_checkpointing=true", "trainer.activation_checkpointing=1"),
    ("save_steps=7 out_dir=elsewhere", "trainer.save_interval=7 runs=elsewhere"),
    ("experiment=null", ""),
    ("experiment=speedrun experiment=null", ""),
]


@pytest.mark.parametrize(("foreign", "counterpart"), UNDERSTOOD)
def test_settings_of_other_programs_are_understood(foreign: str, counterpart: str) -> None:
    assert compose(*foreign.split(), "name=x").to_dict() == compose(*counterpart.split(), "name=x").to_dict()


@pytest.mark.parametrize(
    ("name", "not_meant"),
    [("gpt_neox", "gpt_oss"), ("num_attention", "attention_class"), ("pretrained", "trainer"), ("load", "lora"),
     ("save_stepz_every", "ns_steps"), ("bfloat16", "float32")],
)  # fmt: skip
def test_a_hint_never_names_something_else(name: str, not_meant: str) -> None:
    assert closest(name, [not_meant]) is None


@pytest.mark.parametrize(
    ("name", "meant"),
    [("max_step", "max_steps"), ("topk", "top_k"), ("layers", "n_layers"), ("optimizer", "optim"), ("yearn", "yarn"),
     ("learn_rate", "learning_rate"), ("gqq", "gqa"), ("prenorm", "pre"), ("haeds", "heads"), ("wand", "wandb")],
)  # fmt: skip
def test_a_misspelling_is_recognised(name: str, meant: str) -> None:
    assert closest(name, ["qqqqqq", meant, "zzz"]) == meant


def test_a_very_long_name_is_answered_at_once_and_shortened(run: Run) -> None:
    answer = run("train", f"{'x' * 100_000}=1")
    assert answer.code == 2 and len(answer.err) < 2000


def test_the_message_about_an_unknown_component_mentions_plugins() -> None:
    with pytest.raises(ConfigError, match="MODULAR_GPT_PLUGINS"):
        GPTConfig.from_dict({"attention": {"name": "shared_qk"}})
    with pytest.raises(ConfigError, match="did you mean 'gqa'") as caught:
        GPTConfig.from_dict({"attention": {"name": "gqq"}})
    assert "MODULAR_GPT_PLUGINS" not in str(caught.value)


@pytest.fixture
def texts(folder: Path) -> None:
    """Files that are invalid as training text."""
    (folder / "latin.txt").write_bytes("caf\xe9 ".encode("latin-1") * 40)
    (folder / "binary.txt").write_bytes(b"a\0b" * 40)
    (folder / "empty.txt").write_bytes(b"")
    (folder / "short.txt").write_text("short text " * 10)


@pytest.mark.parametrize(("arguments", "excerpts"), MISTAKES, ids=[given for given, _ in MISTAKES])
def test_a_mistake_gets_one_sentence(run: Run, folder: Path, texts: None, arguments: str, excerpts: list[str]) -> None:
    answer = run("train", *arguments.split())
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err.startswith("error: ") and answer.err.count("\n") == 1, answer.err
    for excerpt in excerpts:
        assert excerpt in answer.err
    assert "Traceback" not in answer.err and "+" not in answer.err.partition("; did")[2]
    assert not (folder / "runs").exists() and not (folder / "outputs").exists()


def test_settings_of_hydra_are_not_offered(run: Run) -> None:
    assert "hydra" not in run("train", "seeed=1").err


def test_a_mistake_in_a_yaml_of_the_user_names_the_file(run: Run, folder: Path) -> None:
    mine = folder / "conf" / "attention" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("defaults: [gqa_schema]\nn_kv_headz: 3\n")
    answer = run("train", "--config-dir", "conf", "attention=mine")
    assert answer.code == 2 and answer.err.count("\n") == 1
    assert "attention/mine" in answer.err and "did you mean 'n_kv_heads'?" in answer.err
    mine.write_text("defaults: [gqa_schema]\nn_kv_heads: many\n")
    answer = run("train", "--config-dir", "conf", "attention=mine")
    assert answer.code == 2 and "whole number" in answer.err and "attention/mine" in answer.err
    mine.write_text("defaults: [gqa_schema\n")
    answer = run("train", "--config-dir", "conf", "attention=mine")
    assert answer.code == 2 and answer.err.count("\n") == 1


def test_a_yaml_cannot_name_code(run: Run, folder: Path) -> None:
    for group, text in {
        "attention": "defaults: [gqa_schema]\n_target_: pathlib.Path.touch\n",
        "experiment": "# @package _global_\nhydra: {callbacks: {x: {_target_: pathlib.Path.touch, self: touched}}}\n",
    }.items():
        (folder / "conf" / group).mkdir(parents=True)
        (folder / "conf" / group / "evil.yaml").write_text(text)
    for arguments in (["attention=evil"], ["experiment=evil"], ["--multirun", "experiment=evil", "seed=1,2"]):
        answer = run("train", "--config-dir", "conf", "model_size=nano", "trainer.device=none", *arguments)
        assert answer.code == 2, arguments
        assert "_target_" in answer.err
        assert not (folder / "touched").exists()


@pytest.mark.parametrize("arguments", ["attention=gqq", "trainer.max_steps=x", "data=text data.path=none.txt"])
def test_a_mistake_in_a_real_process(root: Path, folder: Path, arguments: str) -> None:
    result = python("-m", "modular_gpt.cli.train", *arguments.split(), env={**os.environ, "PYTHONPATH": str(root)})
    assert result.returncode == 2
    assert result.stdout == "" and result.stderr.count("\n") == 1, result.stderr
