"""Wrong and harmless ways to write the protocol that are no mechanism of `kvmpfn.fault_path.FaultPath`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from kvmpfn.units import InputError, nearest

__all__ = ["CALLERS", "MUTANTS", "Mutant", "mutations"]

CALLERS = ("fault", "apic_access_page", "pfncache", "vcpu_map", "observer")
"""Who resolves a pfn: `kvmpfn.protocol.callers`."""


class Mutant(NamedTuple):
    """What a mutant changes, and in whose line.

    Attributes
    ----------
    text : str
        What it does.
    callers : tuple of str
        Whom it concerns; it is refused with others, where it would change nothing.
    """

    text: str
    callers: tuple[str, ...]


_SEQUENCE = ("fault", "apic_access_page", "pfncache", "observer")
_LOCKED = ("fault", "apic_access_page")

MUTANTS = {
    "snapshot_after_gup": Mutant("The sequence is read after the host's page tables, not before.", _SEQUENCE),
    "no_smp_rmb": Mutant("No read barrier between the snapshot and the host's page tables.", _SEQUENCE),
    "check_before_lock": Mutant("Staleness is checked before mmu_lock is taken, and not under it.", _LOCKED),
    "range_alone": Mutant(
        "The check looks at invalidations in progress, and not at the sequence.", (*_LOCKED, "observer")
    ),
    "seq_alone": Mutant(
        "The check looks at the sequence, and not at invalidations in progress.", (*_LOCKED, "observer")
    ),
    "no_smp_wmb": Mutant("No write barrier between the end's sequence + 1 and in_progress - 1.", _SEQUENCE),
    "end_stores_swapped": Mutant(
        "The end counts in_progress down before it counts the sequence up.", _SEQUENCE
    ),
    "prechecks_torn": Mutant("Pre-checks that read their words in the opposite order.", ("fault",)),
    "relaxed_get": Mutant("The get of GUP orders nothing.", CALLERS),
    "zero_count_get": Mutant(
        "The get does not ask whether the count is zero, of pages whose count is.", ("fault", "vcpu_map")
    ),
    "no_flush": Mutant("The start zaps without flushing the TLBs.", ("fault",)),
    "host_unmaps_first": Mutant("The host unmaps and frees before it calls the notifier's start.", _SEQUENCE),
    "host_frees_late": Mutant("The host frees after the end, not before it (as madvise does).", CALLERS),
    "leak_on_retry": Mutant("A fault that ends in RETRY keeps its reference.", ("fault",)),
    "double_put": Mutant("The reference is put twice.", CALLERS),
    "end_forgets_decrement": Mutant("The end leaves in_progress as it is.", _SEQUENCE),
    "end_forgets_unlock": Mutant("The end does not unlock mmu_lock.", _LOCKED),
    "seq_after_active": Mutant("The end counts the sequence up after the active count down.", ("pfncache",)),
    "no_active_check": Mutant("The cache looks at the sequence, and not at the active count.", ("pfncache",)),
    "no_seq_check": Mutant("The cache looks at the active count, and not at the sequence.", ("pfncache",)),
    "active_is_in_progress": Mutant(
        "The cache looks at in_progress, not at the active count.", ("pfncache",)
    ),
    "check_without_smp_rmb": Mutant(
        "No read barrier between the two reads of a lock-free check.", ("pfncache", "observer")
    ),
    "observer_reads_range": Mutant("The lock-free check looks at the range too.", ("observer",)),
    "early_unpin": Mutant(
        "The reference is put at once, though no notifier guards the mapping.", ("vcpu_map",)
    ),
}
"""Mutants by name."""


def mutations(names: str | Iterable[str], caller: str) -> tuple[str, ...]:
    """Return mutants in the order of `MUTANTS`, each known and of effect.

    Parameters
    ----------
    names : str or iterable of str
        Names of `MUTANTS`; in a string, with commas between them.
    caller : str
        Whose line they change.

    Raises
    ------
    InputError
        For an unknown name, or one that would change nothing.
    """
    parts = names.split(",") if isinstance(names, str) else list(names)
    chosen = [name.strip() for name in parts if name.strip()]
    for name in chosen:
        if name not in MUTANTS:
            raise InputError(
                f"no mutant {name!r}; nearest is {nearest(name, MUTANTS)!r} of {', '.join(MUTANTS)}", "mutate"
            )
        if caller not in (concerned := MUTANTS[name].callers):
            raise InputError(
                f"{name!r} changes nothing of the caller {caller!r}; nearest is {concerned[0]!r}", "mutate"
            )
    return tuple(name for name in MUTANTS if name in chosen)
