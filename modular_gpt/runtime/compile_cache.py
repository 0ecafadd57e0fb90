"""The directory in which torch.compile keeps the code it made, and what to do when that code is damaged.

A process that is killed while its compiler writes a library leaves part of a file under the final name. PyTorch takes
it for the whole: later runs then fail, or quietly make slower code, for as long as the file stays.
"""

import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
ELF = struct.Struct("<4s5B7x2HI3QI6H")  # header of a 64-bit library


class CompileCache:
    """The compiler's directory: ``root``, unless the environment names one, which is then the user's to clear."""

    def __init__(self, root: Path) -> None:
        """root: a directory of this package's own; it is cleared here if a library in it is cut off."""
        given = os.environ.get(VARIABLE)
        self.directory = Path(given) if given else root
        self.ours = not given or Path(given) == root
        os.environ[VARIABLE] = str(self.directory)
        if self.ours and any(is_cut_off(library) for library in libraries(self.directory)):
            self.clear()

    def clear(self) -> bool:
        """Empty the directory; False where it is the user's, or where nothing can be removed."""
        if not self.ours:
            return False
        try:  # moved aside first: another process may be writing into it
            aside = Path(tempfile.mkdtemp(prefix=f"{self.directory.name}-damaged-", dir=self.directory.parent))
            self.directory.replace(aside / "cache")
        except OSError:
            return False
        shutil.rmtree(aside, ignore_errors=True)
        return True


def libraries(directory: Path) -> Iterator[Path]:
    """The compiled libraries in a directory of the compiler."""
    return directory.glob("*/*.so")


def is_cut_off(library: Path) -> bool:
    """Whether a library ends before its section table, which stands last in the file. Other formats pass."""
    try:
        with library.open("rb") as file:
            head = file.read(ELF.size)
        length = library.stat().st_size
    except OSError:
        return False
    if len(head) < ELF.size:
        return True
    magic, bits, order, *_, sections, _, _, _, _, entry, count, _ = ELF.unpack(head)
    if magic != b"\x7fELF":
        return not any(head)  # reserved by the linker, and never written
    return bits == 2 and order == 1 and sections + entry * count > length
