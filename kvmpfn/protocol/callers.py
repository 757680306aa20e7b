"""Who resolves a pfn and goes by it: the access lines of a vCPU thread, one a caller."""

from __future__ import annotations

from typing import Any

from kvmpfn.protocol.gup import Setting, check, get_user_page, put, snapshot, touch
from kvmpfn.protocol.order import Access, Memory, Registers, barrier, calc, full, load, rmw, store
from kvmpfn.protocol.words import WRITER, Violation

__all__ = ["CALLERS"]


def fault(setting: Setting, vcpu: int) -> list[Access]:
    """kvm_tdp_page_fault, from the snapshot to the release of the page (kernel-facts 1.1 and 1.3)."""
    path, words, mutants = setting.path, setting.words, setting.mutants
    page = words.page_of(vcpu)
    spte = f"spte[{page}]"
    torn = "prechecks_torn" in mutants
    prechecks = path.prechecks or torn

    def resolved(r: Registers) -> bool:
        return r["pfn"] > 0

    line: list[Access] = []
    late_snapshot = "snapshot_after_gup" in mutants
    if not late_snapshot:
        line += snapshot(setting)
    if prechecks and not late_snapshot:
        line += check("stale1", page, (), lambda r: True, torn=torn)
        line += get_user_page(setting, vcpu, ("stale1",), lambda r: not r["stale1"])
    else:
        line += get_user_page(setting, vcpu)
    if path.reference == "early_put":
        line += put(setting)
    if late_snapshot:
        line += snapshot(setting)
    early = prechecks or "check_before_lock" in mutants
    if early:
        fence = "check_before_lock" in mutants
        line += check("stale2", page, ("pfn",), resolved, torn=torn, fence=fence)

        def proceeds(r: Registers) -> bool:
            return r["pfn"] > 0 and not r["stale2"]

        line.append(calc("go", ("pfn", "stale2"), proceeds))
    else:
        line.append(calc("go", ("pfn",), resolved))

    line += lock(setting)
    under_lock = path.seq_checked and "check_before_lock" not in mutants
    if under_lock:
        ranges, sequence = "seq_alone" not in mutants, "range_alone" not in mutants
        line += check(
            "stale", page, ("go",), lambda r: r["go"] != 0, ranges=ranges, sequence=sequence, locked=True
        )  # fmt: skip
    else:
        line.append(calc("stale", (), lambda r: 0))
    fresh = ("go", "stale")

    def compare_exchange(memory: Memory, r: Registers) -> Violation | None:
        at = words.at(spte)
        if memory[at] != r["old"]:
            return None
        if r["old"]:
            return Violation(
                ("stale_use",), f"the present leaf of page {page} changes its frame (the kernel BUGs)"
            )
        memory[at], r["mapped"] = r["pfn"], 1
        return None

    line += [
        load(spte, "old", "walk: read the leaf SPTE", given=fresh, when=lambda r: r["go"] and not r["stale"]),
        full(
            compare_exchange, "cmpxchg the leaf SPTE", word=spte, out=("mapped",), uses=("old", "pfn"),
            given=(*fresh, "old", "pfn"), when=lambda r: r["go"] and not r["stale"] and r["old"] != r["pfn"],
        ),
        calc(
            "retry", ("pfn", "old", "mapped", *fresh),
            lambda r: r["pfn"] > 0
            and not (r["go"] and not r["stale"] and (r["mapped"] or r["old"] == r["pfn"])),
        ),
    ]  # fmt: skip

    def accessed(given: tuple[str, ...] = ()) -> list[Access]:
        return touch(
            setting, "mark accessed", ("retry", *given),
            lambda r: (path.accessed_on_retry or not r["retry"]) and all(r[name] for name in given),
        )  # fmt: skip

    def release() -> list[Access]:
        if "leak_on_retry" in mutants:
            return put(setting, ("retry",), lambda r: not r["retry"])
        return put(setting)

    if path.dirty_marking == "at_map":
        line += touch(setting, "mark dirty", ("retry",), lambda r: not r["retry"])
    if path.accessed_marking == "before_unlock":
        line += accessed(("go",))
    if path.accessed_marking == "locked_release":
        line += accessed()
    if path.reference == "locked_put":
        line += release()
    line += unlock(setting)
    if path.accessed_marking == "after_unlock":
        line += accessed()
    if path.reference == "held":
        line += release()
    return line


def apic_access_page(setting: Setting, vcpu: int) -> list[Access]:
    """vmx_set_apic_access_page_addr: the pfn goes to the VMCS, and no reference is kept.

    The notifier does not zap it but asks each vCPU, under mmu_lock, to come here again.
    """
    words, page = setting.words, setting.words.page_of(vcpu)
    late = "snapshot_after_gup" in setting.mutants
    line = [] if late else snapshot(setting)
    line += get_user_page(setting, vcpu)
    if setting.path.reference == "early_put":
        line += put(setting)
    line += snapshot(setting) if late else []
    before = "check_before_lock" in setting.mutants
    line.append(calc("go", ("pfn",), lambda r: r["pfn"] > 0))
    checks: list[Access] = []
    if setting.path.seq_checked:
        ranges, sequence = "seq_alone" not in setting.mutants, "range_alone" not in setting.mutants
        checks = check(
            "stale", page, ("go",), lambda r: r["go"] != 0, ranges=ranges, sequence=sequence, fence=before,
            locked=not before,
        )  # fmt: skip
    else:
        checks = [calc("stale", (), lambda r: 0)]
    line += [*checks, *lock(setting)] if before else [*lock(setting), *checks]

    def ask_again(memory: Memory, r: Registers) -> None:
        memory[words.at(f"request[{vcpu}]")] = 1

    line += [
        store(
            f"tlb[{vcpu}]", lambda r: r["pfn"], "write the VMCS's APIC-access address", uses=("pfn",),
            given=("go", "stale"), when=lambda r: r["go"] and not r["stale"],
        ),
        rmw(
            ask_again, "stale: request the reload again", word=f"request[{vcpu}]", given=("go", "stale"),
            when=lambda r: r["go"] and r["stale"],
        ),
    ]  # fmt: skip
    line += put(setting) if setting.path.reference == "locked_put" else []
    line += unlock(setting)
    return line + (put(setting) if setting.path.reference == "held" else [])


def pfncache(setting: Setting, vcpu: int) -> list[Access]:
    """hva_to_pfn_retry of a gfn_to_pfn_cache: the check is made without mmu_lock, by the active count.

    The cache's own lock is held from the check to the end, and the notifier's start takes it to invalidate
    the cache, before it takes mmu_lock. A stale try gives the lock up, where the kernel keeps it and goes on.
    """
    words, mutants = setting.words, setting.mutants
    guard = f"lock[{vcpu}]"
    late = "snapshot_after_gup" in mutants
    line = [] if late else snapshot(setting)
    line += get_user_page(setting, vcpu)
    line += put(setting) if setting.path.reference == "early_put" else []
    line += snapshot(setting) if late else []

    def take(memory: Memory, r: Registers) -> None:
        memory[words.at(guard)] = 1

    line += [
        calc("go", ("pfn",), lambda r: r["pfn"] > 0),
        rmw(
            take, "lock the cache", word=guard, given=("go",), when=lambda r: r["go"],
            ready=lambda memory: memory[words.at(guard)] == 0, acquire=True,
        ),
    ]  # fmt: skip
    active = (
        "mmu_invalidate_in_progress" if "active_is_in_progress" in mutants else "mn_active_invalidate_count"
    )
    pte = words.at(f"pte[{words.page_of(vcpu)}]")
    noted: dict[str, Any] = {
        "also": ("late",), "ghost": lambda memory, r: int(memory[pte] != r["pfn"]), "uses": ("pfn",),
    }  # fmt: skip
    looks = "no_active_check" not in mutants
    active_read = load(active, "active", given=("go",), when=lambda r: r["go"], **noted)
    fence = [] if "check_without_smp_rmb" in mutants else [barrier("rmb")]
    seq = load(
        "mmu_invalidate_seq", "seq", "read mmu_invalidate_seq again", given=("go", "active"),
        when=lambda r: r["go"] and not r["active"], **({} if looks else noted),
    )  # fmt: skip
    if not setting.path.seq_checked:
        line.append(calc("stale", (), lambda r: 0))
    elif "no_seq_check" in mutants:
        line += [active_read, calc("stale", ("active",), lambda r: r["active"] > 0)]
    else:
        line += [active_read, *fence] if looks else [calc("active", (), lambda r: 0)]
        uses = ("active", "seq", "snapshot")
        line += [seq, calc("stale", uses, lambda r: r["active"] > 0 or r["seq"] != r["snapshot"])]
    line.append(
        store(
            f"tlb[{vcpu}]", lambda r: r["pfn"], "the cache is valid, with this pfn", uses=("pfn",),
            given=("go", "stale"), when=lambda r: r["go"] and not r["stale"],
        )
    )  # fmt: skip
    line += put(setting) if setting.path.reference != "early_put" else []
    drop = {"given": ("go",), "when": lambda r: r["go"], "release": True}
    return [*line, store(guard, lambda r: 0, "unlock the cache", **drop)]


def vcpu_map(setting: Setting, vcpu: int) -> list[Access]:
    """kvm_vcpu_map and kvm_vcpu_unmap: no notifier guards the mapping, the reference is all it has.

    Every kernel and series keeps FOLL_GET here, so the reference is held until the unmap whatever the fault
    path does with its own; `no_ref` has none to hold. A page without a count is refused, as it is where
    allow_unsafe_mappings is off.
    """
    words = setting.words
    line = get_user_page(setting, vcpu)
    if "early_unpin" in setting.mutants:
        line += put(setting)

    def map_it(memory: Memory, r: Registers) -> None:
        memory[words.at(f"tlb[{vcpu}]")], memory[words.at(f"in_guest[{vcpu}]")] = r["pfn"], 1

    def unmap(memory: Memory, r: Registers) -> None:
        memory[words.at(f"tlb[{vcpu}]")] = memory[words.at(f"in_guest[{vcpu}]")] = 0

    usable = setting.words.refcounted or setting.takes_reference
    line += [
        full(map_it, "map the page", uses=("pfn",), given=("pfn",), when=lambda r: r["pfn"] > 0 and usable),
        full(unmap, "unmap the page", given=("pfn",), when=lambda r: r["pfn"] > 0 and usable),
    ]
    return line + ([] if "early_unpin" in setting.mutants else put(setting))


def observer(setting: Setting, vcpu: int) -> list[Access]:
    """mmu_invalidate_retry by a user without any lock, who judges a pfn that GUP gave it.

    Any invalidation in progress counts, whatever its range: mmu_invalidate_retry_gfn, which looks at the
    range, asserts that mmu_lock is held.
    """
    page, mutants = setting.words.page_of(vcpu), setting.mutants
    pte = setting.words.at(f"pte[{page}]")
    late = "snapshot_after_gup" in mutants
    line = [] if late else snapshot(setting)
    line += get_user_page(setting, vcpu)
    line += put(setting)
    line += snapshot(setting) if late else []
    if not setting.path.seq_checked:
        line.append(
            load(
                f"pte[{page}]", "now", "judge it, whatever it is", given=("pfn",), when=lambda r: r["pfn"] > 0
            )
        )
        return [
            *line,
            calc("stale", (), lambda r: 0),
            calc("late", ("pfn", "now"), lambda r: r["pfn"] != r["now"]),
        ]
    return line + check(
        "stale", page, ("pfn",), lambda r: r["pfn"] > 0, fence="check_without_smp_rmb" not in mutants,
        ranges="seq_alone" not in mutants, sequence="range_alone" not in mutants,
        bounds="observer_reads_range" in mutants, late=lambda memory, r: int(memory[pte] != r["pfn"]),
    )  # fmt: skip


def lock(setting: Setting) -> list[Access]:
    """Take mmu_lock, as the fault path does."""
    at = setting.words.at("mmu_lock")
    exclusive = setting.path.mmu_lock == "exclusive"

    def take(memory: Memory, r: Registers) -> None:
        memory[at] = WRITER if exclusive else memory[at] + 1

    def free(memory: Memory) -> bool:
        return memory[at] == 0 if exclusive else memory[at] != WRITER

    text = "lock mmu_lock for write" if exclusive else "lock mmu_lock for read"
    return [rmw(take, text, word="mmu_lock", given=("go",), when=lambda r: r["go"], ready=free, acquire=True)]


def unlock(setting: Setting) -> list[Access]:
    """Release mmu_lock."""
    at = setting.words.at("mmu_lock")
    held = {"given": ("go",), "when": lambda r: r["go"], "release": True}
    if setting.path.mmu_lock == "exclusive":
        return [store("mmu_lock", lambda r: 0, "unlock mmu_lock", **held)]

    def leave(memory: Memory, r: Registers) -> None:
        memory[at] -= 1

    return [rmw(leave, "unlock mmu_lock", word="mmu_lock", **held)]


CALLERS = {
    "fault": fault,
    "apic_access_page": apic_access_page,
    "pfncache": pfncache,
    "vcpu_map": vcpu_map,
    "observer": observer,
}
"""The callers by name."""
