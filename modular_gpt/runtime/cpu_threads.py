"""The wait policy of OpenMP threads.

It has an effect only if it is set before torch is imported, so this module must not import torch.
"""

import os
import sys

# Spinning threads occupy cores that other processes, or the thread they wait for, could use: with one busy loop on each
# of two cores, spinning made a training step 1.8 times slower (docs/training_loop.md has the measurement).
POLICY = {
    "GOMP_SPINCOUNT": "20000",  # GNU OpenMP, in torch's wheels for Linux: spin for some microseconds, then sleep
    "OMP_WAIT_POLICY": "PASSIVE",  # any other OpenMP
}
CHOSEN_BY_USER = (*POLICY, "KMP_BLOCKTIME")


def avoid_spinning() -> bool:
    """Make waiting OpenMP threads sleep instead of spin, in this process and its child processes.

    Returns False and changes nothing if torch is already imported or the environment sets a policy.
    """
    if "torch" in sys.modules or any(name in os.environ for name in CHOSEN_BY_USER):
        return False
    os.environ.update(POLICY)
    return True
