"""A limit on the computation of a template, counted in steps instead of seconds to be the same on all machines."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from modular_gpt.core.errors import DataError

MAX_STEPS = 2_000_000  # executed lines of a compiled template; published templates take some hundreds per turn
_TEMPLATE = "<template>"  # file name of compiled templates


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
    """Context manager: limit the steps of templates that are rendered in this thread to ``MAX_STEPS``.

    Raises:
        DataError: a template takes more steps.
    """
    before = sys.gettrace()
    sys.settrace(_Counter())
    try:
        yield
    finally:
        sys.settrace(before)
