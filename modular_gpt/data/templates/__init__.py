"""Chat templates: conversations to text and ids, one file each.

template = build_template("chatml", tokenizer)
text = template.render([{"role": "user", "content": "Hello"}], open_turn=True)
"""

from modular_gpt.data.templates.base import ChatTemplate, Message, Segment, SpecialTexts, check_messages
from modular_gpt.data.templates.build import build_template, definition_of, template_names, template_of
from modular_gpt.data.templates.encoding import (
    EncodedConversation,
    Stops,
    encode,
    encode_segments,
    encode_stretches,
    encode_with_answers,
    stops_of,
)
from modular_gpt.data.templates.jinja import JinjaTemplate

__all__ = [
    "ChatTemplate",
    "EncodedConversation",
    "JinjaTemplate",
    "Message",
    "Segment",
    "SpecialTexts",
    "Stops",
    "build_template",
    "check_messages",
    "definition_of",
    "encode",
    "encode_segments",
    "encode_stretches",
    "encode_with_answers",
    "stops_of",
    "template_names",
    "template_of",
]
