"""Measure the differences of logits for the table of families in docs/pretrained.md.

    python docs/scripts/family_differences.py

It runs the tests of tests/reference/test_families.py that compare logits, and writes two numbers for each family into
family_differences.json, in standard deviations of the logits:

    read     the largest difference between the model of transformers and the model that was read from its files
    written  the largest difference between the original model of transformers and the one that was written here and
             loaded by transformers again
"""

import json
import os
import re
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).with_name("family_differences.json")
TESTS = (
    "test_logits_equal_those_of_transformers",
    "test_a_model_that_is_loaded_and_saved_again_is_unchanged",
    "test_recurrences_equal_transformers_over_several_chunks",
)
ROW = re.compile(r"\| (?P<model_type>\S+), (?P<comparison>[^|]+?) \| \d+ \| (?P<difference>\S+) \|")


def measured(table: str) -> dict[str, dict[str, float]]:
    """Return the largest differences by family and direction, from the table of tests/reference/conftest.py."""
    found: dict[str, dict[str, float]] = {}
    for row in ROW.finditer(table):
        direction = "written" if row["comparison"] == "written" else "read"
        largest = found.setdefault(row["model_type"], {})
        largest[direction] = max(largest.get(direction, 0.0), float(row["difference"]))
    return dict(sorted(found.items()))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PARITY_TABLE"] = str(Path(folder) / "table.md")
        chosen = ["-k", " or ".join(TESTS), str(ROOT / "tests" / "reference" / "test_families.py")]
        code = pytest.main(["-q", "-n", "0", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *chosen])
        if code == 0:
            lines = (
                f" {json.dumps(model_type)}: {json.dumps(largest)}"
                for model_type, largest in measured(Path(os.environ["PARITY_TABLE"]).read_text()).items()
            )
            FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    sys.exit(code)
