"""Data: corpus -> tokenizer -> token files -> batches.

corpus = build_corpus("python_stdlib"); tokenizer = build_tokenizer("byte", corpus)
data = prepare(corpus, tokenizer); x, y = BatchSource(data.train, 256, 16, seed=0).batch(step=0)
"""

from modular_gpt.data.batches import BatchSource, sequential
from modular_gpt.data.cache_dir import cache_directory
from modular_gpt.data.corpora import SPLITS, Corpus, build_corpus
from modular_gpt.data.prepare import prepare
from modular_gpt.data.prepared import Batch, Batches, PreparedData
from modular_gpt.data.prepared_text import PreparedText
from modular_gpt.data.token_files import TokenSplit
from modular_gpt.data.tokenizers import CharTokenizer, StreamDecoder, Tokenizer, build_tokenizer
from modular_gpt.data.torch_dataset import SlidingWindowDataset, make_dataloader

__all__ = [
    "SPLITS",
    "Batch",
    "BatchSource",
    "Batches",
    "CharTokenizer",
    "Corpus",
    "PreparedData",
    "PreparedText",
    "SlidingWindowDataset",
    "StreamDecoder",
    "TokenSplit",
    "Tokenizer",
    "build_corpus",
    "build_tokenizer",
    "cache_directory",
    "make_dataloader",
    "prepare",
    "sequential",
]
