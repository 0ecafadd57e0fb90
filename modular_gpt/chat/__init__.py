"""Conversations with a model: turns by a chat template, with one cache for the whole conversation."""

from modular_gpt.chat.conversation import Chat, Turn
from modular_gpt.chat.format import ChatFormat, open_template
from modular_gpt.chat.saved import read_conversation, write_conversation

__all__ = ["Chat", "ChatFormat", "Turn", "open_template", "read_conversation", "write_conversation"]
