"""The components, one file each. Importing this package registers all of them: it imports its own folders."""

from modular_gpt.core.registry import import_folder

import_folder(__name__, __path__)
