"""One decorator alias, so that compile flags and the cache's place are decided once."""

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from llvmlite import binding
from numba import types
from numba.extending import intrinsic, overload
from numba.np.arrayobj import make_array


def _cache_dir() -> str:
    """A folder named by all that the machine code depends on.

    numba's own index looks at the entry function's file only, and would run stale code after a helper
    in another file changed.
    """
    digest = hashlib.sha256(f"{numba.__version__} {binding.get_host_cpu_name()}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    base = os.environ.get("KVMPFN_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    root = Path(base) if base else Path.home() / ".cache"
    return str(root / "kvmpfn" / digest.hexdigest()[:16])


def jit(function: Callable[..., Any]) -> Any:
    """Compile a step of the engine; compiled into, and cached with, the kernel that calls it."""
    return numba.njit(nogil=True, fastmath=False, error_model="numpy")(function)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile an entry point, cached on disk where a folder can be written, else in this process."""
    dispatcher = numba.njit(nogil=True, fastmath=False, error_model="numpy")(function)
    if hasattr(dispatcher, "enable_caching"):  # absent under NUMBA_DISABLE_JIT=1
        config: Any = numba.config
        before = config.CACHE_DIR
        # RuntimeError: no place can be written; numba says so while decorating, and we go on uncached.
        with contextlib.suppress(RuntimeError, OSError):
            config.CACHE_DIR = _cache_dir()
            dispatcher.enable_caching()
        config.CACHE_DIR = before
    return dispatcher


def memory(words: Any) -> Any:
    """Return the engine's array as a bare pointer; uncompiled, as it is.

    An array costs each call that takes it a count of its references, and each index a look whether it is
    negative: together more than a third of the time, and of the time to compile. The caller keeps the array.
    """
    return words


@intrinsic
def _pointer(typing_context: Any, words: Any) -> Any:
    """Take the address of an array's first element."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return make_array(signature.args[0])(context, builder, arguments[0]).data

    return types.CPointer(types.int64)(words), code


@overload(memory)
def _memory(words):  # numba wants the signature of the lambda
    return lambda words: _pointer(words)  # type: ignore[call-arg]
