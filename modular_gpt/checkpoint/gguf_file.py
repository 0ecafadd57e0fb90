"""A model and its tokenizer as one GGUF file."""

import base64
import json
import re
from dataclasses import replace
from pathlib import Path

from modular_gpt.core.errors import CheckpointError, ConfigError
from modular_gpt.data.templates import stops_of
from modular_gpt.data.tokenizers import Tokenizer
from modular_gpt.deploy.gguf import ARCHITECTURES, write_gguf
from modular_gpt.deploy.gguf_vocabulary import REMEDY, GGUFVocabulary, from_library, from_sentencepiece
from modular_gpt.model import GPTModel
from modular_gpt.pretrained import as_published

_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")  # a tag of transformers alone
SYMBOLS = ("\n",)  # that tokenizer=sentencepiece defines, see its settings of the library


def save_gguf(model: GPTModel, path: str | Path, tokenizer: Tokenizer | None = None) -> str:
    """Write a GGUF file, in the dtype of the model; returns its architecture.

    tokenizer: None writes a file that takes ids alone

    Raises:
        ConfigError: the extra ``gguf`` is not installed.
        CheckpointError: no architecture of GGUF's computes the same, it has no such tokenizer, or the file cannot be
            written.
    """
    try:
        settings, tensors = as_published(model, ARCHITECTURES)
    except CheckpointError as error:
        reason = str(error).partition(": ")[2].partition(";")[0]
        raise CheckpointError(
            f"GGUF files can hold models of the types {', '.join(ARCHITECTURES)}; of these {reason}"
        ) from error
    vocabulary = None if tokenizer is None else gguf_vocabulary(tokenizer)
    write_gguf(Path(path), settings, tensors, vocabulary)
    return ARCHITECTURES[settings["model_type"]].name


def gguf_vocabulary(tokenizer: Tokenizer) -> GGUFVocabulary:
    """The vocabulary of a tokenizer, with its chat template. Raises CheckpointError if GGUF has no counterpart."""
    found, template = _vocabulary(tokenizer), tokenizer.template
    if template is None:
        return found
    source = template.jinja()
    source = source if isinstance(source, str) else source["default"]
    plain = _GENERATION.sub(lambda tag: f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}", source)
    return replace(found, chat_template=plain, eot_id=next(iter(stops_of(template, tokenizer).tokens), None))


def _vocabulary(tokenizer: Tokenizer) -> GGUFVocabulary:
    definition = tokenizer.definition()
    if tokenizer.name == "sentencepiece":
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(model_proto=base64.b64decode(definition["model"]))
        return from_sentencepiece(processor, SYMBOLS)
    from modular_gpt.hf import to_transformers

    try:
        content = json.loads(to_transformers(tokenizer).backend_tokenizer.to_str())
        return from_library(content, tokenizer.bos_id, tokenizer.eos_id)
    except (ConfigError, CheckpointError) as error:
        raise CheckpointError(f"tokenizer={tokenizer.name}: {error}") from error
    except KeyError as error:
        raise CheckpointError(f"tokenizer={tokenizer.name} has no counterpart in GGUF: {REMEDY}") from error
