"""The directory of torch.compile's generated code, and its repair when a library in it is damaged.

A process that is killed while its compiler writes a library leaves an incomplete file under the final name. PyTorch
loads it anyway: later runs then fail, or silently generate slower code, as long as the file stays.
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
    """The compiler's directory: ``root``, unless the environment names one, which is the user's and never cleared."""

    def __init__(self, root: Path) -> None:
        """root: a directory of this package's own; it is cleared if a library in it is truncated."""
        named = os.environ.get(VARIABLE)
        self.directory = Path(named) if named else root
        self.owned = not named or Path(named) == root
        os.environ[VARIABLE] = str(self.directory)
        if self.owned and any(is_cut_off(library) for library in libraries(self.directory)):
            self.clear()

    def clear(self) -> bool:
        """Empty the directory. Returns False if it is the user's, or if nothing can be removed."""
        if not self.owned:
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
    """Whether an ELF library ends before its section table, which is last in the file. False for other formats."""
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
    return bool(bits == 2 and order == 1 and sections + entry * count > length)
