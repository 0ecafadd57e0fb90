"""A GPTConfig inside a config of the transformers library."""

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
)  # names of transformers for settings of ``gpt``
_KERNELS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")  # could name code to fetch


class ModularGPTConfig(PreTrainedConfig):
    """``ModularGPTConfig(gpt=GPTConfig(...))``.

    gpt: a GPTConfig, or the dict that its ``to_dict`` writes; the only place that describes the model
    training: the notes of the run that trained it, as plain JSON values, for the model card
    use_cache: whether ``generate`` keeps a cache

    Raises:
        ConfigError: ``gpt`` describes no model that can work.
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
        described = gpt if isinstance(gpt, GPTConfig) else GPTConfig.from_dict(gpt or {})
        self.gpt = described.to_dict()
        self.training = dict(training or {})
        self.use_cache = use_cache
        super().__init__(**{name: value for name, value in more.items() if name not in (*_DERIVED, *_KERNELS)})
        self.tie_word_embeddings = described.tie_embeddings

    def gpt_config(self) -> GPTConfig:
        """The description of the model."""
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
