"""Who invalidates: notifier clients, each an arrival process with a span, a hold and an action."""

from kvmpfn.storms.arrivals import bursts, closed_loop, periodic, poisson
from kvmpfn.storms.daemons import dirty_log, khugepaged, ksm, mprotect, reclaim
from kvmpfn.storms.presets import (
    balloon,
    compaction,
    fork,
    free_page_reporting,
    madvise_loop,
    numa_balancing,
)
from kvmpfn.storms.storm import Action, Arrival, Storm

__all__ = [
    "Action",
    "Arrival",
    "Storm",
    "balloon",
    "bursts",
    "closed_loop",
    "compaction",
    "dirty_log",
    "fork",
    "free_page_reporting",
    "khugepaged",
    "ksm",
    "madvise_loop",
    "mprotect",
    "numa_balancing",
    "periodic",
    "poisson",
    "reclaim",
]
