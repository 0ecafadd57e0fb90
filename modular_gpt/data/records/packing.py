"""Records in rows of a fixed length: which tokens of each are kept, and which records share a row."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

OPEN = 1024  # rows with free places that a record is tried in; earlier ones are closed


@dataclass(frozen=True)
class Spans:
    """The tokens of each record that are used.

    starts, ends: (n,) index of the first token, and behind the last one
    cut_left, cut_right: (n,) whether tokens of the prompt before these, or of the answer behind these, are left out
    """

    starts: np.ndarray
    ends: np.ndarray
    cut_left: np.ndarray
    cut_right: np.ndarray

    @property
    def places(self) -> np.ndarray:
        """(n,) places of a row that each record takes: its tokens but the last, which is only a target."""
        places: np.ndarray = self.ends - self.starts - 1
        return places


def fit_spans(starts: np.ndarray, first: np.ndarray, ends: np.ndarray, block: int) -> Spans:
    """Cut the records that are longer than ``block`` places.

    starts, first, ends: (n,) index of the first token of each record, of its answer, and behind its last token

    A long record loses the beginning of its prompt. If even the answer alone is too long, it loses its end, behind the
    last tokens of the prompt, which take half of the row at the most.
    """
    long = ends - starts - 1 > block
    fits = ends - np.maximum(first, starts + 1) <= block
    kept = np.where(fits, block + 1 - (ends - first), np.minimum(first - starts, max(1, block // 2)))
    begins = np.where(long, first - kept, starts)
    return Spans(begins, np.minimum(ends, begins + block + 1), long & (begins > starts), long & ~fits)


def first_fit(places: np.ndarray, block: int) -> np.ndarray:
    """(n,) the row of each record: the first of the open rows that has room for it, or else a new one.

    places: (n,) that each record takes, at most ``block``
    Only the last ``OPEN`` rows are open, so that the time is proportional to the number of records.
    """
    rows = np.empty(len(places), dtype=np.int64)
    room = np.empty(2 * OPEN, dtype=np.int64)  # of the rows from ``base`` on
    base = count = 0
    for record, needed in enumerate(places.tolist()):
        begin = max(0, count - OPEN)
        row = begin + int(np.argmax(room[begin:count] >= needed)) if count > begin else count
        if row == count or room[row] < needed:
            if count == len(room):
                room[:OPEN] = room[OPEN:]
                base, count = base + OPEN, count - OPEN
            row, room[count] = count, block
            count += 1
        room[row] -= needed
        rows[record] = base + row
    return rows


@dataclass(frozen=True)
class Rows:
    """The records of each row.

    spans: of all records; block: places of a row; row_of: (n,) the row of each record
    """

    spans: Spans
    block: int
    row_of: np.ndarray

    def __len__(self) -> int:
        return int(self.row_of.max(initial=-1)) + 1

    @cached_property
    def _by_row(self) -> tuple[np.ndarray, np.ndarray]:
        """(n,) the records ordered by row, and (rows + 1,) where each row's begin in that order."""
        order = np.argsort(self.row_of, kind="stable")
        return order, np.searchsorted(self.row_of[order], np.arange(len(self) + 1))

    def records(self, row: int) -> np.ndarray:
        """The numbers of the records in a row, ascending."""
        order, begins = self._by_row
        return order[begins[row] : begins[row + 1]]

    @property
    def filled(self) -> float:
        """The share of all places that hold a token."""
        return float(self.spans.places.sum()) / (len(self) * self.block)


def arrange(spans: Spans, block: int, packing: bool) -> Rows:
    """The rows of records: several in a row with ``packing``, else one."""
    row_of = first_fit(spans.places, block) if packing else np.arange(len(spans.starts))
    return Rows(spans, block, row_of)
