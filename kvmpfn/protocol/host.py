"""The other side: a notifier client, who unmaps pages and frees their frames."""

from __future__ import annotations

from kvmpfn.protocol.gup import Setting
from kvmpfn.protocol.order import Access, Memory, Registers, barrier, full, rmw, store
from kvmpfn.protocol.words import WRITER, Violation, Words

__all__ = ["invalidation", "span"]

SEQ, IN_PROGRESS = "mmu_invalidate_seq", "mmu_invalidate_in_progress"
START, END = "mmu_invalidate_range_start", "mmu_invalidate_range_end"


def span(number: int, pages: int) -> tuple[int, int]:
    """Return the pages, the end exclusive, of an invalidation: one after the other, and the third all."""
    return (0, pages) if number == 2 else (number % pages, number % pages + 1)


def invalidation(setting: Setting, number: int) -> list[Access]:
    """invalidate_range_start, the host's own change, invalidate_range_end (kernel-facts 2.2)."""
    clears, frees = unmap(setting, number)
    start, end = range_start(setting, number), range_end(setting)
    if "host_unmaps_first" in setting.mutants:
        return [*clears, *frees, *start, *end]
    if "host_frees_late" in setting.mutants:
        return [*start, *clears, *end, *frees]
    return [*start, *clears, *frees, *end]


def range_start(setting: Setting, number: int) -> list[Access]:
    """kvm_mmu_notifier_invalidate_range_start."""
    words, path = setting.words, setting.path
    low, high = span(number, words.pages)
    pages, vcpus = range(low, high), range(words.vcpus)
    concerned = [vcpu for vcpu in vcpus if words.page_of(vcpu) in pages]
    faults = setting.caller == "fault"
    zaps = [page for page in pages if faults and path.guarded]
    line: list[Access] = []
    if setting.caller == "pfncache":
        line.append(_count_active(words, +1))
        line += [_invalidate_cache(words, vcpu) for vcpu in concerned if path.guarded]

    def first(r: Registers) -> bool:
        return r["was"] == 0

    reads = {IN_PROGRESS: "was", START: "from", END: "to"} | {f"spte[{page}]": f"leaf{page}" for page in zaps}
    line += [
        _write_lock(words, reads),
        store(IN_PROGRESS, lambda r: r["was"] + 1, "start: in_progress + 1", uses=("was",)),
        store(
            START, lambda r: low if first(r) else min(r["from"], low),
            "start: set or widen the range's start", uses=("was", "from"),
        ),
        store(
            END, lambda r: high if first(r) else max(r["to"], high),
            "start: set or widen the range's end", uses=("was", "to"),
        ),
    ]  # fmt: skip
    for page in zaps:
        there = {"given": (f"leaf{page}",), "when": lambda r, leaf=f"leaf{page}": r[leaf] != 0}
        line.append(store(f"spte[{page}]", lambda r: 0, f"zap the leaf of page {page}", **there))
        if path.zap_marks_page and words.refcounted:
            line.append(_zap_mark(words, page, there))
    leaves = tuple(f"leaf{page}" for page in zaps)
    if setting.caller == "apic_access_page" and path.guarded:
        flush = {}
        what = "request an APIC page reload"
    else:
        flush = {"given": leaves, "when": lambda r: any(r[leaf] for leaf in leaves)}
        what = "request a TLB flush"
    if flush == {} or (leaves and "no_flush" not in setting.mutants):
        line += [_request(words, vcpu, what, flush) for vcpu in vcpus]
        line.append(_acknowledged(words, flush))
    return [*line, _write_unlock()]


def unmap(setting: Setting, number: int) -> tuple[list[Access], list[Access]]:
    """zap_page_range and its like: the PTEs go, then their references, and with the last the frame."""
    words = setting.words
    pages = range(*span(number, words.pages))
    clears: list[Access] = []
    frees: list[Access] = []
    for page in pages:

        def clear(memory: Memory, r: Registers, page: int = page) -> None:
            at = words.at(f"pte[{page}]")
            r[f"pte{page}"], memory[at] = memory[at], 0

        clears.append(
            full(clear, f"clear the host PTE of page {page}", word=f"pte[{page}]", out=(f"pte{page}",))
        )
    for page in pages:

        def drop(memory: Memory, r: Registers, page: int = page) -> Violation | None:
            entry = r[f"pte{page}"]
            if words.refcounted:
                return words.put(memory, entry)
            if not words.freed(memory, entry):
                words.free(memory, words.frame(entry).number)
            return None

        there = {"given": (f"pte{page}",), "when": lambda r, pte=f"pte{page}": r[pte] != 0}
        text = "put the mapping's reference" if words.refcounted else "free the page"
        frees.append(full(drop, f"{text} (page {page})", uses=(f"pte{page}",), **there))
    return clears, frees


def range_end(setting: Setting) -> list[Access]:
    """kvm_mmu_notifier_invalidate_range_end."""
    words, mutants = setting.words, setting.mutants
    count = store(SEQ, lambda r: r["seq"] + 1, "end: seq + 1", uses=("seq",))
    leave = [store(IN_PROGRESS, lambda r: r["now"] - 1, "end: in_progress - 1", uses=("now",))]
    if "end_forgets_decrement" in mutants:
        leave = []
    stores = [*leave, count] if "end_stores_swapped" in mutants else [count, barrier("wmb"), *leave]
    if "no_smp_wmb" in mutants:
        stores = [access for access in stores if access.kind != "wmb"]
    release = [] if "end_forgets_unlock" in mutants else [_write_unlock()]
    section = [_write_lock(words, {SEQ: "seq", IN_PROGRESS: "now"}), *stores, *release]
    if setting.caller != "pfncache":
        return section
    active = _count_active(words, -1)
    return [active, *section] if "seq_after_active" in mutants else [*section, active]


def _count_active(words: Words, by: int) -> Access:
    """Count under mn_invalidate_lock: one step, for only one store of the section is seen outside."""
    at = words.at("mn_active_invalidate_count")

    def act(memory: Memory, r: Registers) -> None:
        memory[at] += by

    return full(act, f"active count {'+' if by > 0 else '-'} 1", word="mn_active_invalidate_count")


def _invalidate_cache(words: Words, vcpu: int) -> Access:
    """gfn_to_pfn_cache_invalidate_start: one step, for it waits for the cache's lock and stores once."""

    def act(memory: Memory, r: Registers) -> None:
        memory[words.at(f"tlb[{vcpu}]")] = 0

    def free(memory: Memory) -> bool:
        return memory[words.at(f"lock[{vcpu}]")] == 0

    return full(act, f"invalidate the pfn cache of vCPU {vcpu}", ready=free)


def _write_lock(words: Words, reads: dict[str, str]) -> Access:
    """Take mmu_lock for write, and read what only its holders write."""
    at = words.at("mmu_lock")
    where = [(words.at(word), register) for word, register in reads.items()]

    def act(memory: Memory, r: Registers) -> None:
        memory[at] = WRITER
        for index, register in where:
            r[register] = memory[index]

    def free(memory: Memory) -> bool:
        return memory[at] == 0

    return rmw(
        act, "lock mmu_lock for write", word="mmu_lock", out=tuple(reads.values()), ready=free, acquire=True
    )


def _write_unlock() -> Access:
    """queued_write_unlock: a plain store."""
    return store("mmu_lock", lambda r: 0, "unlock mmu_lock", release=True)


def _zap_mark(words: Words, page: int, there: dict[str, object]) -> Access:
    """kvm_set_pfn_dirty and _accessed of a leaf that goes."""
    what = "zap: mark dirty and accessed"

    def act(memory: Memory, r: Registers) -> Violation | None:
        return words.touch(memory, r[f"leaf{page}"], what)

    return rmw(act, what, uses=(f"leaf{page}",), **there)


def _request(words: Words, vcpu: int, what: str, when: dict[str, object]) -> Access:
    """kvm_make_request and the kick of one vCPU."""

    def act(memory: Memory, r: Registers) -> None:
        memory[words.at(f"request[{vcpu}]")] = 1

    return full(act, f"{what} of vCPU {vcpu}", word=f"request[{vcpu}]", **when)


def _acknowledged(words: Words, when: dict[str, object]) -> Access:
    """Wait until no vCPU with a request is in the guest (KVM_REQUEST_WAIT)."""

    def left(memory: Memory) -> bool:
        return not any(
            memory[words.at(f"request[{vcpu}]")] and memory[words.at(f"in_guest[{vcpu}]")]
            for vcpu in range(words.vcpus)
        )

    return full(lambda memory, r: None, "every vCPU has left the guest", ready=left, **when)
