"""The components, one file each. Importing this package registers all of them: it imports its own folders."""

import importlib
import pkgutil

for _module in pkgutil.walk_packages(__path__, __name__ + "."):
    importlib.import_module(_module.name)
