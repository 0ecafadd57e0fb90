"""The sizes of GPT-2 with the setting names of a teaching implementation: ``GPTModel(GPT_CONFIG_124M)``."""

from modular_gpt.core.plain_types import PlainDict

GPT_CONFIG_124M: PlainDict = {
    "vocab_size": 50257,
    "context_length": 1024,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
GPT_CONFIG_355M: PlainDict = {**GPT_CONFIG_124M, "emb_dim": 1024, "n_heads": 16, "n_layers": 24}
GPT_CONFIG_774M: PlainDict = {**GPT_CONFIG_124M, "emb_dim": 1280, "n_heads": 20, "n_layers": 36}
GPT_CONFIG_1558M: PlainDict = {**GPT_CONFIG_124M, "emb_dim": 1600, "n_heads": 25, "n_layers": 48}
