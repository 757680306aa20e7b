"""The ways to write the protocol that a reviewer would ask about, each a row to be decided."""

from __future__ import annotations

from typing import NamedTuple

from kvmpfn.fault_path import PRESETS, FaultPath

__all__ = ["ROWS", "Row"]


class Row(NamedTuple):
    """One way.

    Attributes
    ----------
    name : str
        What is right or wrong with it.
    fault_path : FaultPath
        Its mechanisms.
    caller : str
        Who resolves a pfn.
    mutate : str
        What it does that is no mechanism.
    """

    name: str
    fault_path: FaultPath
    caller: str = "fault"
    mutate: str = ""


_V6_1, _NO_REF = PRESETS["v6.1"], PRESETS["no_ref"]

ROWS: tuple[Row, ...] = (
    *(Row(f"preset {name}", path) for name, path in PRESETS.items()),
    Row("v7_series, not marked on RETRY", FaultPath("v7_series", accessed_on_retry=False)),
    Row("v11_series, not marked on RETRY", FaultPath("v11_series", accessed_on_retry=False)),
    Row("v6.13, marked after unlock", FaultPath("v6.13", accessed_marking="after_unlock")),
    Row("no guard and no reference", _NO_REF.replace(guarded=False)),
    Row("no guard, reference over the install", _V6_1.replace(guarded=False)),
    Row("guard but no check", _V6_1.replace(seq_checked=False)),
    Row("guard but no check, no reference", _NO_REF.replace(seq_checked=False)),
    Row("check before the lock only", _V6_1, mutate="check_before_lock"),
    Row("range alone", _V6_1, mutate="range_alone"),
    Row("sequence alone", _V6_1, mutate="seq_alone"),
    Row("snapshot after GUP", _V6_1, mutate="snapshot_after_gup"),
    Row("snapshot's smp_rmb removed", _V6_1, mutate="no_smp_rmb"),
    Row("snapshot's smp_rmb removed, no reference", _NO_REF, mutate="no_smp_rmb"),
    Row("get that orders nothing", _V6_1, mutate="relaxed_get"),
    Row("end's smp_wmb removed", _V6_1, mutate="no_smp_wmb"),
    Row("end's stores swapped", _V6_1, mutate="end_stores_swapped"),
    Row("pre-checks removed", FaultPath("v6.8", prechecks=False)),
    Row("pre-checks torn", FaultPath("v6.8"), mutate="prechecks_torn"),
    Row("mmu_lock for write", _V6_1.replace(mmu_lock="exclusive")),
    Row("zap without a flush", _V6_1, mutate="no_flush"),
    Row("host unmaps before start", _V6_1, mutate="host_unmaps_first"),
    Row("host frees after end", _V6_1, mutate="host_frees_late"),
    Row("host frees after end, no reference", _NO_REF, mutate="host_frees_late"),
    Row("zero-count get and put", _V6_1, mutate="zero_count_get"),
    Row("RETRY keeps its reference", _V6_1, mutate="leak_on_retry"),
    Row("reference put twice", _V6_1, mutate="double_put"),
    Row("end leaves in_progress", _V6_1, mutate="end_forgets_decrement"),
    Row("end leaves mmu_lock", _V6_1, mutate="end_forgets_unlock"),
    Row("APIC page", _V6_1, "apic_access_page"),
    Row("APIC page, no reference", _NO_REF, "apic_access_page"),
    Row("APIC page, no check", _V6_1.replace(seq_checked=False), "apic_access_page"),
    Row("APIC page, check before the lock only", _V6_1, "apic_access_page", "check_before_lock"),
    Row("APIC page, range alone", _V6_1, "apic_access_page", "range_alone"),
    Row("APIC page, not asked to reload", _V6_1.replace(guarded=False), "apic_access_page"),
    Row("pfn cache", _V6_1, "pfncache"),
    Row("pfn cache, no reference", _NO_REF, "pfncache"),
    Row("pfn cache, no check", _V6_1.replace(seq_checked=False), "pfncache"),
    Row("pfn cache, seq + 1 after the active count drops", _V6_1, "pfncache", "seq_after_active"),
    Row("pfn cache, no active count", _V6_1, "pfncache", "no_active_check"),
    Row("pfn cache, active count alone", _V6_1, "pfncache", "no_seq_check"),
    Row("pfn cache, in_progress for the active count", _V6_1, "pfncache", "active_is_in_progress"),
    Row("pfn cache, check's smp_rmb removed", _V6_1, "pfncache", "check_without_smp_rmb"),
    Row("kvm_vcpu_map", _V6_1, "vcpu_map"),
    Row("kvm_vcpu_map, no reference", _NO_REF, "vcpu_map"),
    Row("kvm_vcpu_map, reference put at once", _V6_1, "vcpu_map", "early_unpin"),
    Row("kvm_vcpu_map, zero-count get and put", _V6_1, "vcpu_map", "zero_count_get"),
    Row("lock-free observer", _V6_1, "observer"),
    Row("lock-free observer, check's smp_rmb removed", _V6_1, "observer", "check_without_smp_rmb"),
    Row("lock-free observer, end's smp_wmb removed", _V6_1, "observer", "no_smp_wmb"),
    Row("lock-free observer, end's stores swapped", _V6_1, "observer", "end_stores_swapped"),
    Row("lock-free observer that reads the range", _V6_1, "observer", "observer_reads_range"),
)
"""All rows, the presets first."""
