"""Neural network components, one file each; importing this package imports its folders and registers them all."""

from modular_gpt.core.registry import import_folder

import_folder(__name__, __path__)
