"""The decoder: embeddings, a stack of blocks, a head. Letters of shapes are those of core/contracts.py."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modular_gpt.core.cache import ModelCache
from modular_gpt.core.collectives import ShardGroup, local_shard
from modular_gpt.core.contracts import STACK, FeedForward, ParallelStyle, Position, Positions
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.observer import enter_block, observed_pass, report
from modular_gpt.core.registry import described
from modular_gpt.core.validation import size_errors
from modular_gpt.model.aliases import Description, read_description
from modular_gpt.model.block import TransformerBlock, build_norm
from modular_gpt.model.config import GPTConfig
from modular_gpt.model.init import initialise
from modular_gpt.model.inputs import check_cache_size, checked_ids, checked_targets, embedded, outside
from modular_gpt.model.loss import ACCURACY, IGNORED, PLAIN, LossConfig, LossOutput, token_losses
from modular_gpt.model.summary import summary_table
from modular_gpt.model.text_generation import GeneratesText
from modular_gpt.model.token_positions import packed_positions, token_positions
from modular_gpt.model.vocabulary import VocabularyShard

M = TypeVar("M", bound=nn.Module)

if TYPE_CHECKING:

    class ModuleList(nn.ModuleList, Generic[M]):
        """For the type checker only: a ModuleList whose items have one type."""

        def __iter__(self) -> Iterator[M]: ...
        def __getitem__(self, index: int) -> M: ...  # type: ignore[override]

else:
    ModuleList = nn.ModuleList


class ParameterCount(NamedTuple):
    """Numbers of parameters.

    total: all; non_embedding: without token and position tables; active: those that one token uses (MoE)
    """

    total: int
    non_embedding: int
    active: int


class GPTModel(GeneratesText, nn.Module):
    """A GPT composed from a config: ``GPTModel(GPTConfig(...))``, ``GPTModel({...})`` or ``GPTModel(d_model=...)``.

    Raises:
        ConfigError: a setting is unknown or wrong, or settings contradict each other.
    """

    def __init__(self, config: Description = None, **keywords: object) -> None:
        super().__init__()
        self.config, self.assumed = read_description(config, **keywords)
        config = self.config
        with size_errors("the model"):
            self._build(config)
            initialise(self, config)
        self._kv_cache: ModelCache | None = None
        self.vocabulary: VocabularyShard | None = None  # None: the vocabulary is not sharded

    def _build(self, config: GPTConfig) -> None:
        width = config.embed_width or config.d_model
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.embedding_in = None if config.embed_width is None else nn.Linear(width, config.d_model, bias=False)
        self.embedding_out = None if config.embed_width is None else nn.Linear(config.d_model, width, bias=False)
        self.embedding_norm = build_norm(config.resolved_norm, config) if config.embed_norm else None
        self.positions: ModuleList[Position] = ModuleList()
        modules = self._build_positions(config)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks: ModuleList[TransformerBlock] = ModuleList()
        for layer, given in zip(config.layer_configs, config.given_layers, strict=True):
            block = TransformerBlock(layer, config, modules[repr(layer.pos)])
            block.attention.described = f"{described(given.attention)}; pos {block.attention.position.described}"
            self.blocks.append(block)
        self.final_norm = build_norm(config.resolved_norm, config) if config.has_final_norm else None
        self.head = None if config.tie_embeddings else nn.Linear(width, config.vocab_size, bias=False)
        self.head_bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.head_bias else None

    def _build_positions(self, config: GPTConfig) -> dict[str, Position]:
        """One module for each distinct position, by its settings; the model's position, which may embed, is first."""
        modules: dict[str, Position] = {}
        model_position = (config.resolved_pos, config.pos)
        layers = zip(config.layer_configs, config.given_layers, strict=True)
        for pos, given in [model_position, *((layer.pos, shown.pos) for layer, shown in layers)]:
            if repr(pos) not in modules:
                modules[repr(pos)] = pos.build(config.dims)
                modules[repr(pos)].described = described(given)
                self.positions.append(modules[repr(pos)])
        return modules

    @overload
    def forward(
        self,
        ids: Tensor,
        targets: Tensor,
        *,
        padding: Tensor | None = None,
        documents: Tensor | None = None,
        loss: LossConfig = PLAIN,
    ) -> LossOutput: ...

    @overload
    def forward(
        self,
        ids: Tensor,
        targets: None = None,
        *,
        cache: ModelCache | None = None,
        padding: Tensor | None = None,
        documents: Tensor | None = None,
        last_only: bool = False,
        use_cache: bool = False,
    ) -> Tensor: ...

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        *,
        cache: ModelCache | None = None,
        padding: Tensor | None = None,
        documents: Tensor | None = None,
        last_only: bool = False,
        use_cache: bool = False,
        loss: LossConfig = PLAIN,
    ) -> Tensor | LossOutput:
        """Logits of the next token at every position, or the training loss when targets are given.

        ids: (B, T) token ids; targets: (B, T) the next token at each position; -100 is ignored
        cache: the cache of the preceding tokens, which is extended in place; no gradients are recorded
        padding: (B,) number of leading padding tokens of each row
        documents: (B, T) document id of each token in rows of packed documents: a token attends to its document
            alone, and positions count from the document's beginning; None: each row is one document
        last_only: return only the logits of the last position, (B, 1, V)
        use_cache: keep a cache on the model between calls, until ``reset_kv_cache``
        loss: the terms that are added to the cross-entropy
        Returns logits (B, T, V), or a LossOutput.

        Raises:
            ConfigError: an id or target is outside the vocabulary, tokens lie past a learned position table or a full
                cache, or documents come with a cache, with padding or with an attention that cannot separate them.
        """
        ids = checked_ids(ids, self.embedding.weight.device)
        if use_cache:
            cache = self._session_cache(ids.shape[0])
        with torch.set_grad_enabled(torch.is_grad_enabled() and cache is None):
            x, losses = self.hidden_states(ids, cache, padding, documents)
            if targets is None:
                return self.logits(x[:, -1:] if last_only else x)
            targets = checked_targets(targets, ids)
            losses = {**self._token_losses(x, targets, loss), **losses}
            accuracy = losses.pop(ACCURACY, None)
            head = None if torch.compiler.is_compiling() else partial(self._logits_after, x)
            return LossOutput(torch.stack(list(losses.values())).sum(), losses, head, accuracy)

    def _token_losses(self, x: Tensor, targets: Tensor, loss: LossConfig) -> dict[str, Tensor]:
        settings = (self.config.vocab_size, loss, self.vocabulary)
        if torch.compiler.is_compiling():
            return token_losses(x, targets, self._local_logits, *settings)
        try:
            return token_losses(x, targets, self._local_logits, *settings)
        except IndexError:
            counted = targets[targets != IGNORED]
            raise ConfigError(outside("targets", counted, self.config.vocab_size)) from None

    def _logits_after(self, x: Tensor) -> Tensor:
        """The logits of hidden states, also outside the autocast region in which these were computed."""
        weight = self.embedding.weight
        return self.logits(x if torch.is_autocast_enabled(x.device.type) else x.to(weight.dtype))

    def hidden_states(
        self,
        ids: Tensor,
        cache: ModelCache | None = None,
        padding: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, T) ids -> (B, T, D) inputs of the output head, and the auxiliary losses summed over layers."""
        if documents is None:
            pos = token_positions(self.config, ids, cache, padding)
        else:
            pos = packed_positions(self.config, ids, documents, cache is None and padding is None)
        with observed_pass(self):
            return self._hidden_states(ids, cache, pos)

    def _hidden_states(self, ids: Tensor, cache: ModelCache | None, pos: Positions) -> tuple[Tensor, dict[str, Tensor]]:
        x = _apply(self.embedding_in, embedded(self.embedding, ids, self.vocabulary))
        if self.config.embed_scale != 1.0:
            x = x * self.config.embed_scale
        x = _apply(self.embedding_norm, self.positions[0].embed(x, pos))
        x = report("embedding", self.dropout(x))
        losses: dict[str, Tensor] = {}
        for index, block in enumerate(self.blocks):
            enter_block(index)
            x, more = block(x, pos, None if cache is None else cache.layers[index])
            x = report("residual", x)
            for name, value in more.items():
                losses[name] = losses[name] + value if name in losses else value
        enter_block(None)
        if cache is not None:
            cache.advance(ids.shape[1])
        return report("final", _apply(self.final_norm, x)), losses

    def logits(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., V)"""
        logits = self._local_logits(x)
        return logits if self.vocabulary is None else self.vocabulary.gathered(logits)

    def _local_logits(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., V): logits; of a sharded vocabulary, those of this process's token ids."""
        x = _apply(self.embedding_out, x)
        if self.vocabulary is not None:
            logits = self.vocabulary.logits(x, self.embedding.weight if self.head is None else self.head.weight)
        else:
            logits = F.linear(x, self.embedding.weight) if self.head is None else self.head(x)
        if self.head_bias is not None:
            logits = logits + local_shard(self.head_bias)
        if self.config.logit_scale != 1.0:
            logits = logits * self.config.logit_scale
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def shard_vocabulary(self, shards: ShardGroup) -> dict[str, ParallelStyle]:
        """Shard embeddings, head and loss by token ids. Returns the parallel style of each parameter by name.

        Raises:
            ConfigError: some process would have no token id.
        """
        self.vocabulary = VocabularyShard.of(shards, self.config.vocab_size)
        styles: dict[str, ParallelStyle] = {"embedding.weight": STACK}
        styles |= {} if self.head is None else {"head.weight": STACK}
        return styles if self.head_bias is None else {**styles, "head_bias": STACK}

    def new_cache(
        self,
        batch: int = 1,
        max_length: int | None = None,
        dtype: torch.dtype | None = None,
        window: int | None = None,
    ) -> ModelCache:
        """An empty cache for ``batch`` rows of up to ``max_length`` tokens; without a length it grows by doubling.

        dtype: of keys and values; None: that of the weights
        window: limit the attention of every layer to the last ``window`` tokens, the query's included; caches of keys
            and values then hold no more tokens; constant states, as of recurrences, are not limited

        Raises:
            ConfigError: ``batch``, ``max_length`` or ``window`` is no whole number or too small.
        """
        check_cache_size(batch, max_length, window)
        weight = self.embedding.weight
        specs = [layer.cache_spec(self.config.dims).within(window) for layer in self.config.layer_configs]
        layers = [spec.allocate(batch, max_length, dtype or weight.dtype, weight.device) for spec in specs]
        return ModelCache(layers, batch, max_length, window)

    @property
    def slides(self) -> bool:
        """Whether a text may exceed context_length while each token attends to the last context_length tokens."""
        attentions_slide = all(block.attention.slides for block in self.blocks)
        return attentions_slide and all(position.slides for position in self.positions)

    @property
    def switch_length(self) -> int | None:
        """Length in tokens beyond which all keys of a text change, so that the cache has to be rebuilt; None: never."""
        return next((position.switch_length for position in self.positions if position.switch_length), None)

    def _session_cache(self, batch: int) -> ModelCache:
        if self._kv_cache is None:
            self._kv_cache = self.new_cache(batch)
        return self._kv_cache

    def reset_kv_cache(self) -> None:
        """Discard the cache that ``forward(..., use_cache=True)`` keeps on the model."""
        self._kv_cache = None

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> "GPTModel":
        """Load a model, in evaluation mode; ``modular_gpt.load_model`` also returns the tokenizer.

        name_or_path: a run's directory, ``runs/latest``, a checkpoint, a folder in the format of Hugging Face, or a
            published name such as gpt2
        dtype: dtype of the parameters; None: as saved
        device: device of the parameters; None: the CPU

        Raises:
            CheckpointError: there is no such model, or it is damaged.
        """
        from modular_gpt.checkpoint.resolve import load_model

        return load_model(name_or_path, dtype, device).model

    def save_pretrained(
        self,
        path: str | Path,
        format: str = "auto",
        eos_token_id: int | list[int] | None = None,
        model_type: str | None = None,
    ) -> None:
        """Write the model into a folder in the format of Hugging Face, which ``from_pretrained`` reads.

        path: a folder, created if missing; other files in it stay
        format: family: a published family, which transformers loads without this package | modular_gpt: any model,
            which transformers loads after ``import modular_gpt.hf`` | auto: family if one computes the same, else
            modular_gpt
        eos_token_id: the id or ids that end a text, for generation with transformers
        model_type: the published family to write, such as granite; None: the first one that computes the same

        Raises:
            CheckpointError: no published family, or not the one of ``model_type``, computes the same; or the folder
                cannot be written.
            ConfigError: the format or the model_type is unknown.
        """
        from modular_gpt.checkpoint.hf_folder import save_model

        save_model(self, path, format, eos_token_id, model_type=model_type)

    def checkpoint_activations(self, every: int = 1) -> None:
        """Recompute every n-th block in the backward pass (1: all, 0: none): less memory, more time, same result."""
        for index, block in enumerate(self.blocks):
            block.recomputes = every > 0 and index % every == 0

    def after_optimizer_step(self) -> None:
        """Update state that has no gradient, such as the balancing biases of experts; call it after each update."""
        for ffn in self._feed_forwards():
            ffn.after_optimizer_step()

    def after_skipped_step(self) -> None:
        """Discard the statistics of a step; call it instead of ``after_optimizer_step`` for a skipped step."""
        for ffn in self._feed_forwards():
            ffn.after_skipped_step()

    def _feed_forwards(self) -> list[FeedForward]:
        """The feed-forward networks of the blocks, without other modules that replaced one."""
        return [block.ffn for block in self.blocks if isinstance(block.ffn, FeedForward)]

    def num_parameters(self) -> ParameterCount:
        """Count the parameters: all, those outside embedding tables, and those that one token uses."""
        total = sum(p.numel() for p in self.parameters())
        tables = sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Embedding))
        idle = sum(ffn.inactive_parameters() for ffn in self._feed_forwards())
        return ParameterCount(total, total - tables, total - idle)

    def get_num_params(self, non_embedding: bool = False) -> int:
        """The number of parameters, with the interface of nanoGPT.

        non_embedding: exclude position tables; the token table counts, because a tied head uses it
        """
        tables = [m.weight for position in self.positions for m in position.modules() if isinstance(m, nn.Embedding)]
        return self.num_parameters().total - non_embedding * sum(table.numel() for table in tables)

    def summary(self) -> str:
        """A table of the modules: type, parameters, share of all, bytes cached per token and row (float32).

        A line below the table names a default that was assumed from the names of the settings (docs/vocabularies.md).
        """
        table = summary_table(self, self.config)
        return f"{table}\n{self.assumed}" if self.assumed else table


def _apply(module: nn.Module | None, x: Tensor) -> Tensor:
    return x if module is None else module(x)
