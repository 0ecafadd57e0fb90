"""Types of what JSON, YAML and keyword arguments hold: settings and notes, by name, before they are checked."""

from collections.abc import Mapping
from typing import Any

PlainDict = dict[str, Any]
PlainMapping = Mapping[str, Any]
