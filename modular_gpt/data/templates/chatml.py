"""ChatML, the format of Qwen and many others (https://github.com/openai/openai-python/blob/v0.28.1/chatml.md)."""

from modular_gpt.data.templates.turns import TurnTemplate

END = "<|im_end|>"


class ChatMLTemplate(TurnTemplate):
    """Turns between <|im_start|> and <|im_end|>, as ChatML models such as Qwen write them."""

    name = "chatml"
    headings = {role: f"<|im_start|>{role}\n" for role in ("system", "user", "assistant")}  # noqa: RUF012  a table
    marker = END
    closing = f"{END}\n"
