"""Every interleaving of a tiny configuration, and the shortest counterexample.

`check_protocol` lets two or three vCPUs fault while one to three notifier clients unmap and free, one access
at a time, in every order that a memory model allows, and says whether any of them does harm. docs/protocol.md
pins the configuration down and lists what it decides.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvmpfn.fault_path import FaultPath
from kvmpfn.protocol.explore import Search
from kvmpfn.protocol.gup import Setting
from kvmpfn.protocol.mutants import CALLERS, MUTANTS, mutations
from kvmpfn.protocol.order import MEMORY_MODELS
from kvmpfn.protocol.verdict import Counterexample, Step, Verdict, replay, retrace
from kvmpfn.protocol.words import Words
from kvmpfn.units import InputError, nearest

__all__ = [
    "CALLERS", "MECHANISMS", "MEMORY_MODELS", "MUTANTS", "PROPERTIES", "Counterexample", "Step", "Verdict",
    "check_protocol", "replay",
]  # fmt: skip

PROPERTIES = {
    "stale_use": "No translation is used that the host's page tables no longer back.",
    "freed_use": "No freed frame is used or marked.",
    "refcount": "No count drops below zero, and each ends as the number of the host's mappings.",
    "observer": "No lock-free check judges fresh what had been replaced when the check began.",
    "deadlock": "Nobody waits for ever.",
    "completion": "Once the storms are over, every vCPU comes to its end, under weak fairness.",
}
"""What is proved or broken, each for itself."""

MECHANISMS = (
    "reference", "guarded", "seq_checked", "prechecks", "nonrefcounted", "dirty_marking", "accessed_marking",
    "accessed_on_retry", "zap_marks_page", "mmu_lock",
)  # fmt: skip
"""Those of `FaultPath` that a verdict depends on; paths that agree in them get the same verdict."""

NOT_OF = {
    "fault": ("observer",),
    "apic_access_page": ("observer",),
    "vcpu_map": ("stale_use", "observer"),
    "observer": ("stale_use", "freed_use"),
}
"""Properties that a caller is not held to: it judges nothing without a lock, or it uses nothing."""

LIMITS = {"vcpus": (1, 3), "pages": (1, 2), "invalidations": (1, 3)}


def check_protocol(
    fault_path: str | FaultPath,
    vcpus: int = 2,
    pages: int = 1,
    invalidations: int = 1,
    memory_model: str = "sc",
    caller: str = "fault",
    *,
    mutate: str | Iterable[str] = (),
    refcounted: bool | None = None,
    properties: Iterable[str] | None = None,
    reduced: bool = True,
    limit: int = 10_000_000,
) -> Verdict:
    """Explore every interleaving of a tiny configuration.

    Parameters
    ----------
    fault_path : str or FaultPath
        A preset's name, or mechanisms; those of `MECHANISMS` matter.
    vcpus : int
        1 to 3; vCPU `v` touches page ``v % pages``.
    pages : int
        1 or 2, with two frames each.
    invalidations : int
        1 to 3 notifier clients, which overlap in every way: of page 0, of the last page, of all pages.
    memory_model : {"sc", "tso", "weak"}
        See `kvmpfn.protocol.order`.
    caller : {"fault", "apic_access_page", "pfncache", "vcpu_map", "observer"}
        Who resolves a pfn; see `kvmpfn.protocol.callers`.
    mutate : str or iterable of str
        Names of `MUTANTS` to apply.
    refcounted : bool, optional
        Whether the pages have a reference count; yes, if not given, except with ``zero_count_get``.
    properties : iterable of str, optional
        Which of `PROPERTIES` to look at. If not given, all that the caller's line can break; but not
        ``stale_use`` with ``vcpu_map``, whose mapping is pinned, not guarded, and may outlive the host's.
    reduced : bool
        Whether to decide on a smaller graph with the same verdict (see `kvmpfn.protocol.explore`). A
        counterexample is the shortest of the whole graph in any case.
    limit : int
        States after which to give up.

    Returns
    -------
    Verdict
        Safe, by exhaustion; or unsafe, with the shortest counterexample.

    Raises
    ------
    InputError
        For a name or number that is none of these, or if `limit` is passed.

    Examples
    --------
    >>> check_protocol("v6.1", vcpus=1).safe
    True
    >>> check_protocol("v7_series", vcpus=1).violated
    'freed_use'
    """
    path = fault_path if isinstance(fault_path, FaultPath) else FaultPath(fault_path)
    for name, value in (("vcpus", vcpus), ("pages", pages), ("invalidations", invalidations)):
        low, high = LIMITS[name]
        if type(value) is not int or not low <= value <= high:
            near = min(max(value, low), high) if type(value) is int else low
            raise InputError(f"{value!r} is none of {low} to {high}; nearest is {near}", name)
    _known("memory_model", memory_model, MEMORY_MODELS)
    _known("caller", caller, CALLERS)
    names = mutations(mutate, caller)
    if "zero_count_get" in names and refcounted:
        raise InputError("'zero_count_get' is about pages without a count; nearest is False", "refcounted")
    counted = "zero_count_get" not in names if refcounted is None else refcounted
    looked_at = [name for name in PROPERTIES if name not in NOT_OF.get(caller, ())]
    if properties is not None:
        chosen = [properties] if isinstance(properties, str) else list(properties)
        for name in chosen:
            _known("properties", name, PROPERTIES)
        looked_at = [name for name in PROPERTIES if name in chosen]
    setting = Setting(
        path, Words(vcpus, pages, counted), invalidations, caller, memory_model, frozenset(names)
    )
    search = Search(setting, looked_at, reduced)
    found = search.run(limit)
    if found.violation and reduced:
        # The reduced graph has a counterexample if the whole one has, but not always the shortest.
        search = Search(setting, looked_at, reduced=False)
        found = search.run(limit)
    broken = found.violation.properties if found.violation else ()
    question = {
        "fault_path": path.name, "vcpus": vcpus, "pages": pages, "invalidations": invalidations,
        "memory_model": memory_model, "caller": caller, "mutate": list(names), "refcounted": counted,
    }  # fmt: skip
    return Verdict(
        safe=found.violation is None,
        states=found.states,
        transitions=found.transitions,
        violated=broken[0] if broken else None,
        broken=broken,
        counterexample=retrace(search, found) if found.violation else None,
        properties=tuple(looked_at),
        question=question,
        setting=setting,
    )


def _known(where: str, name: object, options: Iterable[str]) -> None:
    if name not in (known := list(options)):
        raise InputError(
            f"{name!r} is none of {', '.join(known)}; nearest is {nearest(name, known)!r}", where
        )
