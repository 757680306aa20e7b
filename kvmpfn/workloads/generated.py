"""A workload that a function of the user's own makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmpfn.units import InputError
from kvmpfn.workloads.replay import FIELDS, LIMITS, Replay

__all__ = ["generated"]

WRITES = 1


def generated(function: Callable[[int, int, int], Any], *, vcpus: int, pages: int, **fields: Any) -> Replay:
    """Make a replay of what a function returns, or yields, for each vCPU.

    Parameters
    ----------
    function : callable
        Called before the run as ``function(vcpu, vcpus, pages)``, once for each vCPU of a VM. It gives that
        vCPU's accesses: pages, or rows of a page, a kind (0 read, 1 write, 2 execute) and a computing time
        before the access in ps, of which the last may be left out; as an array of one or two dimensions, as
        anything that can be iterated over, or as a tuple of one array a column. Plain Python and compiled
        (``numba.njit``) functions will do. Accesses without a kind write.
    vcpus : int
        vCPUs of a VM, as in the scenario.
    pages : int
        4K pages that the function may touch: those of the scenario's memory, or fewer.
    **fields
        The other fields of `Replay`: `think` and `think_dist`.

    Returns
    -------
    Replay
        The accesses, which scenario files then hold one by one.

    Raises
    ------
    InputError
        What the function gave is no list of accesses, or one lies outside of the pages.
    """
    for name, value in (("vcpus", vcpus), ("pages", pages)):
        if type(value) is not int or value < 1:
            raise InputError(f"{value!r} is not a whole number of at least 1; nearest is 1", name)
    rows = []
    for vcpu in range(vcpus):
        try:
            accesses = _columns(function(vcpu, vcpus, pages))
            _check(accesses, pages)
        except InputError as error:
            raise error.within(
                f"{getattr(function, '__name__', 'function')}({vcpu}, {vcpus}, {pages})"
            ) from None
        rows.append(tuple(zip(*(column.tolist() for column in accesses), strict=True)))
    return Replay(vcpus=tuple(rows), **fields)


def _columns(given: Any) -> list[NDArray[np.int64]]:
    """Turn accesses of any form into three columns of equal length."""
    shapes = "pages, or rows of [page, kind, think_ps]; nearest is [0]"
    try:
        by_column = isinstance(given, tuple) and any(isinstance(one, np.ndarray) for one in given)
        table = np.column_stack(given) if by_column else np.asarray(given if _sized(given) else list(given))
    except (TypeError, ValueError):
        raise InputError(f"gave {type(given).__name__} that is not {shapes}") from None
    if table.size == 0:
        return [np.empty(0, dtype=np.int64)] * len(FIELDS)
    if table.ndim not in (1, 2) or (table.ndim == 2 and not 1 <= table.shape[1] <= len(FIELDS)):
        raise InputError(f"gave an array of shape {table.shape}, not {shapes}")
    if table.dtype.kind not in "iu":
        raise InputError(f"gave {table.dtype} values; nearest are whole numbers, as of astype(int)")
    columns = list(table.reshape(len(table), -1).T)
    for value in (WRITES, 0)[len(columns) - 1 :]:
        columns.append(np.full(len(table), value, dtype=np.int64))
    return columns


def _sized(given: Any) -> bool:
    """Whether numpy takes it as it is; a generator it would take for a single value."""
    return isinstance(given, np.ndarray | list | tuple)


def _check(columns: list[NDArray[np.int64]], pages: int) -> None:
    """Hold each value to its range."""
    for name, column, limit in zip(("page", *FIELDS[1:]), columns, (pages, *LIMITS[1:]), strict=True):
        wrong = np.flatnonzero((column < 0) | (column >= limit))
        if len(wrong):
            first, value = int(wrong[0]), int(column[wrong[0]])
            near = min(max(value, 0), limit - 1)
            raise InputError(
                f"access {first}: {name} {value} is not from 0 to {limit - 1}; nearest is {near}"
            )
