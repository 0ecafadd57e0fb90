"""A limit on how much a template computes, counted in steps and not in seconds, so that it is the same everywhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from modular_gpt.core.errors import DataError

MAX_STEPS = 2_000_000  # lines of the code that Jinja makes of a template; a turn of a published one takes some hundreds
_TEMPLATE = "<template>"  # file name of that code


class _Counter:
    """A trace function (``sys.settrace``) that counts the lines executed in templates."""

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> "_Counter | None":
        if frame.f_code.co_filename != _TEMPLATE:
            return None  # this frame is not traced
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise DataError(
                f"the chat template takes more than {MAX_STEPS:,} steps, as no published one does: do not use it"
            )
        return self


@contextmanager
def limited_steps() -> Iterator[None]:
    """Context manager: templates that are rendered inside, in this thread, take a limited number of steps.

    Raises:
        DataError: a template takes more.
    """
    before = sys.gettrace()
    sys.settrace(_Counter())
    try:
        yield
    finally:
        sys.settrace(before)
