"""Conversations with a model: a chat template renders the turns, and one KV cache serves the whole conversation."""

from modular_gpt.chat.conversation import Chat, Turn
from modular_gpt.chat.format import ChatFormat, open_template
from modular_gpt.chat.saved import read_conversation, write_conversation

__all__ = ["Chat", "ChatFormat", "Turn", "open_template", "read_conversation", "write_conversation"]
