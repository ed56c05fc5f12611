"""What the C library does with memory that work has freed, and errors that report a lack of it."""

import ctypes
import gc
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Names of glibc's `mallopt`, from malloc.h."""
LARGEST = 2**31 - 1


def keep_freed_memory() -> None:
    """Keeps freed memory for what comes next, in processes with glibc, unless the environment has settings of its own.

    Each micro-batch frees what the next one needs again. Left alone, glibc hands it back to the system every time, and
    the new pages that it gets are cleared first.
    """
    libc = ctypes.CDLL(None)
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get(
        "GLIBC_TUNABLES", ""
    )
    if chosen or not hasattr(libc, "mallopt"):
        return
    for name in (MMAP_THRESHOLD, TRIM_THRESHOLD):
        libc.mallopt(name, LARGEST)


def return_freed_memory() -> None:
    """Returns freed memory, which `keep_freed_memory` retains, to the operating system."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def out_of_memory(error: Exception) -> bool:
    """Whether memory of the CPU or of a GPU was used up."""
    named = type(error).__name__ == "OutOfMemoryError"  # torch's class, without importing torch
    # The second: no CUDA context could be created; the third: safetensors cannot map a file.
    signs = ("DefaultCPUAllocator", "CUDA error: out of memory", "Cannot allocate memory")
    in_message = isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    return isinstance(error, MemoryError) or named or in_message
