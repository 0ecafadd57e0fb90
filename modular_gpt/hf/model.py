"""GPTModel as a causal language model of the transformers library."""

from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.generation import GenerationMode
from transformers.modeling_outputs import CausalLMOutputWithPast

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.hf.cache import GenerationCache, padding_of
from modular_gpt.hf.card import write_card
from modular_gpt.hf.configuration import ModularGPTConfig
from modular_gpt.hf.layer_outputs import layer_outputs
from modular_gpt.hf.opening import open_for_transformers
from modular_gpt.model import GPTModel

_ASSISTED = GenerationMode.ASSISTED_GENERATION
_LAYER_OUTPUTS = ("output_attentions", "output_hidden_states")
_SUPPORTED_OPTIONS = ("num_items_in_batch", "return_dict", "cache_position", *_LAYER_OUTPUTS)


class ForwardOptions(TypedDict, total=False):
    """Keyword arguments that transformers passes to ``forward`` beside the tokens.

    num_items_in_batch: number of tokens by which the loss is divided; None: the number in this batch
    return_dict: return a CausalLMOutputWithPast; False: a tuple
    cache_position: accepted for transformers 5.0 and ignored, since the cache counts its tokens
    output_attentions: return the attention weights (B, H, T, S) of each layer; None: the value in the config
    output_hidden_states: return the embeddings (B, T, D) and the output of each layer, of the last one after the final
        norm; None: the value in the config
    inputs_embeds: not supported; must be None
    """

    num_items_in_batch: Tensor | int | None
    return_dict: bool | None
    cache_position: Tensor | None
    inputs_embeds: None
    output_attentions: bool | None
    output_hidden_states: bool | None


class ModularGPTForCausalLM(PreTrainedModel, GenerationMixin):
    """A GPTModel with the interface of transformers.

    Create it with ``ModularGPTForCausalLM(config)``, ``from_gpt(model)`` or ``from_pretrained(path)``. ``generate``
    uses the caches of this package, of ``GPTConfig.cache_bytes`` bytes. LoRA adapters are supported on any linear
    layer, but not on an embedding that is tied to the head, since the head does not apply them. If a MoE balances its
    experts by a bias, a training loop must call ``model.model.after_optimizer_step()`` after each update.

    model: the GPTModel
    """

    config_class = ModularGPTConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # num_items_in_batch, of the Trainer
    _supports_sdpa = True
    _supports_flex_attn = True
    _no_split_modules = ["TransformerBlock"]  # noqa: RUF012  as the base class declares it

    def __init__(self, config: ModularGPTConfig, model: GPTModel | None = None) -> None:
        """model: the GPTModel to wrap, with the settings of ``config``; None: a new one"""
        super().__init__(config)
        self.model = GPTModel(config.gpt_config()) if model is None else model
        self.post_init()

    @classmethod
    def from_gpt(cls, model: GPTModel, training: PlainDict | None = None, **config: Any) -> "ModularGPTForCausalLM":
        """Wrap an existing model without a copy.

        training, config: arguments of ModularGPTConfig
        """
        hf_config = ModularGPTConfig(model.config, training, **config)
        hf_config.dtype = model.embedding.weight.dtype
        out: ModularGPTForCausalLM = cls(hf_config, model).train(model.training)
        return out

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: GenerationCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **options: Unpack[ForwardOptions],
    ) -> CausalLMOutputWithPast | tuple[object, ...]:
        """(B, T) ids -> logits (B, T, V), and the loss if ``labels`` is given.

        attention_mask: (B, cached + T) with 0 for padding, which must be on the left
        labels: (B, T) the ids, or -100 for tokens without loss; this method shifts them by one
        past_key_values: cache to extend by these tokens; with None, ``use_cache=True`` creates a growing cache
        logits_to_keep: without labels, compute the logits of the last n positions, or of those in a tensor; 0: of all
        options: see ``ForwardOptions``

        Raises:
            ConfigError: the mask is not padding on the left, the cache is not a GenerationCache of B rows, an adapter
                is on a tied embedding, or an option is not supported.
        """
        _check_options(options)
        self._check_adapters()
        cache = self._cache(input_ids, past_key_values, use_cache)
        cached = None if cache is None else cache.get_seq_length()
        padding = None if attention_mask is None else padding_of(attention_mask, input_ids, cached)
        with layer_outputs(self.model, *self._requested_outputs(options)) as layers:
            hidden, losses = self._hidden_states(input_ids, cache, padding)
        loss = None
        if labels is None:
            positions = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.model.logits(hidden[:, positions])
        else:
            logits = self.model.logits(hidden)
            count = options.get("num_items_in_batch")
            loss = self.loss_function(logits, labels, self.config.vocab_size, num_items_in_batch=count)
            loss = sum(losses.values(), loss)
        output = CausalLMOutputWithPast(loss, logits, cache, **layers.outputs(input_ids.shape[1]))
        return output.to_tuple() if options.get("return_dict") is False else output

    def _requested_outputs(self, options: ForwardOptions) -> list[bool]:
        """Whether each output of ``_LAYER_OUTPUTS`` is requested; an option takes precedence over the config."""
        values = {**options}
        return [
            bool(getattr(self.config, name) if values.get(name) is None else values[name]) for name in _LAYER_OUTPUTS
        ]

    def _check_adapters(self) -> None:
        """Raise a ConfigError for an adapter on a tied embedding, which the head would not apply."""
        if self.model.head is None and hasattr(self.model.embedding, "base_layer"):
            raise ConfigError(
                "an adapter on the embedding changes only the embedding, not the head that is tied to it, so merging"
                " would change the logits: leave it out of target_modules, or use tie_embeddings=false"
            )

    def _hidden_states(
        self, ids: Tensor, cache: GenerationCache | None, padding: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, T) ids -> hidden states (B, T, D), and the auxiliary losses; with a cache, without gradients."""
        if cache is None:
            out: tuple[Tensor, dict[str, Tensor]] = self.model.hidden_states(ids, None, padding)
            return out
        hidden = []
        with torch.no_grad():  # caches do not support autograd
            for chunk in ids.split(cache.chunk_size(ids.shape[1]), dim=1):
                cache.save_overwritten(chunk.shape[1])
                hidden.append(self.model.hidden_states(chunk, cache.inner, padding)[0])
                padding = None  # stored in the cache by the first chunk
        return torch.cat(hidden, dim=1) if len(hidden) > 1 else hidden[0], {}

    def _cache(self, ids: Tensor, past_key_values: object, use_cache: bool | None) -> GenerationCache | None:
        """The cache to use: ``past_key_values``, a new one if ``use_cache`` is true, or None."""
        if past_key_values is not None and not isinstance(past_key_values, GenerationCache):
            raise ConfigError(
                f"past_key_values is a {type(past_key_values).__name__}; leave it out, and the model creates a cache"
            )
        if past_key_values is not None and past_key_values.inner.batch != len(ids):
            raise ConfigError(
                f"past_key_values has {past_key_values.inner.batch} rows and the prompt {len(ids)}: give a prompt with"
                " as many rows, or leave past_key_values out"
            )
        if past_key_values is None and use_cache:
            return GenerationCache(self.model.new_cache(ids.shape[0]))
        return past_key_values

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: PlainDict,
        generation_mode: GenerationMode,
        batch_size: int,
        max_cache_length: int,
    ) -> Any:
        """Allocate a cache for ``max_cache_length`` tokens. Called by ``generate`` before the first step.

        A cache that an earlier ``generate`` returned is enlarged; the prompt must begin with the tokens in it.
        """
        grows = generation_config.is_assistant or generation_mode == _ASSISTED  # drafts may exceed max_cache_length
        cache = model_kwargs.get("past_key_values")
        if isinstance(cache, GenerationCache):
            if generation_mode == _ASSISTED and cache.get_seq_length():
                raise ConfigError(
                    "assisted generation and prompt lookup do not support past_key_values with tokens: leave it out"
                )
            cache.inner.reserve(None if grows else max_cache_length)
        if cache is not None or generation_config.use_cache is False:
            return
        if generation_config.cache_implementation is not None:
            raise ConfigError(
                f"cache_implementation={generation_config.cache_implementation!r} is for models of transformers; "
                "leave it out: this model has its own cache, whose size depends on its attention"
            )
        rows = batch_size * max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        cache = GenerationCache(self.model.new_cache(rows, None if grows else max_cache_length))
        if generation_config.is_assistant:
            cache.activate_past_recording()
        model_kwargs["past_key_values"] = cache

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: object = None, every_n_layers: int = 1
    ) -> None:
        """Checkpoint the activations of every n-th block. Called by ``gradient_checkpointing_enable``.

        gradient_checkpointing_func: ignored, since GPTModel implements activation checkpointing
        """
        self.gradient_checkpointing = enable
        self.model.checkpoint_activations(every_n_layers if enable else 0)

    def get_input_embeddings(self) -> nn.Module:
        out: nn.Module = self.model.embedding
        return out

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embedding = value

    def get_output_embeddings(self) -> nn.Module | None:
        """The linear layer of the head; None if the head is tied to the embedding."""
        out: nn.Module | None = self.model.head
        return out

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.model.head = new_embeddings

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Embedding:
        if new_num_tokens is not None and self.model.head_bias is not None:
            raise ConfigError("the vocabulary of a model with head_bias=true cannot be resized")
        embedding = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        self.model.config.vocab_size = self.config.vocab_size
        return embedding

    def _init_weights(self, module: nn.Module) -> None:
        """Reset the non-persistent buffers of a module, which files do not hold; other tensors keep their values."""
        volatile = module._non_persistent_buffers_set
        if not volatile:
            return
        saved = {name: tensor.clone() for name, tensor in module.named_parameters(recurse=False)}
        saved |= {name: tensor.clone() for name, tensor in module.named_buffers(recurse=False) if name not in volatile}
        for name in volatile:
            buffer = getattr(module, name)
            if buffer is not None:
                buffer.zero_()
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
        for name, tensor in saved.items():
            getattr(module, name).data.copy_(tensor)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a model as in transformers. The files are read by this package and must hold exactly its parameters.

        kwargs: ``dtype``, ``device_map`` (one device for the whole model), ``config``, settings of the config, and
            ``output_loading_info``; keywords of transformers without effect are ignored, others are an error

        Raises:
            CheckpointError: there is no such model, or parameters are missing, unknown or of another shape.
            ConfigError: a keyword is not supported.
        """
        output_loading_info = kwargs.pop("output_loading_info", False)
        opened = open_for_transformers(pretrained_model_name_or_path, kwargs)
        model = cls(opened.config, opened.model, *args).eval()
        if opened.generation is not None:
            model.generation_config = opened.generation
        info: PlainDict = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save the model as in transformers, with a model card in README.md unless that file was written by hand.

        Raises:
            CheckpointError: the model card cannot be written.
        """
        if kwargs.get("is_main_process", True):
            write_card(Path(save_directory), self.model, self.config.training)
        super().save_pretrained(save_directory, *args, **kwargs)


def _check_options(options: ForwardOptions) -> None:
    """Raise a ConfigError for an argument that is set and not supported."""
    for name, value in options.items():
        if name not in _SUPPORTED_OPTIONS and value is not None and value is not False:
            raise ConfigError(f"{name} is not supported by this model; leave it out")
