"""The faults: in which file, what stands there, what is put in its place, and what that breaks."""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """A fault of one line; `old` stands exactly once in `kvmpfn/core/<file>`."""

    file: str
    old: str
    new: str
    what: str


FAULTS = (
    # The queued rwlock
    Fault(
        "qrwlock.py",
        "    if w[vm + L.MMU_WRITER] or w[vm + L.MMU_WAITING]:\n",
        "    if w[vm + L.MMU_WRITER]:\n",
        "a new reader passes the writer that waits for the lock",
    ),
    Fault(
        "qrwlock.py",
        "        t = ride_add(w, a, vm + L.MMU_LINE, L.X_MMU_LOCK, L.PART_MMU_LOCK, t)  # undo\n",
        "        t += 0\n",
        "the atomic with which a reader takes its announcement back is not counted",
    ),
    Fault(
        "qrwlock.py",
        "    if w[vm + L.MMU_WRITER] or w[vm + L.MMU_WAITING] or w[vm + L.MMU_READERS]:\n",
        "    if w[vm + L.MMU_WRITER] or w[vm + L.MMU_WAITING]:\n",
        "a writer enters beside readers",
    ),
    Fault(
        "qrwlock.py",
        "max(t + w[L.C_LATENCY_CORE - 1 + d], w[successor + L.SINCE])",
        "max(t, w[successor + L.SINCE])",
        "the next in the queue looks without waiting for the line",
    ),
    Fault(
        "qrwlock.py",
        "        if w[vm + L.MMU_READERS] == 0 and w[vm + L.MMU_WRITER] == 0:\n",
        "        if w[vm + L.MMU_READERS] <= 1 and w[vm + L.MMU_WRITER] == 0:\n",
        "the last reader but one lets the writer in",
    ),
    # Cache lines
    Fault(
        "lines.py",
        "            occupancy *= factor",
        "            occupancy *= 1",
        "a contended cmpxchg loop is free",
    ),
    Fault(
        "lines.py",
        "    done = max(t, word >> L.OWNER_BITS) + ",
        "    done = t + ",
        "a load does not wait for the line",
    ),
    Fault(
        "lines.py",
        "    w[line] += own << L.OWNER_BITS\n",
        "    w[line] += 0\n",
        "a second write to a line does not keep others from it",
    ),
    Fault(
        "lines.py",
        "        w[a + L.V_SEEN] = w[vm + L.SEQ_VERSION]\n",
        "        w[a + L.V_SEEN] = -1\n",
        "the sequence line is fetched again though nobody wrote to it",
    ),
    # mmap_lock and page-table locks
    Fault(
        "host_locks.py",
        "    free = w[vm + L.MMAP_WRITER] == 0 and w[vm + L.MMAP_HEAD] == 0\n",
        "    free = w[vm + L.MMAP_WRITER] == 0\n",
        "a reader of mmap_lock passes a queued writer",
    ),
    Fault(
        "host_locks.py",
        "    at = max(t, w[a + L.SINCE]) + w[L.C_SLEEP_WAKE]\n",
        "    at = max(t, w[a + L.SINCE])\n",
        "to wake a sleeper of mmap_lock takes no time",
    ),
    Fault(
        "host_locks.py",
        "    w[ptl + L.PTL_HELD] = following\n",
        "    w[ptl + L.PTL_HELD] = 0\n",
        "a newcomer takes a page-table lock that was handed on",
    ),
    # The notifier and the stale test
    Fault(
        "mmu_notifier.py",
        "gfn < w[vm + L.RANGE_END]\n",
        "gfn <= w[vm + L.RANGE_END]\n",
        "the page behind the collapsed range counts as inside",
    ),
    Fault(
        "mmu_notifier.py",
        "            if gfn >= w[other + L.N_START] and gfn < w[other + L.N_END]:\n",
        "            if gfn > w[other + L.N_START] and gfn < w[other + L.N_END]:\n",
        "the first page of an invalidation counts as outside",
    ),
    Fault(
        "mmu_notifier.py",
        "        w[vm + L.RANGE_END] = max(w[vm + L.RANGE_END], w[a + L.N_END])\n",
        "        w[vm + L.RANGE_END] = w[a + L.N_END]\n",
        "a second invalidation does not widen the range but moves its end",
    ),
    Fault(
        "mmu_notifier.py", "    w[vm + L.SEQ] += 1\n", "    w[vm + L.SEQ] += 0\n", "the sequence stands still"
    ),
    Fault(
        "mmu_notifier.py",
        "    w[a + L.N_PROGRESS] = 0\n    to_next_leaf(w, a, w[L.NOW])\n",
        "    to_next_leaf(w, a, w[L.NOW])\n",
        "a zap that yielded yields again before it has zapped anything",
    ),
    Fault(
        "mmu_notifier.py",
        "    last = max(t, w[a + L.N_FLUSH_LAST])\n",
        "    last = t\n",
        "a flush does not wait for the answers",
    ),
    Fault(
        "mmu_notifier.py",
        "            w[v + L.V_TLB_REQUEST] = 1\n",
        "            w[v + L.V_TLB_REQUEST] = 0\n",
        "a vCPU in the handler gets no flush request",
    ),
    Fault(
        "mmu_notifier.py",
        "    charge(w, a, L.PART_FLUSH, last - t)\n",
        "    charge(w, a, L.PART_HANDLER, last - t)\n",
        "the wait for a flush is booked to the handler",
    ),
    # The fault
    Fault(
        "page_fault.py",
        "            marked |= L.SPTE_D\n",
        "            marked |= L.SPTE_A\n",
        "a write leaves no dirty bit",
    ),
    Fault(
        "page_fault.py",
        "    fixable = (spte & L.SPTE_MMU_W) != 0 and not (level > 1 and w[L.DIRTY_LOGGING])\n",
        "    fixable = (spte & L.SPTE_MMU_W) != 0\n",
        "the fast path makes a huge leaf writable under dirty logging",
    ),
    Fault(
        "page_fault.py",
        "    if w[L.M_PRECHECKS] and retry_if_stale(w, a, L.K_RETRY_PRE_GUP_RANGE):\n",
        "    if retry_if_stale(w, a, L.K_RETRY_PRE_GUP_RANGE):\n",
        "kernels without pre-checks make the first",
    ),
    Fault(
        "page_fault.py",
        "    if w[L.M_SEQ_CHECKED]:\n",
        "    if w[L.M_SEQ_CHECKED] and not w[L.M_PRECHECKS]:\n",
        "pre-checks replace the check under the lock",
    ),
    Fault(
        "page_fault.py",
        "        w[a + L.V_LEVEL] = level  # disallowed",
        "        w[a + L.V_LEVEL] += 0  # disallowed",
        "a table at the goal does not lower the goal",
    ),
    Fault(
        "page_fault.py",
        "    if (pte & L.P_STATE) == L.P_ABSENT or w[L.DIRTY_LOGGING]:\n",
        "    if (pte & L.P_STATE) == L.P_ABSENT:\n",
        "dirty logging maps huge pages",
    ),
    Fault(
        "page_fault.py",
        "    return accessed_locked(w) and w[L.M_ACCESSED_ON_RETRY]\n",
        "    return accessed_locked(w)\n",
        "a page that was put unused is marked accessed",
    ),
    Fault(
        "page_fault.py",
        "    schedule(w, a, L.PC_FINISH, put_folio(w, a, t))\n",
        "    schedule(w, a, L.PC_FINISH, t)\n",
        "a put too few: the reference is leaked",
    ),
    Fault(
        "page_fault.py",
        "    if w[w[a + L.V_LEAF]] != old:\n",
        "    if w[w[a + L.V_LEAF]] < 0:\n",
        "the leaf's cmpxchg never fails",
    ),
    Fault(
        "page_fault.py",
        "        w[base + L.PART_WASTED] += spent\n",
        "        w[base + L.PART_WASTED] += 2 * spent\n",
        "a RETRY is booked twice",
    ),
    # KVM's tables
    Fault(
        "tdp_mmu.py",
        "    if (spte & L.SPTE_A) == 0:\n",
        "    if (spte & L.SPTE_A) < 0:\n",
        "a leaf without the accessed bit is zapped by a plain store",
    ),
    Fault(
        "tdp_mmu.py",
        "        if (old & L.SPTE_PRESENT) == 0 or (old & L.SPTE_W) == 0:\n",
        "        if spte:\n",
        "a leaf that was writable already gets the dirty bit too",
    ),
    Fault(
        "tdp_mmu.py",
        "    if w[L.M_SPTE_BIT] != L.BIT_NONE and (spte & L.SPTE_REFCOUNTED) == 0:\n",
        "    if spte < 0:\n",
        "the zap does not look at the refcounted bit",
    ),
    Fault(
        "tdp_mmu.py",
        "    return rmw_add(w, a, w[a + L.VM] + L.STAT_LINE, L.X_STAT_PAGES, L.PART_STAT_PAGES, t)\n",
        "    return store(w, a, w[a + L.VM] + L.STAT_LINE, L.PART_STAT_PAGES, t)\n",
        "the atomic on kvm->stat.pages[] is not counted",
    ),
    Fault(
        "tdp_mmu.py",
        "    count(w, a, L.K_PAGES_4K + level - 2, 512)\n",
        "    count(w, a, L.K_PAGES_4K + level - 2, 511)\n",
        "a split page has one leaf too few",
    ),
    # GUP and the host's fault
    Fault(
        "faultin.py",
        "    if pte != w[a + L.V_PTE]:\n",
        "    if pte < 0:\n",
        "fast GUP does not look at the entry again",
    ),
    Fault(
        "faultin.py",
        "    if state == L.P_ABSENT and not w[a + L.V_COW]:\n",
        "    if state == L.P_ABSENT:\n",
        "a copy-on-write installs its page where the entry is gone",
    ),
    Fault(
        "faultin.py",
        "        read_only = (pte & L.P_ZERO) != 0 or ((pte & L.P_FILE) != 0 and w[r + L.R_PRIVATE] != 0)\n",
        "        read_only = (pte & L.P_FILE) != 0 and w[r + L.R_PRIVATE] != 0\n",
        "a hinting fault makes the zero page writable",
    ),
    Fault(
        "faultin.py",
        "        unlock_both(w, a, L.PC_GUP, t)\n",
        "        unlock_both(w, a, L.PC_GOT, t)\n",
        "a read that went the slow way does not ask for write permission",
    ),
    Fault(
        "host_mm.py",
        "    if w[a + L.V_PCP] >= w[L.C_ZONE_LOCK_BATCH]:\n",
        "    if w[a + L.V_PCP] > w[L.C_ZONE_LOCK_BATCH]:\n",
        "the zone lock comes a page late",
    ),
    Fault(
        "host_mm.py",
        "    done = max(t + pages * each * w[a + L.SMT] // 100, w[bandwidth])\n",
        "    done = t + pages * each * w[a + L.SMT] // 100\n",
        "zeroing has all the bandwidth it wants",
    ),
    Fault(
        "host_mm.py",
        "        if (state & L.F_WORKINGSET) != 0 and (state & L.F_LRU_REFS) == L.F_LRU_REFS:\n",
        "        if state & L.F_WORKINGSET:\n",
        "MGLRU counts no uses",
    ),
    Fault(
        "host_mm.py",
        "        if w[v + L.FINISHED] or v == a:\n",
        "        if w[v + L.FINISHED]:\n",
        "a vCPU that breaks copy-on-write interrupts itself",
    ),
    Fault(
        "host_mm.py",
        "    first = max(rel - rel % window, rel - rel % 512)\n",
        "    first = rel\n",
        "fault-around looks ahead only",
    ),
    # Storm clients
    Fault(
        "clients.py",
        "max(w[L.NOW], w[a + L.S_HOLD_T0] + w[a + L.S_HOLD])",
        "w[L.NOW]",
        "the hold ends with the last entry",
    ),
    Fault(
        "clients.py",
        "        return state == L.P_RW or state == L.P_RO\n",
        "        return state == L.P_RW\n",
        "NUMA balancing leaves read-only entries alone",
    ),
    Fault(
        "clients.py",
        "                if w[folio_of(w, r, gfn, pte) + L.FOLIO_STATE] >= L.F_REF_ONE:\n",
        "                if w[folio_of(w, r, gfn, pte) + L.FOLIO_STATE] < 0:\n",
        "migration moves pages that KVM holds",
    ),
)
