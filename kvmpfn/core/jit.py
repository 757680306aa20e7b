"""How the engine is compiled, decided once: as one program, cached in one place.

By itself numba compiles each function as if others might call it: each is made into machine code of its own,
with wrappers for Python, and where it is called it writes its result to memory and has its error status
looked at. Here a step is only lowered to LLVM's language; the kernel that calls it links all of them, and
all becomes one function before LLVM optimises. So what nobody asks for is gone, and is compiled once.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from llvmlite import binding, ir
from numba import types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering
from numba.extending import intrinsic, overload
from numba.np.arrayobj import make_array


class _Part(JITCodeLibrary):
    """The code of a step: neither optimised nor made executable, but by the kernel that links it."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True


class _Whole(JITCodeLibrary):
    """The code of a kernel with all steps that it calls."""

    def _optimize_final_module(self) -> None:
        for function in self._final_module.functions:
            if function.linkage == binding.Linkage.linkonce_odr and not function.is_declaration:
                function.linkage = binding.Linkage.internal
        super()._optimize_final_module()

    def _get_module_for_linking(self) -> Any:
        """Return what numba caches beside the machine code, to link kernels into others: here, names do."""
        names = [
            function.name
            for function in self._final_module.functions
            if function.linkage == binding.Linkage.external and not function.is_declaration
        ]
        return binding.parse_assembly("\n".join(f'define void @"{name}"() {{ ret void }}' for name in names))


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerToPart(NativeLowering):
    _name = "lower_to_part"

    def run_pass(self, state: Any) -> bool:
        state.library = _Part(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        lowered = state["cr"]
        # numba knows a function by its entry point, which has to be a built-in: one that is this step's
        # alone, and that refuses what a step is called with.
        stand_in = f"{lowered.fndesc.qualname} has no entry point: Python calls kernels".join
        state["cr"] = lowered._replace(cfunc=stand_in)
        state.targetctx.insert_user_function(stand_in, lowered.fndesc, [state.library])
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerToWhole(NativeLowering):
    _name = "lower_to_whole"

    def run_pass(self, state: Any) -> bool:
        state.library = _Whole(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        return bool(super().run_pass(state))


def _compiler(lowering: type) -> type:
    """Make numba's compiler with another pass that lowers."""

    class Compiler(CompilerBase):
        def define_pipelines(self) -> list[Any]:
            passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
            at = [one for one, _ in passes.passes].index(NativeLowering)
            passes.passes[at] = lowering, lowering._name  # type: ignore[attr-defined]
            passes.finalize()
            return [passes]

    return Compiler


def _cache_dir(function: Callable[..., Any]) -> str:
    """A folder named by all that a kernel's machine code depends on: the files of its folder and of this one.

    numba's own index looks at the entry function's file only, and would run stale code after a helper
    in another file changed.
    """
    digest = hashlib.sha256(f"{numba.__version__} {binding.get_host_cpu_name()}".encode())
    here = Path(__file__).parent
    for folder in dict.fromkeys((here, Path(function.__code__.co_filename).resolve().parent)):
        for source in sorted(folder.glob("*.py")):
            digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    base = os.environ.get("KVMPFN_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    root = Path(base) if base else Path.home() / ".cache"
    return str(root / "kvmpfn" / digest.hexdigest()[:16])


def _njit(lowering: type, **flags: bool) -> Any:
    """Return numba's decorator with the flags that all of the engine has."""
    njit: Any = numba.njit  # its stubs do not know all flags
    compiler = _compiler(lowering)
    return njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True, pipeline_class=compiler, **flags)


def jit(function: Callable[..., Any]) -> Any:
    """Compile a step of the engine, into the kernel that calls it; Python cannot call it."""
    return _njit(_LowerToPart, forceinline=True, no_cpython_wrapper=True)(function)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile an entry point, cached on disk where a folder can be written, else in this process.

    Parameters
    ----------
    function : callable
        What to compile; also a step, so that Python can call it.
    """
    function = getattr(function, "py_func", function)
    dispatcher = _njit(_LowerToWhole)(function)
    if hasattr(dispatcher, "enable_caching"):  # absent under NUMBA_DISABLE_JIT=1
        config: Any = numba.config
        before = config.CACHE_DIR
        # RuntimeError: no place can be written; numba says so while decorating, and we go on uncached.
        with contextlib.suppress(RuntimeError, OSError):
            config.CACHE_DIR = _cache_dir(function)
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

    return types.CPointer(words.dtype)(words), code


@overload(memory)
def _memory(words):  # numba wants the signature of the lambda
    return lambda words: _pointer(words)  # type: ignore[call-arg]


def prefetch(words: Any, at: int) -> None:
    """Ask the processor for a word that is needed some events later; changes nothing."""


@intrinsic
def _prefetch(typing_context: Any, words: Any, at: Any) -> Any:
    """Emit LLVM's prefetch, for a write, of a line that is kept."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [address.type], kind)
        builder.call(function, [address, number(1), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(words, at), code


@overload(prefetch)
def _ahead(words, at):
    if isinstance(words, types.CPointer):
        return lambda words, at: _prefetch(words, at)  # type: ignore[call-arg]
    return lambda words, at: None
