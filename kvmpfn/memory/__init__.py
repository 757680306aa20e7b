"""The byte ledger: what each way of backing and mapping a guest costs in memory, structure by structure.

Every row is an exact integer with the formula it came from and where its factors were read. The table sizes
are x86-64's; the layouts are those of 64-bit v6.1 and v6.12, where the header of a table has the same 184
bytes. Objects are counted as large as they are, without the rounding of the slab caches they lie in.
"""

from kvmpfn.memory.alternatives import Alternative, reference_alternatives
from kvmpfn.memory.count import memory_ledger, scenario_ledger
from kvmpfn.memory.ledger import Entry, Ledger
from kvmpfn.memory.structures import HOST_LEVEL

__all__ = [
    "HOST_LEVEL",
    "Alternative",
    "Entry",
    "Ledger",
    "memory_ledger",
    "reference_alternatives",
    "scenario_ledger",
]
