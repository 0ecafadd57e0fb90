"""Beginning-of-text and end-of-text tokens equal those of tokenizers of the transformers library."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, GemmaTokenizer, GPT2TokenizerFast, LlamaTokenizer, PreTrainedTokenizerFast

from modular_gpt import DataError, GPTModel
from modular_gpt.checkpoint.hf_folder import write_folder
from modular_gpt.checkpoint.resolve import load_model
from modular_gpt.data import Tokenizer, build_tokenizer
from modular_gpt.hf import to_transformers

TEXTS = ["abc", "a b  c\n", "", "<s>a</s>", "x<|begin|>", "é🙂"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
MERGES = [("a", "b"), ("ab", "c")]


def vocabulary(*special: str) -> dict[str, int]:
    """A sentencepiece-style vocabulary: special tokens, bytes and letters."""
    return {token: id for id, token in enumerate([*special, *BYTES, "▁", "a", "b", "c", "ab", "abc"])}


def llama(folder: Path) -> None:
    LlamaTokenizer(vocabulary("<unk>", "<s>", "</s>"), MERGES, add_bos_token=True).save_pretrained(folder)


def llama_without_flags(folder: Path) -> None:
    """Only the post-processor adds the token."""
    llama(folder)
    change(folder, add_bos_token=None, add_eos_token=None)


def llama_with_a_false_flag(folder: Path) -> None:
    """The post-processor takes precedence over the flag."""
    llama(folder)
    change(folder, add_bos_token=False)


def llama_with_an_end(folder: Path) -> None:
    """As above, with a flag for the end of text, which a prompt must not have."""
    llama(folder)
    change(folder, add_bos_token=True, add_eos_token=True)


def gemma(folder: Path) -> None:
    names = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    GemmaTokenizer(vocabulary(*names), MERGES, add_bos_token=True).save_pretrained(folder)


def byte_level(folder: Path, post_processor: processors.PostProcessor | None, **settings: object) -> None:
    """Byte-level, like newer tokenizers of Mistral, Llama 3 and GPT-2."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, "ab", "abc"]
    library = tokenizers.Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, MERGES))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<s>", "</s>", "<|begin|>"])
    if post_processor is not None:
        library.post_processor = post_processor
    PreTrainedTokenizerFast(tokenizer_object=library, **settings).save_pretrained(folder)


def mistral(folder: Path) -> None:
    template = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 258), ("</s>", 259)])
    byte_level(folder, template, bos_token="<s>", eos_token="</s>", add_bos_token=True, add_eos_token=False)


def llama3(folder: Path) -> None:
    template = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 260)])
    steps = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    byte_level(folder, steps, bos_token="<|begin|>", eos_token="</s>")


def qwen(folder: Path) -> None:
    byte_level(folder, None, eos_token="</s>", add_bos_token=False)


def bert_style(folder: Path) -> None:
    byte_level(folder, processors.RobertaProcessing(("</s>", 259), ("<s>", 258)), bos_token="<s>", eos_token="</s>")


FOLDERS: list[tuple[Callable[[Path], None], str | None]] = [
    (llama, "<s>"),
    (llama_without_flags, "<s>"),
    (llama_with_a_false_flag, "<s>"),
    (llama_with_an_end, "<s>"),
    (gemma, "<bos>"),
    (mistral, "<s>"),
    (llama3, "<|begin|>"),
    (qwen, None),
    (bert_style, "<s>"),
]


def change(folder: Path, **settings: object) -> None:
    """Change tokenizer_config.json of the folder; None removes a key."""
    path = folder / "tokenizer_config.json"
    content = {**json.loads(path.read_text()), **settings}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def prompts(reference: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The prompt ids of transformers, without an end-of-text token."""
    ids = reference(text, split_special_tokens=True)["input_ids"]
    return ids[:-1] if reference("")["input_ids"][-1:] == [reference.eos_token_id] else ids


def small_llama(vocab_size: int) -> GPTModel:
    return GPTModel(
        vocab_size=vocab_size,
        d_model=16,
        n_heads=2,
        n_layers=1,
        context_length=8,
        ffn="swiglu",
        norm="rmsnorm",
        bias=False,
    )


@pytest.mark.parametrize(("write", "bos"), FOLDERS, ids=lambda value: getattr(value, "__name__", ""))
def test_beginning_of_text_tokens_equal_those_of_transformers(
    write: Callable[[Path], None], bos: str | None, tmp_path: Path
) -> None:
    write(tmp_path)
    tokenizer, reference = (
        build_tokenizer({"name": "hf", "path": str(tmp_path)}),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    assert tokenizer.bos_id == (None if bos is None else reference.convert_tokens_to_ids(bos))
    for text in filter(None, TEXTS):
        assert tokenizer.prompt_ids(text) == prompts(reference, text), text
        assert tokenizer.prompt_ids(text) == tokenizer.with_bos(tokenizer.encode(text))
    assert tokenizer.prompt_ids("") == [tokenizer.eos_id if bos is None else tokenizer.bos_id]
    tokenizer.save(tmp_path)  # as a checkpoint does
    assert Tokenizer.load(tmp_path).prompt_ids("abc") == tokenizer.prompt_ids("abc")
    assert tokenizer.for_new_model().bos_id is None and tokenizer.for_new_model().encode("abc") == tokenizer.encode(
        "abc"
    )


@pytest.mark.parametrize(("write", "bos"), FOLDERS, ids=lambda value: getattr(value, "__name__", ""))
def test_written_tokenizers_give_equal_ids(write: Callable[[Path], None], bos: str | None, tmp_path: Path) -> None:
    write(tmp_path)
    tokenizer = build_tokenizer({"name": "hf", "path": str(tmp_path)})
    model = small_llama(300)
    folder = tmp_path / "written"
    folder.mkdir()
    write_folder(folder, model, tokenizer, {}, "family")
    for written in (tokenizer, tokenizer.for_new_model()):
        to_transformers(written).save_pretrained(folder)
        reference = AutoTokenizer.from_pretrained(folder)
        for text in TEXTS:
            assert reference(text)["input_ids"] == written.with_bos(written.encode(text)), text


def test_all_end_tokens_stop_and_are_written_back(tmp_path: Path) -> None:
    llama3(tmp_path)
    model = small_llama(261)
    folder = tmp_path / "first"
    folder.mkdir()
    write_folder(folder, model, build_tokenizer({"name": "hf", "path": str(tmp_path)}), {}, "family")
    for path in (folder / "modular_gpt").iterdir():
        path.unlink()
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "eos_token_id": [259, 258, 9999]}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [258, 257]}))
    loaded = load_model(folder)
    assert loaded.tokenizer.eos_id == 259 and loaded.tokenizer.eos_ids == [259, 258, 257]  # 9999 is not a token
    for format in ("family", "modular_gpt"):
        written = tmp_path / format
        written.mkdir()
        write_folder(written, loaded.model, loaded.tokenizer, {}, format)
        name = "config.json" if format == "family" else "generation_config.json"
        content = json.loads((written / name).read_text())
        assert content["eos_token_id"] == [259, 258, 257]
        assert load_model(written).tokenizer.eos_ids == [259, 258, 257]


def test_add_bos_token_alone_adds_the_token(tmp_path: Path) -> None:
    """In DeepSeek's files the post-processor adds no token; the tokenizer class reads the flag ``add_bos_token``."""
    byte_level(tmp_path, processors.ByteLevel(), bos_token="<|begin|>", eos_token="</s>")
    assert build_tokenizer({"name": "hf", "path": str(tmp_path)}).bos_id is None
    change(tmp_path, add_bos_token=True)
    assert build_tokenizer({"name": "hf", "path": str(tmp_path)}).bos_id == 260


def test_several_tokens_before_a_text_are_refused(tmp_path: Path) -> None:
    template = processors.TemplateProcessing(
        single="<|begin|> <s> $A", special_tokens=[("<|begin|>", 260), ("<s>", 258)]
    )
    byte_level(tmp_path, template)
    with pytest.raises(DataError, match=r"begins a text with 2 tokens \(<\|begin\|>, <s>\), and one is supported"):
        build_tokenizer({"name": "hf", "path": str(tmp_path)})


def test_an_end_token_in_the_config_of_the_model_is_read(tmp_path: Path) -> None:
    qwen(tmp_path)
    change(tmp_path, eos_token=None)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 259}))
    assert build_tokenizer({"name": "hf", "path": str(tmp_path)}).eos_ids == [259]


def test_gpt2_files_without_a_tokenizer_json_are_read(tmp_path: Path) -> None:
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "abc", "<|endoftext|>"]
    vocab = {token: id for id, token in enumerate(alphabet)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nab c\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "eos_token_id": 258}))
    tokenizer = build_tokenizer({"name": "hf", "path": str(tmp_path)})
    reference = GPT2TokenizerFast(vocab=vocab, merges=MERGES)
    for text in [*TEXTS, "don't  go\n\n 123abc<|endoftext|>"]:
        ids = tokenizer.encode(text)
        assert ids == reference(text, split_special_tokens=True)["input_ids"]
        assert tokenizer.decode(ids) == text
    assert tokenizer.eos_ids == [258] and tokenizer.bos_id is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    with pytest.raises(DataError, match=r"belongs to a 'Qwen2Tokenizer' tokenizer, .*: add its tokenizer.json"):
        build_tokenizer({"name": "hf", "path": str(tmp_path)})


@pytest.mark.parametrize("token", [["</s>"], 3, {"x": 1}, True, {"content": 4}])
def test_special_tokens_of_the_wrong_type_are_refused(token: object, tmp_path: Path) -> None:
    llama3(tmp_path)
    for name in ("eos_token", "bos_token"):
        change(tmp_path, **{"eos_token": "</s>", "bos_token": None, name: token})
        with pytest.raises(DataError, match=f"tokenizer_config.json': {name} must be a text, or a mapping"):
            build_tokenizer({"name": "hf", "path": str(tmp_path)})
