"""The outputs ``attentions`` and ``hidden_states`` of transformers."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.observer import Observer, observing
from modular_gpt.model import GPTModel


class LayerOutputs(Observer):
    """Records the tensors that transformers returns for each layer, with their autograd graph.

    attentions, hidden_states: whether to record the attention weights and the residual stream
    """

    def __init__(self, model: GPTModel, attentions: bool, hidden_states: bool) -> None:
        super().__init__(model)
        indices = range(len(model.blocks))
        self.attention_names = [f"blocks.{index}.attention.weights" for index in indices if attentions]
        # the input of each block and, after the final norm, the output of the last one
        states = ["embedding", *(f"blocks.{index}.residual" for index in indices[:-1]), "final"]
        self.state_names = states if hidden_states else []
        self.recorded: dict[str, Tensor] = {}

    def wants(self, name: str) -> bool:
        return name in self.attention_names or name in self.state_names

    def edits(self, name: str) -> bool:
        return False

    def receive(self, name: str, value: Tensor) -> Tensor:
        if self.wants(name):
            self.recorded[name] = value
        return value

    def outputs(self, count: int) -> dict[str, tuple[Tensor, ...]]:
        """The recorded fields of the model output for ``count`` tokens.

        Raises:
            ConfigError: an attention has no attention weights, or the tokens were read in several passes.
        """
        missing = [name for name in self.attention_names if name not in self.recorded]
        if missing:
            raise ConfigError(f"output_attentions=True: this attention has no {missing[0]}; leave it out")
        fields = {"attentions": self.attention_names, "hidden_states": self.state_names}
        outputs = {field: tuple(self.recorded[name] for name in names) for field, names in fields.items() if names}
        if any(value.shape[-2] != count for values in outputs.values() for value in values):
            raise ConfigError(
                "output_attentions and output_hidden_states do not support drafts that exceed a sliding window; "
                "generate without an assistant and without prompt lookup"
            )
        return outputs


@contextmanager
def layer_outputs(model: GPTModel, attentions: bool, hidden_states: bool) -> Iterator[LayerOutputs]:
    """Context manager: record these outputs of the forward pass inside; if both are off, no observer is active."""
    recorder = LayerOutputs(model, attentions, hidden_states)
    if not attentions and not hidden_states:
        yield recorder
        return
    with observing(recorder):
        yield recorder
