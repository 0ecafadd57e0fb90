"""Settings of a config.json with a record of the keys read: a key that is neither read nor known to be harmless fails.

Ignoring an unknown key could silently give wrong logits, for example if it sets a window per layer or a rope length.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from modular_gpt.core.errors import CheckpointError, printable
from modular_gpt.core.plain_types import PlainMapping

ANY: Final = "any"  # a harmless key, whatever its value


def harmless(names: str = "", **only: Any) -> dict[str, Any]:
    """Return harmless keys: ``names`` with any value, the others only with the given value."""
    return {**dict.fromkeys(names.split(), ANY), **{name: (value,) for name, value in only.items()}}


# Keys that change no logits in any family: key -> ANY, or the values at which it changes nothing. In this order: origin
# of the model and its handling; tokens, outputs, other tasks; training, where a family does not read it; generation.
HARMLESS: PlainMapping = harmless(
    """
    architectures model_type transformers_version _name_or_path name_or_path _commit_hash dtype torch_dtype torchscript
    use_bfloat16 use_cache gradient_checkpointing auto_map attn_implementation _attn_implementation unsloth_version
    _attn_implementation_autoset _flash_attn_2_enabled tokenizer_class task_specific_params finetuning_task
    unsloth_fixed model_name transformers.js_config pretraining_tp _experts_implementation

    bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id eod_token_id decoder_start_token_id id2label
    label2id output_attentions output_hidden_states output_scores output_router_logits return_dict num_labels
    return_dict_in_generate problem_type classifier_dropout hidden_dropout_prob prefix is_decoder summary_type
    remove_invalid_values summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout

    router_jitter_noise router_aux_loss_coef aux_loss_alpha seq_aux ep_size num_mtp_layers num_nextn_predict_layers
    mtp_layer_types mtp_mlp_layer_types layerdrop init_device embedding_initializer_range cache_implementation n_ctx

    do_sample max_length min_length temperature top_k top_p typical_p num_beams num_beam_groups num_return_sequences
    diversity_penalty early_stopping length_penalty repetition_penalty no_repeat_ngram_size bad_words_ids
    encoder_no_repeat_ngram_size forced_bos_token_id forced_eos_token_id suppress_tokens begin_suppress_tokens
    exponential_decay_length_penalty max_new_tokens tf_legacy_loss
    """,
    is_encoder_decoder=False,
    add_cross_attention=False,
    tie_encoder_decoder=False,
    pruned_heads={},
    chunk_size_feed_forward=0,
    quantization_config={},
)


class HFConfig(PlainMapping):
    """The settings of a config.json with defaults for missing keys; records the keys that are read.

    A nested object is an HFConfig with the same record; ``outer.inner`` is a key in it, and the name of its default.
    Iterating over the keys reads none of them.

    synonyms: other names by which a key can be looked up -> the key
    """

    def __init__(
        self,
        given: PlainMapping,
        defaults: PlainMapping | None = None,
        *,
        synonyms: Mapping[str, str] | None = None,
        read: set[str] | None = None,
        path: str = "",
    ) -> None:
        self.defaults = defaults or {}
        self._given = dict(given)
        self._values = {**self.defaults, **given}
        self._synonyms = synonyms or {}
        self._read = set() if read is None else read
        self._path = path

    def __getitem__(self, name: str) -> Any:
        name = self._synonyms.get(name, name)
        if "." in name:
            return self._nested(name)
        self._read.add(self._path + name)
        value = self._values[name]
        if isinstance(value, HFConfig) or not isinstance(value, Mapping):
            return value
        return HFConfig(value, read=self._read, path=f"{self._path}{name}.")

    def _nested(self, name: str) -> Any:
        outer, _, inner = name.rpartition(".")
        found = self.get(outer) or {}
        if not isinstance(found, Mapping):
            raise TypeError(f"{outer} must be an object")
        return found[inner] if inner in found else self.defaults[name]

    def __contains__(self, name: object) -> bool:
        return self._synonyms.get(str(name), name) in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def given(self, name: str) -> Any:
        """The value in the config.json itself, None if it has none there; marks the key as read."""
        name = self._synonyms.get(name, name)
        return self[name] if name in self._given else None

    def pop(self, name: str) -> None:
        """Remove a key from these settings; it counts as read."""
        self._read.add(self._path + name)
        self._values.pop(name, None)

    def ignore(self, *names: str) -> None:
        """Mark these keys, and all keys nested in them, as read, because other settings make them irrelevant."""
        self._read.update(f"{self._path}{name}{suffix}" for name in names for suffix in ("", ".*"))

    def holds_mapping(self) -> bool:
        """Whether any value is an object; marks no key as read."""
        return any(isinstance(value, Mapping) for value in self._values.values())

    def unread(self, harmless: PlainMapping) -> list[tuple[str, Any]]:
        """(path, value) of each given setting that was neither read nor is ``harmless``; null values are skipped."""
        found: list[tuple[str, Any]] = []
        for name, value in self._given.items():
            path = self._path + name
            if value is None or f"{path}.*" in self._read:
                continue
            if path not in self._read:
                if not _is_harmless(value, harmless.get(path, HARMLESS.get(name, ()))):
                    found.append((path, value))
            elif isinstance(value, Mapping):
                found += HFConfig(value, read=self._read, path=f"{path}.").unread(harmless)
        return found


def check_all_read(settings: HFConfig, harmless: PlainMapping, model_type: str) -> None:
    """Raise a CheckpointError that names the first setting that was neither read nor is harmless."""
    for path, value in settings.unread({**HARMLESS, **harmless}):
        raise CheckpointError(
            f"the checkpoint has {printable(path)}={printable(repr(value))}, which models of model_type={model_type}"
            " do not have here, so its logits could be wrong: remove that key from config.json if it changes nothing"
        )


def _is_harmless(value: Any, allowed: Any) -> bool:
    return allowed == ANY or any(type(value) is type(other) and value == other for other in allowed)
