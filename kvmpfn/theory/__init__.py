"""Closed forms that the simulation must meet: retries, the contended line, mmu_lock, table bytes.

Nothing here was fitted: each function is derived in its docstring, says where it holds, and refuses input
outside of that with an `InputError`. Times are in any one unit, rates in one per that unit.
"""

from kvmpfn.theory.attempt import Attempt, attempt, invalidations, transfer
from kvmpfn.theory.queues import Queue, asymptotic_bounds, mean_value_analysis, repairman
from kvmpfn.theory.retries import Invalidations, expected_tries, retry_cells, retry_probability
from kvmpfn.theory.rwlock import Blocking, reader_delay, writer_wait
from kvmpfn.theory.tables import expected_tables, table_bytes

__all__ = [
    "Attempt",
    "Blocking",
    "Invalidations",
    "Queue",
    "asymptotic_bounds",
    "attempt",
    "expected_tables",
    "expected_tries",
    "invalidations",
    "mean_value_analysis",
    "reader_delay",
    "repairman",
    "retry_cells",
    "retry_probability",
    "table_bytes",
    "transfer",
    "writer_wait",
]
