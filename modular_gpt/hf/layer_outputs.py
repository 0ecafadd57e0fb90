"""The outputs ``attentions`` and ``hidden_states`` of transformers."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.observer import Observer, observing
from modular_gpt.model import GPTModel


class LayerOutputs(Observer):
    """Keeps the tensors of a forward pass that transformers returns for each layer, with their graph.

    attentions, hidden_states: whether the attention weights, and the residual stream, are kept
    """

    def __init__(self, model: GPTModel, attentions: bool, hidden_states: bool) -> None:
        super().__init__(model)
        indices = range(len(model.blocks))
        self.attention_names = [f"blocks.{index}.attention.weights" for index in indices if attentions]
        # the input of each block and, after the final norm, the output of the last one
        states = ["embedding", *(f"blocks.{index}.residual" for index in indices[:-1]), "final"]
        self.state_names = states if hidden_states else []
        self.kept: dict[str, Tensor] = {}

    def wants(self, name: str) -> bool:
        return name in self.attention_names or name in self.state_names

    def edits(self, name: str) -> bool:
        return False

    def receive(self, name: str, value: Tensor) -> Tensor:
        if self.wants(name):
            self.kept[name] = value
        return value

    def outputs(self, count: int) -> dict[str, tuple[Tensor, ...]]:
        """The fields of the output of ``count`` tokens.

        Raises:
            ConfigError: an attention reports no weights, or the tokens were read in several passes.
        """
        missing = [name for name in self.attention_names if name not in self.kept]
        if missing:
            raise ConfigError(f"output_attentions=True: {missing[0]} do not exist in this attention; leave it out")
        fields = {"attentions": self.attention_names, "hidden_states": self.state_names}
        found = {field: tuple(self.kept[name] for name in names) for field, names in fields.items() if names}
        if any(value.shape[-2] != count for values in found.values() for value in values):
            raise ConfigError(
                "output_attentions and output_hidden_states do not go with drafts that exceed a sliding window; "
                "generate without an assistant and without prompt lookup"
            )
        return found


@contextmanager
def layer_outputs(model: GPTModel, attentions: bool, hidden_states: bool) -> Iterator[LayerOutputs]:
    """Context manager: keep these outputs of the forward pass inside; without any, nobody listens."""
    kept = LayerOutputs(model, attentions, hidden_states)
    if not attentions and not hidden_states:
        yield kept
        return
    with observing(kept):
        yield kept
