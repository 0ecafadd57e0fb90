"""Mixture of experts.

Top-k softmax routing https://arxiv.org/abs/2401.04088, sigmoid routing and balancing by a bias
https://arxiv.org/abs/2412.19437, shared experts and expert groups https://arxiv.org/abs/2405.04434, load-balancing loss
https://arxiv.org/abs/2101.03961, router z-loss https://arxiv.org/abs/2202.08906.

Tokens are sorted by expert and each expert computes all its tokens in one product; no token is dropped.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from modular_gpt.core.activation_checkpointing import is_recomputing
from modular_gpt.core.collectives import all_reduce_sum, local_shard
from modular_gpt.core.contracts import STACK, Dims, FeedForward, ParallelStyle
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.observer import report
from modular_gpt.core.registry import ComponentConfig, filled, plain
from modular_gpt.core.validation import at_most, one_of, positive
from modular_gpt.core.weight_transfer import FeedForwardWeights, TransferReport
from modular_gpt.nn.activations import ACTIVATIONS, GATES, gated
from modular_gpt.nn.ffn import glu, mlp
from modular_gpt.nn.grouped_mm import gather_rows, grouped_matmul
from modular_gpt.nn.residual import mark_residual

GroupedProduct = Callable[[Tensor, Tensor], Tensor]  # rows (M, in) sorted by expert, ends (E,) -> (M, out)


class MixtureOfExperts(FeedForward["MixtureOfExperts.Config"], name="moe"):
    """A router sends each token to top_k of n_experts feed-forward networks (Mixtral, DeepSeek)."""

    @dataclass
    class Config(ComponentConfig):
        """Settings of a mixture of experts.

        n_experts: Number of experts that the router chooses from.
        top_k: Number of experts per token.
        expert: Type of the experts, glu or mlp.
        hidden: Width of an expert's hidden layer. By default (null) that of a single glu or mlp.
        activation: Activation of an expert's hidden layer, as for glu or mlp.
        bias: Use biases in experts. By default (null) the model's bias setting applies.
        clamp_limit: Bound of the gate and of the hidden layer with activation=clamped_swish.
        clamp_alpha: Slope of the sigmoid with activation=clamped_swish.
        weight_on_input: Multiply the input of an expert by its weight, instead of its output (Llama 4).
        shared_experts: Give every token a shared expert, as wide as this many experts.
        shared_hidden: Width of the shared expert. By default (null) shared_experts times hidden.
        shared_gate: Multiply the output of the shared expert by the sigmoid of a linear layer (Qwen2-MoE).
        router_bias: Use a bias in the router.
        score: Function that turns router logits into scores, softmax or sigmoid.
        rank_by: Choose experts by their score, or by their logit; a balancing bias is added to it.
        norm_topk: Rescale the weights of the chosen experts so that they sum to 1.
        routed_scale: Multiply the weights of the chosen experts by this factor.
        groups: Number of groups that experts are divided into; a token uses experts of its best top_groups groups.
        top_groups: Number of groups per token.
        group_score: Score of a group: that of its best expert (max), or the sum of its best two (top2).
        balance: Load balancing: loss adds balance_weight times the load-balancing loss, bias adjusts a
            bias that affects only the choice of experts, none does nothing.
        balance_weight: Weight of the load-balancing loss, which is 1 where the load is even.
        bias_step: Change of the balancing bias after each update, with balance=bias.
        z_weight: Weight of the router z-loss.
        """

        n_experts: int = 8
        top_k: int = 2
        expert: str = "glu"
        hidden: int | None = None
        activation: str = "silu"
        bias: bool | None = None
        clamp_limit: float = 7.0
        clamp_alpha: float = 1.702
        weight_on_input: bool = False
        shared_experts: int = 0
        shared_hidden: int | None = None
        shared_gate: bool = False
        router_bias: bool = False
        score: str = "softmax"
        rank_by: str = "score"
        norm_topk: bool = True
        routed_scale: float = 1.0
        groups: int = 1
        top_groups: int = 1
        group_score: str = "max"
        balance: str = "loss"
        balance_weight: float = 0.01
        bias_step: float = 0.001
        z_weight: float = 0.001

    takes_mask = True
    select_bias: Tensor | None
    load: Tensor | None

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        self.config = config
        hidden, bias = plain(config.hidden), plain(config.bias)
        experts, d_model = config.n_experts, dims.d_model
        self.router = nn.Linear(d_model, experts, bias=config.router_bias)
        self.gate = nn.Parameter(torch.empty(experts, hidden, d_model)) if config.expert == "glu" else None
        self.up = nn.Parameter(torch.empty(experts, hidden, d_model))
        self.down = nn.Parameter(torch.empty(experts, d_model, hidden))
        mark_residual(self, "down")
        self.gate_bias = nn.Parameter(torch.empty(experts, hidden)) if bias and config.expert == "glu" else None
        self.up_bias = nn.Parameter(torch.empty(experts, hidden)) if bias else None
        self.down_bias = nn.Parameter(torch.empty(experts, d_model)) if bias else None
        self.shared: FeedForward | None = None
        if config.shared_experts:
            self.shared = replace(_dense(config), hidden=plain(config.shared_hidden)).build(dims)
        self.shared_gate = nn.Linear(d_model, 1, bias=False) if config.shared_gate else None
        self._products: dict[str, GroupedProduct] = {}  # by the name of the weight, see replace_products
        by_bias = config.balance == "bias"
        self.register_buffer("select_bias", torch.zeros(experts) if by_bias else None)
        self.register_buffer("load", torch.zeros(experts) if by_bias else None, persistent=False)

    @classmethod
    def check(cls, config: Config, dims: Dims) -> None:
        at_most("ffn", {"n_experts": 2**16}, config)
        positive("ffn", n_experts=config.n_experts, top_k=config.top_k, hidden=config.hidden, groups=config.groups)
        one_of(config.expert, ("glu", "mlp"), "ffn.expert")
        one_of(config.activation, GATES if config.expert == "glu" else tuple(ACTIVATIONS), "ffn.activation")
        one_of(config.score, ("softmax", "sigmoid"), "ffn.score")
        one_of(config.balance, ("loss", "bias", "none"), "ffn.balance")
        one_of(config.group_score, ("max", "top2"), "ffn.group_score")
        one_of(config.rank_by, ("score", "logit"), "ffn.rank_by")
        positive("ffn", clamp_limit=config.clamp_limit, clamp_alpha=config.clamp_alpha)
        if config.shared_experts == 0 and config.shared_gate:
            raise ConfigError("ffn.shared_gate=true needs a shared expert; set ffn.shared_experts")
        if config.shared_experts < 0:
            raise ConfigError(f"ffn.shared_experts must be 0 or more, got {config.shared_experts}")
        if config.n_experts % config.groups or not 1 <= config.top_groups <= config.groups:
            raise ConfigError(
                f"ffn.groups={config.groups} must divide n_experts={config.n_experts}, "
                f"and top_groups={config.top_groups} lie between 1 and groups"
            )
        available = config.n_experts // config.groups * config.top_groups
        if config.top_k > available:
            raise ConfigError(f"ffn.top_k={config.top_k} is more than the {available} experts a token can choose from")

    @classmethod
    def resolved(cls, config: Config, dims: Dims) -> Config:
        expert = _dense(config)
        component: type[FeedForward] = FeedForward.of(expert)
        config = filled(config, hidden=component.resolved(expert, dims).hidden, bias=dims.bias)
        return filled(config, shared_hidden=plain(config.hidden) * config.shared_experts)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, T, D) -> (B, T, D), and in training the weighted losses ``load_balancing`` and ``router_z``

        mask: (B, T) True where a token is not padding; padding counts neither in the losses nor in the load
        """
        tokens = x.flatten(0, -2)  # (M, D)
        logits = report("ffn.router", self.router(tokens).float().view(*x.shape[:-1], -1))  # (B, T, E)
        weights, chosen, scores = (routed.flatten(0, -2) for routed in self._route(logits))
        routed = chosen.flatten()[:, None] == torch.arange(self.config.n_experts, device=x.device)  # (M * k, E)
        counts = routed.sum(0)
        out = self._experts(tokens, weights, chosen, counts).view_as(x)
        if self.shared is not None:
            shared = self.shared(x)[0]
            out = out + (shared if self.shared_gate is None else self.shared_gate(x).sigmoid() * shared)
        if not self.training:
            return out, {}
        if mask is not None:
            mask = mask.flatten()
            counts = (routed & mask.repeat_interleave(self.config.top_k)[:, None]).sum(0)
        counts = all_reduce_sum(counts)
        if self.load is not None and not is_recomputing():
            self.load.add_(counts)
        return out, self._losses(logits.flatten(0, -2), scores, counts / counts.sum(), mask)

    def _route(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """logits (..., E) -> weights (..., k), chosen experts (..., k), scores (..., E)"""
        config = self.config
        scores = logits.softmax(-1) if config.score == "softmax" else logits.sigmoid()
        ranking = logits if config.rank_by == "logit" else scores
        ranking = ranking if self.select_bias is None else ranking + self.select_bias
        if config.groups > 1:
            grouped = ranking.detach().unflatten(-1, (config.groups, -1))
            best = grouped.topk(min(2, grouped.shape[-1]) if config.group_score == "top2" else 1, dim=-1).values.sum(-1)
            kept = torch.zeros_like(best).scatter(-1, best.topk(config.top_groups, dim=-1).indices, 1.0)
            ranking = (
                ranking.unflatten(-1, (config.groups, -1)).masked_fill(kept[..., None] == 0, -torch.inf).flatten(-2)
            )
        chosen = report("ffn.chosen", ranking.topk(config.top_k, dim=-1).indices)
        weights = scores.gather(-1, chosen)
        if config.norm_topk:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * config.routed_scale, chosen, scores

    def _experts(self, tokens: Tensor, weights: Tensor, chosen: Tensor, counts: Tensor) -> Tensor:
        """(M, D) -> (M, D): for each token, the sum of its experts' outputs times their weights."""
        tokens, weights = self.shards.copied(tokens), self.shards.copied(weights)
        order = chosen.flatten().argsort(stable=True)  # token-expert pairs, expert by expert
        ends = counts.cumsum(0).to(torch.int32)
        first, last = self.shards.bounds(self.config.n_experts)  # the experts of this process
        if self.shards.size > 1:
            begin = int(ends[first - 1]) if first else 0
            order, ends = order[begin : int(ends[last - 1])], ends[first:last] - begin
            x = tokens[order // self.config.top_k]
        else:
            inverse = order.argsort()
            x = gather_rows(tokens, order, inverse, self.config.top_k)
        expert = chosen.flatten()[order] - first
        if self.config.weight_on_input:
            x, weights = x * weights.flatten()[order][:, None].to(x.dtype), torch.ones_like(weights)

        def linear(rows: Tensor, name: str, bias: Tensor | None) -> Tensor:
            replaced = self._products.get(name)
            if replaced is None:
                product = grouped_matmul(rows, local_shard(getattr(self, name)).transpose(1, 2), ends)
            else:
                product = replaced(rows, ends)
            return product if bias is None else product + local_shard(bias)[expert].to(product.dtype)

        up = linear(x, "up", self.up_bias)
        if self.gate is None:
            hidden = ACTIVATIONS[self.config.activation](up)
        else:
            gate = linear(x, "gate", self.gate_bias)
            hidden = gated(self.config.activation, gate, up, self.config.clamp_limit, self.config.clamp_alpha)
        out = linear(hidden, "down", self.down_bias)
        if self.shards.size > 1:  # zeros for the experts of other processes
            out = out.new_zeros(chosen.numel(), out.shape[1]).index_copy(0, order, out)
        else:
            out = gather_rows(out, inverse, order)  # back to token order
        result: Tensor = (out.unflatten(0, (-1, self.config.top_k)) * weights[..., None].to(out.dtype)).sum(1)
        return self.shards.summed(result)

    def shard(self, rank: int, world_size: int) -> dict[str, ParallelStyle]:
        """Shard the experts, and the hidden units of the shared expert; every process computes the router."""
        config = self.config
        for name, count in (("n_experts", config.n_experts), ("shared_hidden", plain(config.shared_hidden))):
            if count % world_size:
                raise ConfigError(f"ffn.{name}={count} does not divide into {world_size} processes; change one")
        shared: dict[str, ParallelStyle] = {}
        if self.shared is not None:
            shared = {f"shared.{name}": style for name, style in self.shared.join(self.shards).items()}
        stacks = ("gate", "up", "down", "gate_bias", "up_bias", "down_bias")
        return {**{name: STACK for name in stacks if getattr(self, name) is not None}, **shared}

    def replace_products(self, make: Callable[[Tensor], GroupedProduct]) -> None:
        """Replace the matrix products of the experts, and free the weights, whose shapes remain on the meta device.

        make: returns the product with a weight (E, out, in)
        """
        for name in ("gate", "up", "down"):
            weight = getattr(self, name)
            if weight is not None and not weight.is_meta:  # a meta tensor was replaced before
                self._products[name] = make(weight)
                setattr(self, name, nn.Parameter(weight.detach().to("meta"), requires_grad=False))

    def _losses(self, logits: Tensor, scores: Tensor, fractions: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        losses = {}
        if self.config.balance == "loss" and self.config.balance_weight > 0:
            mean_scores = _mean(scores / scores.sum(-1, keepdim=True), mask)
            balance = self.config.n_experts * (fractions * mean_scores).sum()
            losses["load_balancing"] = self.config.balance_weight * balance
        if self.config.z_weight > 0:
            losses["router_z"] = self.config.z_weight * _mean(logits.logsumexp(-1).square(), mask)
        return losses

    def inactive_parameters(self) -> int:
        idle = self.config.n_experts - self.config.top_k
        experts = [self.gate, self.up, self.down, self.gate_bias, self.up_bias, self.down_bias]
        return sum(p.numel() // self.config.n_experts * idle for p in experts if p is not None)

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        """Lower the selection bias of experts above the mean load and raise that of the others, by ``bias_step``."""
        if self.select_bias is not None and self.load is not None and self.router.weight.requires_grad:
            self.select_bias += self.config.bias_step * torch.sign(self.load.mean() - self.load)
        self.after_skipped_step()

    @torch.no_grad()
    def after_skipped_step(self) -> None:
        if self.load is not None:
            self.load.zero_()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        if self.select_bias is not None and self.load is not None:
            self.select_bias.zero_()
            self.load.zero_()

    @torch.no_grad()
    def init_from(self, source: FeedForwardWeights) -> TransferReport:
        """Copy a dense network into every expert (sparse upcycling, arxiv.org/abs/2212.05055); the router stays new."""
        if source.up.shape != self.up.shape[1:] or (source.gate is None) != (self.gate is None):
            return {}
        report: TransferReport = {}
        for name in ("gate", "up", "down", "gate_bias", "up_bias", "down_bias"):
            parameter, dense = getattr(self, name), getattr(source, name)
            if parameter is None or dense is None:
                continue
            factor = 1 / self.config.routed_scale if name.startswith("down") else 1.0
            parameter.copy_((dense * factor).expand_as(parameter))
            report[name] = "for every expert" + (f", times {factor:.4g}" if factor != 1 else "")
        return report

    def extra_repr(self) -> str:
        expert, hidden = self.config.expert, self.up.shape[1]
        return f"{self.config.n_experts} experts ({expert}, hidden {hidden}), top_k={self.config.top_k}"


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of ``values`` (M, ...) over the rows where ``mask`` (M,) is True; None: over all rows."""
    if mask is None:
        return values.mean(0)
    weight = mask.to(values.dtype) / mask.sum()
    out: Tensor = torch.tensordot(weight, values, dims=1)
    return out


def _dense(config: MixtureOfExperts.Config) -> glu.GatedLinearUnit.Config | mlp.MLP.Config:
    """The Config of one expert as a dense network; it resolves the default hidden width of the experts."""
    cls = glu.GatedLinearUnit.Config if config.expert == "glu" else mlp.MLP.Config
    return cls(hidden=config.hidden, activation=config.activation, bias=config.bias)
