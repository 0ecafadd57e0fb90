"""The model card: a README.md with the components of a model and the run that trained it."""

import json
from pathlib import Path

from modular_gpt.core.errors import CheckpointError
from modular_gpt.core.plain_types import PlainMapping
from modular_gpt.model import GPTModel
from modular_gpt.model.config import GPTConfig

CARD = "README.md"
MARK = "<!-- written by modular_gpt; a card without this line is never overwritten -->"
_TOKENS = 1024  # number of tokens for which the card reports the size of the cache


def write_card(directory: Path, model: GPTModel, training: PlainMapping, importing: bool = True) -> None:
    """Write README.md; an existing one without ``MARK`` is not overwritten.

    training: record of the run that trained the model
    importing: whether loading the model requires this package

    Raises:
        CheckpointError: the file cannot be read or written.
    """
    path = directory / CARD
    try:
        if path.is_file() and MARK not in path.read_text(encoding="utf-8"):
            return
        directory.mkdir(parents=True, exist_ok=True)
        path.write_text(card(model, training, importing), encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot write '{path}' ({error}); give another directory") from error


def card(model: GPTModel, training: PlainMapping, importing: bool = True) -> str:
    """The text of the card: Markdown after a header with the metadata of the Hugging Face hub."""
    config = model.config
    components = [config.attention.name, config.ffn.name, config.norm.name, config.pos.name]
    count = model.num_parameters()
    tags = "".join(f"\n- {name}" for name in dict.fromkeys(["modular-gpt", *components]))
    return f"""---
library_name: {"modular_gpt" if importing else "transformers"}
pipeline_tag: text-generation
tags:{tags}
---
{MARK}

# A GPT with {count.total:,} parameters

{_properties(config, count.active if count.active != count.total else None)}

```
{model.summary()}
```

## Use

```python
{"import modular_gpt.hf" + chr(10) if importing else ""}from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("<this folder>")
```

## Training

{_training(training)}
"""


def _properties(config: GPTConfig, active: int | None) -> str:
    rows = {
        "attention": config.attention.name,
        "feed-forward": config.ffn.name,
        "norm": f"{config.norm.name}, {config.topology}",
        "positions": config.pos.name,
        "layers": f"{config.n_layers} ({config.layers.name})",
        "width, heads": f"{config.d_model}, {config.n_heads}",
        "vocabulary": f"{config.vocab_size:,}",
        "context": f"{config.context_length:,} tokens",
        "embeddings and head": "one matrix" if config.tie_embeddings else "two matrices",
        f"cache of {_TOKENS:,} tokens": f"{config.cache_bytes(1, _TOKENS):,} bytes in float32",
    }
    if active is not None:
        rows["parameters used for one token"] = f"{active:,}"
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())])


def _training(training: PlainMapping) -> str:
    if not training:
        return "The training run is not recorded."
    return f"```json\n{json.dumps(training, indent=1, sort_keys=True, ensure_ascii=False)}\n```"
