"""The cache directory of torch.compile, which is cleared if a library in it is incomplete.

A process that is killed while its compiler writes a library leaves an incomplete file under the final name. PyTorch
loads it anyway: until the file is removed, later runs fail or silently generate slower code.
"""

import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
ELF = struct.Struct("<4s5B7x2HI3QI6H")  # header of a 64-bit ELF file


class CompileCache:
    """The cache directory of torch.compile: ``root``, or the one in the environment variable.

    directory: the directory in use
    clearable: whether this package may clear it; false for a directory that the user chose
    """

    def __init__(self, root: Path) -> None:
        """Set the environment variable, and clear the directory if it is ``root`` and has a truncated library."""
        chosen = os.environ.get(VARIABLE)
        self.directory = Path(chosen) if chosen else root
        self.clearable = not chosen or Path(chosen) == root
        os.environ[VARIABLE] = str(self.directory)
        if self.clearable and any(is_truncated(library) for library in libraries(self.directory)):
            self.clear()

    def clear(self) -> bool:
        """Remove the content of the directory. Returns False if it is not clearable or cannot be moved."""
        if not self.clearable:
            return False
        try:  # moved before it is deleted, since another process may be writing into it
            trash = Path(tempfile.mkdtemp(prefix=f"{self.directory.name}-damaged-", dir=self.directory.parent))
            self.directory.replace(trash / "cache")
        except OSError:
            return False
        shutil.rmtree(trash, ignore_errors=True)
        return True


def libraries(directory: Path) -> Iterator[Path]:
    """The compiled libraries in a cache directory."""
    return directory.glob("*/*.so")


def is_truncated(library: Path) -> bool:
    """Whether a library is shorter than its ELF header and section table, or its header was never written.

    Returns False for other formats, such as those of other systems, and for a file that cannot be read.
    """
    try:
        with library.open("rb") as file:
            header = file.read(ELF.size)
        size = library.stat().st_size
    except OSError:
        return False
    if len(header) < ELF.size:
        return True
    magic, bits, byte_order, *_, table, _, _, _, _, entry_size, count, _ = ELF.unpack(header)
    if magic != b"\x7fELF":
        return not any(header)  # zeros: space that the linker has reserved and not written
    return bool(bits == 2 and byte_order == 1 and table + entry_size * count > size)  # the table ends the file
