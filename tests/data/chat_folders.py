"""Tiny tokenizers with chat templates of five published families, as folders that transformers reads."""

import json
from collections.abc import Callable
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from transformers import GemmaTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
MERGES = [("a", "b"), ("ab", "c")]

CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA3 = """\
{%- for turn in messages %}
    {%- set heading = '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\\n\\n' %}
    {%- set text = heading + turn['content'] | trim + '<|eot_id|>' %}
    {%- if loop.index0 == 0 %}
        {%- set text = bos_token + text %}
    {%- endif %}
    {{- text }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
GEMMA = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {{- raise_exception('there is no role for a system line') }}
{%- endif %}
{%- for turn in messages %}
    {%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('user and assistant take turns') }}
    {%- endif %}
    {%- set role = 'model' if turn['role'] == 'assistant' else turn['role'] %}
    {{- '<start_of_turn>' + role + '\\n' + turn['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\\n' }}
{%- endif %}
"""
MISTRAL = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system, turns = messages[0]['content'], messages[1:] %}
{%- else %}
    {%- set system, turns = '', messages %}
{%- endif %}
{{- bos_token }}
{%- for turn in turns %}
    {%- if turn['role'] == 'user' %}
        {%- if loop.first and system %}
            {{- '[INST] ' + system + '\\n\\n' + turn['content'] + ' [/INST]' }}
        {%- else %}
            {{- '[INST] ' + turn['content'] + ' [/INST]' }}
        {%- endif %}
    {%- elif turn['role'] == 'assistant' %}
        {{- ' ' + turn['content'] | trim + eos_token }}
    {%- else %}
        {{- raise_exception('only user and assistant speak here') }}
    {%- endif %}
{%- endfor %}
"""
QWEN = """\
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou help with letters.<|im_end|>\\n' }}
{%- endif %}
{%- for turn in messages %}
    {%- if turn.role == 'user' or (turn.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + turn.role + '\\n' + turn.content + '<|im_end|>' + '\\n' }}
    {%- elif turn.role == 'assistant' %}
        {{- '<|im_start|>' + turn.role }}
        {%- if turn.content %}
            {{- '\\n' + turn.content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def byte_level(folder: Path, special: list[str], template: str | dict[str, str], **names: str) -> None:
    """A byte-level BPE with these special tokens; a ``bos_token`` is prepended to each text, as in Llama 3."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: id for id, token in enumerate([*alphabet, "ab", "abc"])}
    library = tokenizers.Tokenizer(models.BPE(vocab, MERGES))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(special)
    if bos := names.get("bos_token"):
        begins = [(bos, library.token_to_id(bos))]
        library.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=begins)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=library, **names)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


def vocabulary(*special: str) -> dict[str, int]:
    """A sentencepiece-style vocabulary: special tokens, bytes and letters."""
    return {token: id for id, token in enumerate([*special, *BYTES, "▁", "a", "b", "c", "ab", "abc"])}


def chatml(folder: Path) -> None:
    byte_level(folder, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], CHATML, eos_token="<|im_end|>")


def llama3(folder: Path) -> None:
    special = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    byte_level(folder, special, LLAMA3, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


def gemma(folder: Path) -> None:
    names = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    tokenizer = GemmaTokenizer(vocabulary(*names), MERGES, add_bos_token=True)
    turns = [AddedToken(f"<{edge}_of_turn>", special=True, normalized=False) for edge in ("start", "end")]
    tokenizer.add_tokens(turns, special_tokens=True)
    tokenizer.chat_template = GEMMA
    tokenizer.save_pretrained(folder)


def mistral(folder: Path) -> None:
    tokenizer = LlamaTokenizer(vocabulary("<unk>", "<s>", "</s>"), MERGES, add_bos_token=True)
    turns = [AddedToken(token, special=True, normalized=False) for token in ("[INST]", "[/INST]")]
    tokenizer.add_tokens(turns, special_tokens=True)
    tokenizer.chat_template = MISTRAL
    tokenizer.save_pretrained(folder)


def qwen(folder: Path) -> None:
    """With a second named template and the default in tokenizer_config.json, like older folders."""
    byte_level(folder, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], QWEN, eos_token="<|im_end|>")
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings["chat_template"] = [{"name": "default", "template": QWEN}, {"name": "tool_use", "template": CHATML}]
    path.write_text(json.dumps(settings))


SHAPES: dict[str, Callable[[Path], None]] = {
    "chatml": chatml,
    "llama3": llama3,
    "gemma": gemma,
    "mistral": mistral,
    "qwen": qwen,
}
END_OF_TURN = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "mistral": "</s>",
    "qwen": "<|im_end|>",
}
