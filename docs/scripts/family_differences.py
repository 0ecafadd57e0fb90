"""Measures how far published models are from what is read and written here, for the table in docs/pretrained.md.

    python docs/scripts/family_differences.py

It runs the tests that compare logits (tests/reference/test_families.py), and writes the largest difference of each
family, in standard deviations of the logits, into family_differences.json: of our model from the one of transformers
that it was read from, and of the model of transformers that loads what we write from the original one.
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
TESTS = ("test_logits_equal_those_of_transformers", "test_a_model_that_is_loaded_and_saved_again_is_unchanged", "test_recurrences_equal_transformers_over_several_chunks")
ROW = re.compile(r"\| (?P<kind>\S+), (?P<what>[^|]+?) \| \d+ \| (?P<apart>\S+) \|")


def measured(table: str) -> dict[str, dict[str, float]]:
    """By family, the largest difference when read and when written, from the table of tests/reference/conftest.py."""
    found: dict[str, dict[str, float]] = {}
    for row in ROW.finditer(table):
        way = "written" if row["what"] == "written" else "read"
        largest = found.setdefault(row["kind"], {})
        largest[way] = max(largest.get(way, 0.0), float(row["apart"]))
    return dict(sorted(found.items()))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PARITY_TABLE"] = str(Path(folder) / "table.md")
        chosen = ["-k", " or ".join(TESTS), str(ROOT / "tests" / "reference" / "test_families.py")]
        code = pytest.main(["-q", "-n", "0", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *chosen])
        if code == 0:
            lines = (
                f" {json.dumps(kind)}: {json.dumps(ways)}"
                for kind, ways in measured(Path(os.environ["PARITY_TABLE"]).read_text()).items()
            )
            FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    sys.exit(code)
