"""GPTConfig as a config of the transformers library."""

from typing import Any

from transformers import PreTrainedConfig

from modular_gpt.core.plain_types import PlainMapping
from modular_gpt.model.config import GPTConfig

_DERIVED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "tie_word_embeddings",
)  # names in transformers of fields of ``gpt``
_KERNELS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")  # may name code on the hub


class ModularGPTConfig(PreTrainedConfig):
    """The config of a ModularGPTForCausalLM: ``ModularGPTConfig(gpt=GPTConfig(...))``.

    gpt: settings of the model, a GPTConfig or the mapping that its ``to_dict`` returns; no other field describes the
        model
    training: record of the training run in plain JSON values, for the model card
    use_cache: whether ``generate`` uses a cache

    Raises:
        ConfigError: ``gpt`` has an unknown or invalid setting.
    """

    model_type = "modular_gpt"
    keys_to_ignore_at_inference = ("past_key_values",)

    def __init__(
        self,
        gpt: GPTConfig | PlainMapping | None = None,
        training: PlainMapping | None = None,
        use_cache: bool = True,
        **more: Any,
    ) -> None:
        gpt_config = gpt if isinstance(gpt, GPTConfig) else GPTConfig.from_dict(gpt or {})
        self.gpt = gpt_config.to_dict()
        self.training = dict(training or {})
        self.use_cache = use_cache
        super().__init__(**{name: value for name, value in more.items() if name not in (*_DERIVED, *_KERNELS)})
        self.tie_word_embeddings = gpt_config.tie_embeddings

    def gpt_config(self) -> GPTConfig:
        """The settings of the model."""
        return GPTConfig.from_dict(self.gpt)

    @property
    def vocab_size(self) -> int:
        out: int = self.gpt["vocab_size"]
        return out

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:
        self.gpt["vocab_size"] = value

    @property
    def hidden_size(self) -> int:
        out: int = self.gpt["d_model"]
        return out

    @property
    def num_hidden_layers(self) -> int:
        out: int = self.gpt["n_layers"]
        return out

    @property
    def num_attention_heads(self) -> int:
        out: int = self.gpt["n_heads"]
        return out

    @property
    def max_position_embeddings(self) -> int:
        out: int = self.gpt["context_length"]
        return out
