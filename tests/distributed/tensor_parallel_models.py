"""Tensor-parallel and unsharded models: losses, gradients and logits of both, many models per call."""

from typing import Any

import torch
from torch import Tensor

from modular_gpt import GPTConfig, GPTModel
from modular_gpt.core.registry import decode
from modular_gpt.distributed import build_parallel
from modular_gpt.distributed.dtensor import full_tensor
from modular_gpt.model.loss import LossConfig
from modular_gpt.runtime.processes import ProcessGroup

SIZE = {"d_model": 16, "n_heads": 4, "n_layers": 1, "context_length": 16, "vocab_size": 65}
MODELS: dict[str, dict[str, Any]] = {
    "a tied head": {},
    "an untied head": {"tie_embeddings": False, "head_bias": True, "logit_softcap": 5.0, "logit_scale": 0.7},
    "narrow embeddings": {"embed_width": 8, "vocab_size": 64},
    "latents": {"attention": "mla"},
    "rotated and compressed latents": {"attention": {"name": "mla", "q_lora_rank": 12}, "pos": "rope"},
    "biased latents": {"attention": "mla", "pos": "alibi"},
    "lightning": {"attention": "lightning"},
    "a norm of all heads": {"attention": {"name": "mha", "qk_norm": "rmsnorm", "qk_norm_scope": "full"}},
    "experts": {"ffn": {"name": "moe", "n_experts": 8}},
    "a shared expert": {
        "ffn": {
            "name": "moe",
            "n_experts": 4,
            "shared_experts": 1,
            "shared_gate": True,
            "bias": True,
            "balance": "bias",
        }
    },
    "experts with weighted inputs": {
        "ffn": {"name": "moe", "n_experts": 4, "expert": "mlp", "weight_on_input": True, "activation": "gelu"}
    },
}
TERMS = LossConfig(label_smoothing=0.1, z_loss=0.01, accuracy=True, chunk=65 * 7)  # in chunks of 7 rows

Outcome = dict[str, Tensor]  # losses, gradients and logits by name


def outcome(name: str, terms: LossConfig, way: Any = None) -> Outcome:
    """Outputs and gradients of a model of ``MODELS`` on a ragged batch, unsharded or tensor-parallel."""
    torch.manual_seed(0)
    model = GPTModel(GPTConfig(**{**SIZE, **MODELS[name]})).train()
    for parameter in model.parameters():  # norms and biases away from their neutral values
        parameter.data.add_(torch.randn(parameter.shape) * 0.1 if parameter.ndim == 1 else 0.0)
    parallel = None if way is None else build_parallel(decode("parallel", way), ProcessGroup.launched())
    if parallel is not None:
        model = parallel.shard_model(model, torch.device("cpu"), "float32")
    ids, targets = torch.randint(0, model.config.vocab_size, (2, 3, 15), generator=torch.Generator().manual_seed(1))
    targets[0, :5] = -100
    output = model(ids, targets, loss=terms)
    output.loss.backward()
    if parallel is not None:
        parallel.finish_gradients()
    found = {"loss": output.loss.detach(), **{key: value.detach() for key, value in output.losses.items()}}
    if output.accuracy is not None:
        found["accuracy"] = output.accuracy
    gradients = {f"gradient of {key}": parameter.grad for key, parameter in model.named_parameters()}
    found |= {key: full_tensor(gradient).clone() for key, gradient in gradients.items() if gradient is not None}
    with torch.no_grad():
        return {**found, "logits": model(ids)}


def outcomes(name: str, way: Any = None) -> list[Outcome]:
    """Outcomes with all terms of the loss, and for one model also with the plain loss."""
    return [outcome(name, terms, way) for terms in ([LossConfig(), TERMS] if name == "an untied head" else [TERMS])]


def differences(ways: dict[str, Any], models: list[str]) -> dict[str, float]:
    """The largest difference between each sharded and unsharded model, by strategy."""
    found = {}
    for name in models:
        expected = outcomes(name)
        for title, way in ways.items():
            for whole, divided in zip(expected, outcomes(name, way), strict=True):
                assert whole.keys() == divided.keys()
                for key, value in whole.items():
                    found[f"{title}, {name}: {key}"] = float((divided[key] - value).abs().max())
    return found


def held() -> tuple[int, int]:
    """Number of elements per tensor in this process: of a tensor-parallel model, and of the unsharded one."""
    torch.manual_seed(0)
    model = GPTModel(GPTConfig(**{**SIZE, "ffn": {"name": "moe", "n_experts": 8}, "attention": "mla"}))
    whole = sum(parameter.numel() for parameter in model.parameters())
    processes = ProcessGroup.launched()
    divided = build_parallel("tensor", processes).shard_model(model, torch.device("cpu"), "float32")
    local = [
        parameter.to_local() if hasattr(parameter, "to_local") else parameter for parameter in divided.parameters()
    ]
    return sum(tensor.numel() for tensor in local), whole


def message_outside() -> str:
    """The message about an id outside of a sharded vocabulary."""
    processes = ProcessGroup.launched()
    model = build_parallel("tensor", processes).shard_model(GPTModel(**SIZE), torch.device("cpu"), "float32")
    try:
        model(torch.tensor([[65]]))
    except ValueError as error:
        return str(error)
    return "nothing"
