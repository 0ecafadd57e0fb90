"""Training in one process."""

from modular_gpt.distributed.strategy import Parallel


class OneProcess(Parallel, name="none"):
    """One process on one device."""

    single_process, multi_process = True, False
