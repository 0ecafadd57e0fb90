"""Records: examples of a task in files (JSON lines, JSON, CSV, Parquet), their formats, tokens and batches.

for record in read_records(record_files("train.jsonl")): print(record.prompt, record.answer)
"""

from modular_gpt.data.records.formats import FORMATS
from modular_gpt.data.records.read import Skipped, read_records, record_files
from modular_gpt.data.records.record import BadRecord, Record, Turn

__all__ = ["FORMATS", "BadRecord", "Record", "Skipped", "Turn", "read_records", "record_files"]
