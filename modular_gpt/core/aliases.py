"""Tables of the names that settings and components have in other code bases, for configs, commands and checkpoints.

``SETTINGS`` maps a foreign setting to ours, ``VALUES`` a foreign value of one of our settings, ``COMPONENTS`` a foreign
name of a component. ``VOCABULARIES`` are sets of settings that identify another code base, with the positional encoding
of its models. A foreign setting whose counterpart has another meaning has a note, and is refused with that note.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.plain_types import PlainDict, PlainMapping


class Alias(NamedTuple):
    """Our counterpart of a foreign setting.

    targets: our settings that take its value, dotted below a slot or a group (``ffn.hidden``, ``trainer.max_steps``)
    implies: the component that the setting belongs to, used if nothing else selects one
    note: how the meaning of ours differs; a setting with a note is refused with it instead of being converted
    """

    targets: tuple[str, ...]
    implies: str = ""
    note: str = ""


class Vocabulary(NamedTuple):
    """A foreign code base: ``settings`` that identify it if all are given, and the ``pos`` of its models."""

    origin: str
    settings: tuple[str, ...]
    pos: str


def _table(rows: Mapping[str, str], note: str = "", implies: str = "") -> dict[str, Alias]:
    """Aliases by foreign name from rows ``{"our setting": "foreign setting, another"}``."""
    return {
        foreign: Alias(tuple(targets.split(" + ")), implies, note)
        for targets, names in rows.items()
        for foreign in names.split(", ")
    }


MODEL_SETTINGS: dict[str, Alias] = {
    **_table(
        {
            "d_model": "n_embd, emb_dim, embedding_dimension, embedding_dim, hidden_size, embed_dim, dim",
            "n_heads": "n_head, num_heads, num_attention_heads",
            "n_layers": "n_layer, num_layers, num_hidden_layers",
            "context_length": "block_size, max_seq_length, max_seq_len, max_position_embeddings, n_positions, n_ctx, "
            "sequence_len, sequence_length, seq_len, seq_length, max_len",
            "dropout": "drop_rate, dropout_rate",
            "tie_embeddings": "tie_word_embeddings, tie_weights, weight_tying",
            "logit_softcap": "final_logit_softcapping",
            "init_std": "initializer_range",
            "ffn.hidden": "d_ff, intermediate_size, n_inner, ffn_dim",
            "ffn.activation": "hidden_act, hidden_activation, activation_function",
            "ffn.bias": "mlp_bias",
            "attention.qkv_bias": "qkv_bias",
            "attention.qkv_bias + attention.out_bias": "attention_bias",
            "attention.n_kv_heads": "num_kv_groups, num_key_value_heads, n_kv_head, n_kv_heads, num_kv_heads, "
            "n_query_groups, num_query_groups",
            "attention.head_dim": "head_dim, head_size",
            "attention.window": "sliding_window_size, sliding_window, window_size",
            "attention.dropout": "attention_dropout, attn_dropout, attn_pdrop",
            "attention.softcap": "attn_logit_softcapping",
            "norm.eps": "norm_eps",
            "attention.name": "attention_type, attention_class",
            "ffn.name": "ffn_type, ffn_class, mlp_type, mlp_class_name",
            "norm.name": "norm_type, norm_class, norm_class_name",
            "pos.name": "pos_type, pos_class, position_embedding_type",
        }
    ),
    **_table({"attention.kv_lora_rank": "latent_dim, kv_lora_rank"}, implies="mla"),
    **_table({"norm.eps": "rms_norm_eps"}, implies="rmsnorm"),
    **_table({"norm.eps": "layer_norm_eps, layer_norm_epsilon"}, implies="layernorm"),
    **_table({"pos.theta": "rope_theta, rope_base, rotary_emb_base"}, implies="rope"),
    **_table(
        {
            "ffn.n_experts": "num_experts, num_local_experts, n_routed_experts, n_expert",
            "ffn.top_k": "num_experts_per_tok, n_expert_per_token",
            "ffn.shared_experts": "n_shared_experts",
        },
        implies="moe",
    ),
    **_table(
        {"pos.rotary_dim": "partial_rotary_factor, rotary_pct, rotary_percentage"},
        "it is a number of dimensions of a head, not a fraction of them",
    ),
    **_table({"pos.scaling": "rope_scaling, rope_parameters"}, "its keys have other names here"),
    **_table(
        {"dropout": "resid_pdrop, embd_pdrop, hidden_dropout"},
        "one value is for the embeddings, attention and feed-forward together",
    ),
    **_table({"topology": "parallel_residual, use_parallel_residual"}, "topology=parallel is such a block"),
    **_table({"vocab_size": "padded_vocab_size"}, "it is the number of rows of the embeddings"),
}  # fmt: skip

TRAINING_SETTINGS: dict[str, Alias] = {
    **_table(
        {
            "optim.learning_rate": "lr, max_lr, learning_rate",
            "optim.weight_decay": "wd, weight_decay",
            "optim.beta1": "adam_beta1",
            "optim.beta2": "adam_beta2",
            "optim.eps": "adam_epsilon, adam_eps",
            "schedule.warmup": "warmup_steps, warmup_iters, lr_warmup_steps, warmup_ratio, warmup",
            "schedule.final": "min_lr_ratio, final_lr_frac",
            "trainer.max_steps": "steps, max_iters, iterations, num_steps, num_iterations, train_steps",
            "trainer.epochs": "epochs, max_epochs, num_epochs, num_train_epochs",
            "trainer.batch_size": "train_batch_size, global_batch_size",
            "trainer.gradient_clip": "grad_clip, max_grad_norm, clip_grad_norm, gradient_clip_val, max_norm, clip",
            "trainer.activation_checkpointing": "gradient_checkpointing",
            "trainer.eval_interval": "eval_every, eval_steps, eval_freq, val_check_interval",
            "trainer.eval_batches": "eval_iters, limit_val_batches, val_batches",
            "trainer.log_interval": "log_every, logging_steps, log_every_n_steps, log_freq",
            "trainer.save_interval": "save_every, save_steps, checkpoint_interval, checkpoint_every",
            "trainer.keep": "save_total_limit",
            "trainer.patience": "early_stopping_patience",
            "trainer.ema_decay": "ema",
            "trainer.precision": "dtype, torch_dtype, mixed_precision",
            "trainer.label_smoothing": "label_smoothing_factor",
            "trainer.compile": "torch_compile",
            "trainer.device": "accelerator",
            "runs": "out_dir, output_dir, default_root_dir, save_dir",
            "name": "run_name, wandb_run_name, experiment_name",
            "resume": "resume_from_checkpoint, resume_from, ckpt_path",
            "init_from": "model_name_or_path, pretrained_model_name_or_path, checkpoint_dir, initial_checkpoint_dir",
            "seed": "random_seed, manual_seed",
            "optim": "optimizer, optimizer_name",
            "schedule": "lr_scheduler_type, lr_scheduler, scheduler",
            "data": "dataset, dataset_name",
            "data.path": "train_file, data_path, dataset_path, input_file",
            "tokenizer": "tokenizer_name",
            "logger": "report_to, logger_name",
            "parallel": "strategy",
            "lora.rank": "lora_r, lora_rank",
            "lora.alpha": "lora_alpha",
            "lora.dropout": "lora_dropout",
            "lora.targets": "target_modules",
        }
    ),
    **_table(
        {"trainer.batch_size": "per_device_train_batch_size, micro_batch_size, device_batch_size"},
        "it counts the windows of one update, over all micro-batches and processes",
    ),
    **_table({"trainer.batch_size": "total_batch_size"}, "it counts windows of the context length, not tokens"),
    **_table(
        {
            "trainer.gradient_accumulation": "gradient_accumulation_steps, accumulate_grad_batches, grad_accum_steps, "
            "grad_accum, accumulate"
        },
        "it divides trainer.batch_size into micro-batches instead of multiplying it",
    ),
    **_table({"schedule.final": "min_lr"}, "it is a fraction of the highest learning rate"),
    **_table({"trainer.max_steps": "lr_decay_iters"}, "the schedule ends with the training"),
    **_table({"trainer.keep": "save_top_k"}, "it counts the newest checkpoints, and the best one stays besides"),
    **_table({"trainer.precision": "fp16, bf16"}, "it takes the name: fp16 or bf16"),
}

SETTINGS: dict[str, Alias] = {**TRAINING_SETTINGS, **MODEL_SETTINGS}

_DATA_TYPES: dict[str, object] = {
    "fp32": "float32",
    "32": "float32",
    "32-true": "float32",
    "torch.float32": "float32",
    "bfloat16": "bf16",
    "bf16-mixed": "bf16",
    "torch.bfloat16": "bf16",
    "float16": "fp16",
    "16-mixed": "fp16",
    "fp16-mixed": "fp16",
    "torch.float16": "fp16",
}

# Foreign values by our setting, compared in lower case.
VALUES: dict[str, dict[str, object]] = {
    "ffn.activation": {
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_fast": "gelu_tanh",
        "swish": "silu",
        "relu_squared": "relu2",
    },
    "trainer.activation_checkpointing": {"true": 1, "false": 0},
    "trainer.precision": _DATA_TYPES,
    "dtype": _DATA_TYPES,
    "trainer.device": {"gpu": "cuda"},
    "device": {"gpu": "cuda"},
}

# Foreign names of components by slot, compared without case, spaces, underscores and hyphens. A class may correspond to
# several of our names: the first is used if nothing else decides.
COMPONENTS: dict[str, dict[str, tuple[str, ...]]] = {
    "attention": {
        **dict.fromkeys(
            ("flashattention", "multiheadattention", "multihead", "scaleddotproduct", "scaleddotproductattention",
             "causal", "causalselfattention", "causalattention", "selfattention", "fullattention"), ("mha",),
        ),
        **dict.fromkeys(("groupedqueryattention", "groupedquery"), ("gqa",)),
        **dict.fromkeys(("multiqueryattention", "multiquery"), ("mqa",)),
        **dict.fromkeys(("multiheadlatentattention", "latentattention", "multiheadlatent", "latent"), ("mla",)),
        "linearattention": ("linear",),
        **dict.fromkeys(
            ("localwindowattention", "slidingwindowattention", "slidingwindow", "localwindow", "localattention"),
            ("swa",),
        ),
    },
    "ffn": {
        **dict.fromkeys(("ffstandard", "standard", "standardfeedforward", "feedforward", "gptneoxmlp"), ("mlp",)),
        "ffswiglu": ("swiglu",),
        "ffgeglu": ("geglu",),
        "gatedfeedforward": ("swiglu", "geglu", "reglu"),
        "llamamlp": ("swiglu",),
        "gemmamlp": ("geglu",),
        **dict.fromkeys(("ffmoe", "mixtureofexperts", "sparsemoe"), ("moe",)),
    },
    "norm": {"layer": ("layernorm",), "rms": ("rmsnorm",), "scale": ("scalenorm",)},
    "pos": {
        **dict.fromkeys(("rotary", "rotaryembedding", "rotarypositional"), ("rope",)),
        **dict.fromkeys(("learnedpositional", "learnedabsolute", "absolute"), ("learned",)),
        **dict.fromkeys(("sinusoidalpositional", "sincos"), ("sinusoidal",)),
        "nope": ("none",),
    },
    "optim": {**dict.fromkeys(("adamwtorch", "adamwtorchfused", "adamwfused"), ("adamw",))},
    "schedule": {
        "constantwithwarmup": ("constant",),
        "cosineannealing": ("cosine",),
        "warmupstabledecay": ("wsd",),
    },
}  # fmt: skip

# Components of other programs, by slot, without a counterpart here -> advice that their error message ends with.
MISSING: dict[str, dict[str, str]] = {
    "optim": dict.fromkeys(
        ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "lamb", "lion", "sophia", "shampoo", "soap"),
        "adamw is the usual choice for language models",
    ),
}

# The longest vocabulary whose settings are all given is used.
VOCABULARIES = (
    Vocabulary("Hugging Face", ("hidden_size", "num_hidden_layers", "num_attention_heads"), "rope"),
    Vocabulary("nanoGPT", ("n_embd", "n_head", "n_layer", "block_size"), "learned"),
    Vocabulary("litgpt", ("n_embd", "n_head", "n_layer", "block_size", "n_query_groups"), "rope"),
    Vocabulary("nanochat", ("n_embd", "n_head", "n_kv_head", "n_layer", "sequence_len"), "rope"),
    Vocabulary("GPT-2 as taught", ("emb_dim", "n_heads", "n_layers", "context_length", "drop_rate"), "learned"),
    Vocabulary("types by name", ("n_embd", "num_heads", "n_layers", "block_size", "attention_type"), "sinusoidal"),
    Vocabulary("d_model", ("d_model", "num_heads", "num_layers", "d_ff", "max_seq_length"), "sinusoidal"),
    Vocabulary("embedding_dimension", ("embedding_dimension", "num_layers", "num_heads"), "sinusoidal"),
)


def vocabulary(settings: Iterable[str]) -> Vocabulary | None:
    """The longest vocabulary whose settings are all among ``settings``; None if there is none."""
    given = set(settings)
    complete = [candidate for candidate in VOCABULARIES if given.issuperset(candidate.settings)]
    return max(complete, key=lambda candidate: len(candidate.settings), default=None)


def component_names(slot: str, name: str, known: Iterable[str]) -> tuple[str, ...]:
    """The registered names, among ``known``, that ``name`` refers to in a slot; () for an unknown name."""
    known = list(known)
    if name in known:
        return (name,)
    plain = _plain(name)
    same = tuple(registered for registered in known if _plain(registered) == plain)
    return same or tuple(registered for registered in COMPONENTS.get(slot, {}).get(plain, ()) if registered in known)


def missing_hint(slot: str, name: str) -> str:
    """Advice on a component of other programs that has no counterpart, for an error message; "" for other names."""
    hint = MISSING.get(slot, {}).get(_plain(name))
    return f" {hint};" if hint else ""


def our_settings(slot: str, settings: PlainMapping, known: Collection[str]) -> PlainDict:
    """Replace foreign names and values in the settings of one component or group by ours.

    slot: ``optim``, ``ffn``, ``trainer`` ...; known: names of the settings of the component, which are not replaced

    Raises:
        ConfigError: a foreign setting has no exact counterpart, or contradicts another one.
    """
    converted: PlainDict = {}
    origin: dict[str, str] = {}
    for name, value in settings.items():
        targets = [name]
        if name not in known and name in SETTINGS:
            alias = SETTINGS[name]
            in_slot = [path.rpartition(".")[2] for path in alias.targets if path.partition(".")[0] == slot]
            targets = [target for target in in_slot if target in known] or targets
            if alias.note and targets != [name]:
                raise ConfigError(no_counterpart(name))
        for target in targets:
            put(converted, origin, target, our_value(f"{slot}.{target}", value), name)
    return converted


def counterpart(slot: str, name: str) -> str:
    """Our name of a setting of the components of a slot, for a foreign name; any other name is returned unchanged."""
    targets = SETTINGS[name].targets if name in SETTINGS else ()
    return next((target.partition(".")[2] for target in targets if target.partition(".")[0] == slot), name)


def put(values: PlainDict, origin: dict[str, str], target: str, value: object, name: str) -> None:
    """Set ``values[target]``, which the user gave as ``name``, and record the name in ``origin``.

    Raises:
        ConfigError: another name has set it to another value.
    """
    if target in values and values[target] != value:
        raise ConfigError(
            f"{name}={value!r} contradicts {origin[target]}={values[target]!r}: both set {target}; give one of them"
        )
    values[target] = value
    origin.setdefault(target, name)


def no_counterpart(name: str) -> str:
    """The error message for a foreign setting whose counterpart has another meaning."""
    alias = SETTINGS[name]
    return f"{name} is not converted: set {alias.targets[0]} instead; {alias.note}"


def our_value(setting: str, value: object) -> object:
    """Our value of ``setting`` (dotted) for a foreign value; any other value is returned unchanged."""
    if not isinstance(value, (str, bool, int)) and not str(value).startswith("torch."):
        return value
    return VALUES.get(setting, {}).get(str(value).lower(), value)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.lower())
