"""A GPTModel as a causal language model of the transformers library."""

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

    num_items_in_batch: the number of tokens to divide the loss by; None: the number in this batch
    return_dict: False for a tuple instead of a CausalLMOutputWithPast
    cache_position: accepted for transformers 5.0 and not used: the cache counts its tokens itself
    output_attentions: return the attention weights (B, H, T, S) of each layer; None: as the config says
    output_hidden_states: return the embeddings (B, T, D) and the output of each layer, of the last one after the final
        norm; None: as the config says
    inputs_embeds: not supported, so it must be None
    """

    num_items_in_batch: Tensor | int | None
    return_dict: bool | None
    cache_position: Tensor | None
    inputs_embeds: None
    output_attentions: bool | None
    output_hidden_states: bool | None


class ModularGPTForCausalLM(PreTrainedModel, GenerationMixin):
    """``ModularGPTForCausalLM(config)``, ``.from_gpt(model)`` or ``.from_pretrained(path)``.

    ``.model`` is the GPTModel. ``generate`` keeps our caches, of ``GPTConfig.cache_bytes`` bytes whatever the parts.
    LoRA adapters may stand on any linear layer; one on an embedding that is also the head is refused, since the head
    reads the matrix past it.
    Where a MoE balances its experts by a bias, other training loops must call ``model.model.after_optimizer_step()``.
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
        """model: taken instead of a new one; it must be what ``config`` describes."""
        super().__init__(config)
        self.model = GPTModel(config.gpt_config()) if model is None else model
        self.post_init()

    @classmethod
    def from_gpt(cls, model: GPTModel, training: PlainDict | None = None, **config: Any) -> "ModularGPTForCausalLM":
        """Around an existing model, which is not copied; further keywords go to ModularGPTConfig."""
        described = ModularGPTConfig(model.config, training, **config)
        described.dtype = model.embedding.weight.dtype
        out: ModularGPTForCausalLM = cls(described, model).train(model.training)
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
        """(B, T) ids -> logits (B, T, V), and the loss where labels are given.

        attention_mask: (B, cached + T), 0 for padding, which stands on the left
        labels: (B, T), the ids themselves, -100 where none counts; the shift by one happens here
        past_key_values: extended by these tokens; without one, ``use_cache=True`` makes one that grows
        logits_to_keep: compute logits of the last n positions, or of the positions in a tensor; 0: of all
        options: see ``ForwardOptions``

        Raises:
            ConfigError: the mask is not padding on the left, the cache is not a GenerationCache, or an option is not
                supported.
        """
        _refuse_unsupported(options)
        self._check_adapters()
        cache = self._cache(input_ids, past_key_values, use_cache)
        cached = None if cache is None else cache.get_seq_length()
        padding = None if attention_mask is None else padding_of(attention_mask, input_ids, cached)
        with layer_outputs(self.model, *self._asks_for(options)) as layers:
            hidden, losses = self._read(input_ids, cache, padding)
        loss = None
        if labels is None:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.model.logits(hidden[:, kept])
        else:
            logits = self.model.logits(hidden)
            count = options.get("num_items_in_batch")
            loss = self.loss_function(logits, labels, self.config.vocab_size, num_items_in_batch=count)
            loss = sum(losses.values(), loss)
        output = CausalLMOutputWithPast(loss, logits, cache, **layers.outputs(input_ids.shape[1]))
        return output.to_tuple() if options.get("return_dict") is False else output

    def _asks_for(self, options: ForwardOptions) -> list[bool]:
        """Whether the outputs named by ``_LAYER_OUTPUTS`` are asked for, by an option or else by the config."""
        given = {**options}
        return [bool(getattr(self.config, name) if given.get(name) is None else given[name]) for name in _LAYER_OUTPUTS]

    def _check_adapters(self) -> None:
        """Raise a ConfigError for an adapter that only one of the two uses of a tied embedding would read."""
        if self.model.head is None and hasattr(self.model.embedding, "base_layer"):
            raise ConfigError(
                "an adapter on the embedding changes only the embedding, not the head that is tied to it, so merging"
                " would change the logits: leave it out of target_modules, or use tie_embeddings=false"
            )

    def _read(
        self, ids: Tensor, cache: GenerationCache | None, padding: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, T) ids -> (B, T, D), and auxiliary losses."""
        if cache is None:
            out: tuple[Tensor, dict[str, Tensor]] = self.model.hidden_states(ids, None, padding)
            return out
        hidden = []
        with torch.no_grad():  # a cache keeps no graph
            for chunk in ids.split(cache.portion(ids.shape[1]), dim=1):
                cache.before_reading(chunk.shape[1])
                hidden.append(self.model.hidden_states(chunk, cache.inner, padding)[0])
                padding = None  # the cache knows it now
        return torch.cat(hidden, dim=1) if len(hidden) > 1 else hidden[0], {}

    def _cache(self, ids: Tensor, given: object, use_cache: bool | None) -> GenerationCache | None:
        if given is not None and not isinstance(given, GenerationCache):
            raise ConfigError(
                f"past_key_values is a {type(given).__name__}; leave it out, and the model makes its own cache"
            )
        if given is not None and given.inner.batch != len(ids):
            raise ConfigError(
                f"past_key_values has {given.inner.batch} rows and the prompt {len(ids)}: give as many, or leave it out"
            )
        if given is None and use_cache:
            return GenerationCache(self.model.new_cache(ids.shape[0]))
        return given

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: PlainDict,
        generation_mode: GenerationMode,
        batch_size: int,
        max_cache_length: int,
    ) -> Any:
        """Called by ``generate`` before its first step: a cache of the size that the longest text needs.

        One that an earlier ``generate`` returned is enlarged; the prompt begins with the tokens that are in it.
        """
        grows = generation_config.is_assistant or generation_mode == _ASSISTED  # drafts may reach past the end
        given = model_kwargs.get("past_key_values")
        if isinstance(given, GenerationCache):
            if generation_mode == _ASSISTED and given.get_seq_length():
                raise ConfigError(
                    "assisted generation and prompt lookup read their prompt from its beginning: leave out"
                    " past_key_values"
                )
            given.inner.reserve(None if grows else max_cache_length)
        if given is not None or generation_config.use_cache is False:
            return
        if generation_config.cache_implementation is not None:
            raise ConfigError(
                f"cache_implementation={generation_config.cache_implementation!r} is for models of transformers; "
                "leave it out: this model has its own cache, allocated once and as small as its attention allows"
            )
        rows = batch_size * max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        cache = GenerationCache(self.model.new_cache(rows, None if grows else max_cache_length))
        if generation_config.is_assistant:
            cache.activate_past_recording()
        model_kwargs["past_key_values"] = cache

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: object = None, every_n_layers: int = 1
    ) -> None:
        """Called by ``gradient_checkpointing_enable``: the GPTModel checkpoints every n-th block by its own means.

        gradient_checkpointing_func: of transformers; not needed, since blocks know how to recompute themselves
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
        """The GPTModel has initialised itself, and loading fills all but the buffers that no file holds."""
        passing = module._non_persistent_buffers_set
        if not passing:
            return
        kept = {name: tensor.clone() for name, tensor in module.named_parameters(recurse=False)}
        kept |= {name: tensor.clone() for name, tensor in module.named_buffers(recurse=False) if name not in passing}
        for name in passing:
            buffer = getattr(module, name)
            if buffer is not None:
                buffer.zero_()
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
        for name, tensor in kept.items():
            getattr(module, name).data.copy_(tensor)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; files are read by this package, and a file must hold every parameter and no other.

        kwargs: ``dtype``, ``device_map`` (one device for the whole model), ``config``, settings of the config, and
            ``output_loading_info``; keywords of transformers that have no meaning here are accepted or refused

        Raises:
            CheckpointError: there is no such model, or parameters are missing, unknown or of another shape; names them.
            ConfigError: a keyword is not supported.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        opened = open_for_transformers(pretrained_model_name_or_path, kwargs)
        model = cls(opened.config, opened.model, *args).eval()
        if opened.generation is not None:
            model.generation_config = opened.generation
        info: PlainDict = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in transformers, and a model card: README.md, unless somebody wrote one there."""
        if kwargs.get("is_main_process", True):
            write_card(Path(save_directory), self.model, self.config.training)
        super().save_pretrained(save_directory, *args, **kwargs)


def _refuse_unsupported(options: ForwardOptions) -> None:
    """Raise a ConfigError for an argument that is set and would otherwise have no effect."""
    for name, value in options.items():
        if name not in _SUPPORTED_OPTIONS and value is not None and value is not False:
            raise ConfigError(f"{name} is not supported by this model; leave it out")
