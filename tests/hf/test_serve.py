"""``transformers serve`` with a folder of this package, queried by the openai client, answers like ``Chat``."""

import importlib.util
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modular_gpt import Chat, GPTModel
from modular_gpt.checkpoint.hf_folder import write_folder
from modular_gpt.data import build_tokenizer
from tests.data.chat_folders import SHAPES

NEEDED = ("openai", "fastapi", "uvicorn")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
CONVERSATION = [
    {"role": "user", "content": "abc ab"},
    {"role": "assistant", "content": "c"},
    {"role": "user", "content": "ab"},
]

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


@pytest.fixture
def served(small: Callable[..., GPTModel], tmp_path: Path) -> Iterator[tuple[Chat, str, int]]:
    """A conversation with a model, the folder served, and the port of the server."""
    from transformers.cli.serve import Serve

    SHAPES["llama3"](tmp_path / "published")
    tokenizer = build_tokenizer({"name": "hf", "path": str(tmp_path / "published")})
    llama = {"attention": {"name": "gqa", "n_kv_heads": 2}, "ffn": "swiglu", "norm": "rmsnorm", "bias": False}
    model = small(**llama, vocab_size=tokenizer.vocab_size, context_length=128)
    folder = tmp_path / "served"
    assert write_folder(folder, model, tokenizer, {}).model_type == "llama"
    server = Serve(force_model=str(folder), port=0, non_blocking=True, device="cpu")
    while not server.server.started:  # bounded by the timeout of the test
        time.sleep(0.05)
    port = server.server.servers[0].sockets[0].getsockname()[1]
    yield Chat(model, tokenizer, greedy=True, max_new_tokens=8), str(folder), port
    server.kill_server()


def test_a_server_answers_like_a_chat(served: tuple[Chat, str, int]) -> None:
    from openai import OpenAI

    chat, folder, port = served
    client = OpenAI(base_url=f"http://localhost:{port}/v1", api_key="none", timeout=500)
    for count in (1, 3):
        messages = CONVERSATION[:count]
        answer = client.chat.completions.create(model=folder, messages=messages, temperature=0, max_tokens=8)
        chat.reset()
        chat.messages = [*messages[:-1]]
        assert answer.usage.prompt_tokens == len(chat.begin(messages[-1]["content"]).prompt.ids)
        expected = chat.say(messages[-1]["content"])
        for token in chat.format.tokenizer.special_tokens:  # omitted by the server
            expected = expected.replace(token, "")
        assert answer.choices[0].message.content.strip() == expected.strip()
