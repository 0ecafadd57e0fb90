"""Neural network components, one file each. Importing this package registers all of them."""

from modular_gpt.core.registry import import_folder

import_folder(__name__, __path__)
