"""How OpenMP's threads wait for work.

The policy counts only if it is set before torch is loaded, so this module imports nothing heavy.
"""

import os
import sys

# Spinning threads hold a core that another process, or the thread they wait for, could use: with one busy loop on each
# of two cores, spinning made a step of training 1.8 times slower (docs/training_loop.md has the measurement).
POLICY = {
    "GOMP_SPINCOUNT": "20000",  # GNU OpenMP, in torch's wheels for Linux: spin for some microseconds, then sleep
    "OMP_WAIT_POLICY": "PASSIVE",  # any other OpenMP
}
CHOSEN_BY_USER = (*POLICY, "KMP_BLOCKTIME")


def avoid_spinning() -> bool:
    """Let threads that wait for work sleep instead of spinning, in this process and those it starts.

    Changes nothing, and returns False, if torch is loaded already or if the environment chooses a policy.
    """
    if "torch" in sys.modules or any(name in os.environ for name in CHOSEN_BY_USER):
        return False
    os.environ.update(POLICY)
    return True
