"""Types of unchecked values by name, as read from JSON, YAML and keyword arguments."""

from collections.abc import Mapping
from typing import Any

PlainDict = dict[str, Any]
PlainMapping = Mapping[str, Any]
