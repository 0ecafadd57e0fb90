"""Packing of records into rows of a fixed length: cutting long records, and choosing the records of each row."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

OPEN = 1024  # number of the latest rows, in which a record is placed if it fits; earlier rows are closed


@dataclass(frozen=True)
class Spans:
    """The span of tokens of each record that is used.

    starts, ends: (n,) index of its first token, and of the token after its last one
    cut_left, cut_right: (n,) whether tokens before the span (of the prompt) or after it (of the answer) are left out
    """

    starts: np.ndarray
    ends: np.ndarray
    cut_left: np.ndarray
    cut_right: np.ndarray

    @property
    def places(self) -> np.ndarray:
        """(n,) number of places that each record takes in a row: its tokens but the last, which is only a target."""
        places: np.ndarray = self.ends - self.starts - 1
        return places


def fit_spans(starts: np.ndarray, first: np.ndarray, ends: np.ndarray, block: int) -> Spans:
    """Cut the records that are longer than ``block`` places.

    starts, first, ends: (n,) index of the first token of each record, of that of its answer, and after its last token

    The beginning of the prompt is cut off. If the answer alone is too long, its end is cut off as well, and the last
    tokens of the prompt take at most half of the row.
    """
    long = ends - starts - 1 > block
    fits = ends - np.maximum(first, starts + 1) <= block
    kept = np.where(fits, block + 1 - (ends - first), np.minimum(first - starts, max(1, block // 2)))
    begins = np.where(long, first - kept, starts)
    return Spans(begins, np.minimum(ends, begins + block + 1), long & (begins > starts), long & ~fits)


def first_fit(places: np.ndarray, block: int) -> np.ndarray:
    """The row (n,) of each record by first-fit: the first open row with room for it, or else a new row.

    places: (n,) number of places that each record takes, at most ``block``

    Only the last ``OPEN`` rows are open, so that the time is proportional to the number of records.
    """
    rows = np.empty(len(places), dtype=np.int64)
    room = np.empty(2 * OPEN, dtype=np.int64)  # free places of the rows from ``base`` on
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

    spans: of all records; block: number of places of a row; row_of: (n,) the row of each record
    """

    spans: Spans
    block: int
    row_of: np.ndarray

    def __len__(self) -> int:
        return int(self.row_of.max(initial=-1)) + 1

    @cached_property
    def _by_row(self) -> tuple[np.ndarray, np.ndarray]:
        """The records (n,) ordered by row, and for each row its first index in that order, (rows + 1,)."""
        order = np.argsort(self.row_of, kind="stable")
        return order, np.searchsorted(self.row_of[order], np.arange(len(self) + 1))

    def records(self, row: int) -> np.ndarray:
        """The numbers of the records in a row, ascending."""
        order, begins = self._by_row
        return order[begins[row] : begins[row + 1]]

    @property
    def filled(self) -> float:
        """The fraction of all places that hold a token."""
        return float(self.spans.places.sum()) / (len(self) * self.block)


def arrange(spans: Spans, block: int, packing: bool) -> Rows:
    """Assign records to rows: several to a row with ``packing``, else one."""
    row_of = first_fit(spans.places, block) if packing else np.arange(len(spans.starts))
    return Rows(spans, block, row_of)
