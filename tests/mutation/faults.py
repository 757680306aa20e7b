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
        "    if w[table + L.TABLE_NX]:\n",
        "    if w[table + L.TABLE_NX] < 0:\n",
        "a huge leaf takes the place of a table that an execution needed",
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
        "    t = put_folio(w, a, t)\n    call",
        "    call",
        "a put too few: the reference is leaked",
    ),
    Fault(
        "page_fault.py",
        "    if w[w[a + L.V_LEAF]] != old or unlinked",
        "    if unlinked",
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
        "    if w[L.M_SPTE_BIT] != L.BIT_NONE and (spte & L.SPTE_REFCOUNTED) == 0:\n        return 0\n",
        "    if spte < 0:\n        return 0\n",
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
        "ride_page_stats(w, a, level - 1, 512, t)",
        "ride_page_stats(w, a, level - 1, 511, t)",
        "a split page has one leaf too few",
    ),
    # GUP and the host's fault
    Fault(
        "faultin.py",
        "    if pte != w[a + L.V_PTE] or folio_of(w, r, w[a + L.V_GFN], pte) != folio:\n",
        "    if pte < 0:\n",
        "fast GUP does not look at the entry again",
    ),
    Fault(
        "faultin.py",
        "        return (pte ^ old) & ~L.P_CLIENT_MASK == 0\n",
        "        return True\n",
        "the host's fault installs its page whatever has become of the entry",
    ),
    Fault(
        "faultin.py",
        "(L.P_RO if private_file else L.P_RW)",
        "L.P_RW",
        "a hinting fault makes a private file's page writable",
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
        "    done = max(alone, w[bandwidth])\n",
        "    done = alone\n",
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
        "host_ops.py",
        "max(w[L.NOW], w[a + L.S_HOLD_T0] + w[a + L.S_HOLD])",
        "w[L.NOW]",
        "the hold ends with the last entry",
    ),
    Fault(
        "host_ops.py",
        "        return plain and (state == L.P_RW or state == L.P_RO)\n",
        "        return plain and state == L.P_RW\n",
        "NUMA balancing leaves read-only entries alone",
    ),
    Fault(
        "host_ops.py",
        "    return in_flight(w, folio_of(w, r, gfn, pte))\n",
        "    return pte < 0\n",
        "migration moves pages that KVM holds",
    ),
    Fault(
        "host_ops.py",
        "(pte & (L.P_ZERO | L.P_KSM)) == 0 and",
        "(pte & L.P_ZERO) == 0 and",
        "NUMA balancing takes pages that KSM has merged",
    ),
    Fault(
        "host_ops.py",
        "L.P_RO) and referenced(w, r, gfn, pte):\n",
        "L.P_RO):\n",
        "KSM gives every page up",
    ),
    Fault(
        "host_ops.py",
        "plain | L.P_ABSENT | L.P_SWAP | L.P_FREED",
        "plain | L.P_ABSENT | L.P_FREED",
        "what was swapped out is forgotten",
    ),
    Fault(
        "host_ops.py",
        "    elif action == L.ACT_MPROTECT and w[a + L.S_ROUND] == 0:\n",
        "    elif action < 0:\n",
        "mprotect does not allow writing again",
    ),
    Fault(
        "clients.py",
        "    if w[a + L.S_SCAN] >= w[vm + L.PAGES]:\n",
        "    if w[a + L.S_SCAN] > w[vm + L.PAGES]:\n",
        "a scan does not begin anew",
    ),
    Fault(
        "clients.py",
        "    elif looks_first(action) and any_referenced(w, a, r):\n",
        "    elif action < 0:\n",
        "compaction and khugepaged do not look at the count first",
    ),
    Fault(
        "clients.py",
        "moves_pages(action) and not any_wanted(w, a, r):\n",
        "moves_pages(action) and action < 0:\n",
        "the notifier is called for pages that are not mapped",
    ),
    # Huge pages of the host that do not stay
    Fault(
        "thp.py",
        "    return first < w[a + L.S_START] or first + unit > w[a + L.S_END]\n",
        "    return False\n",
        "a huge page is not split for a part of it",
    ),
    Fault(
        "thp.py",
        "w[table + i] = pte | L.P_COMPOUND if whole else pte",
        "w[table + i] = pte",
        "the pages of a split huge page are no longer one folio",
    ),
    Fault(
        "thp.py",
        "(pte & L.P_STATE) == L.P_MIGRATION or (pte & L.P_SWAP) != 0:",
        "(pte & L.P_STATE) == L.P_MIGRATION:",
        "khugepaged collapses what is swapped out",
    ),
    Fault(
        "thp.py",
        "        if in_flight(w, folio_in(w, r, gfn + i, pte, table)):\n",
        "        if pte < 0:\n",
        "khugepaged moves pages that KVM holds",
    ),
    Fault(
        "thp.py",
        "(512 - pages) * private",
        "(511 - pages) * private",
        "a collapsed page has a small page too few",
    ),
    # Replaced tables
    Fault(
        "page_fault.py",
        "    for _ in range(leaves - 1):\n",
        "    for _ in range(0):\n",
        "the leaves of a replaced table count as one",
    ),
    Fault(
        "tdp_mmu.py",
        "            w[table + i] = (old & ~L.SPTE_PRESENT) | L.SPTE_REMOVED\n",
        "            w[table + i] = L.SPTE_REMOVED\n",
        "the leaves of a replaced table mark nothing",
    ),
    # References that are put later
    Fault(
        "references.py",
        "    while slot < end and w[slot + L.BATCH_FOLIO] != w[a + L.V_FOLIO]:\n",
        "    while slot < end:\n",
        "a batch takes an atomic for each reference",
    ),
    Fault(
        "references.py",
        "refs * t - w[slot + L.BATCH_T0]",
        "t - w[slot + L.BATCH_T0]",
        "a batch counts the time of one reference",
    ),
    Fault(
        "page_fault.py",
        "w[a + L.V_BATCH_REFS] >= w[L.M_PUT_BATCH]",
        "w[a + L.V_BATCH_REFS] > w[L.M_PUT_BATCH]",
        "a batch holds one reference too many",
    ),
    Fault(
        "page_fault.py",
        "    if w[a + L.V_BATCH_COUNT] > 0:\n",
        "    if w[a + L.V_BATCH_COUNT] < 0:\n",
        "a vCPU stops with references in its batch",
    ),
    # The dirty log
    Fault(
        "dirty_log.py",
        "L.WRITE or (spte & L.SPTE_D) != 0:\n",
        "L.WRITE:\n",
        "hardware logs each write, not the first",
    ),
    Fault(
        "dirty_log.py",
        "    bit = L.SPTE_D if w[L.PML] and level == 1 else L.SPTE_W\n",
        "    bit = L.SPTE_W\n",
        "with PML the log is cleared by write protection",
    ),
    Fault(
        "dirty_log.py",
        "        w[v + L.V_OWED] += w[L.C_EXIT] + w[L.C_ENTRY]\n",
        "        w[v + L.V_OWED] += w[L.C_EXIT]\n",
        "a vCPU that is kicked for its log enters for nothing",
    ),
    Fault(
        "dirty_log.py",
        "            w[low + 1] = 0\n",
        "            w[low + 1] += 0\n",
        "half of the log is never cleared",
    ),
    Fault(
        "dirty_log.py",
        "    if spte & bit & L.SPTE_D and zapped_folio(w, a, gfn, spte) != 0:\n",
        "    if spte < 0:\n",
        "a cleared D bit is lost",
    ),
    Fault(
        "page_fault.py",
        "    if w[a + L.V_PML_COUNT] > 0:\n",
        "    if w[a + L.V_PML_COUNT] > 9:\n",
        "an exit leaves a short log in the buffer",
    ),
    Fault(
        "host_mm.py",
        "    if w[folio + L.FOLIO_STATE] & L.F_RESERVED:\n",
        "    if w[folio + L.FOLIO_STATE] < 0:\n",
        "a reserved page is marked dirty",
    ),
    # Workloads
    Fault(
        "workload.py",
        "    if index < long_lanes * (short + 1):\n",
        "    if index < long_lanes * short:\n",
        "strides that do not divide memory come back to a page",
    ),
    Fault(
        "workload.py",
        "    if fraction >= w[row]:\n",
        "    if fraction > w[row] * 2:\n",
        "the alias table is not asked",
    ),
    Fault(
        "workload.py",
        "start = (m // w[phase + L.PH_DRIFT_EVERY])",
        "start = (n // w[phase + L.PH_DRIFT_EVERY])",
        "a window that drifts begins where an earlier phase left it",
    ),
    Fault(
        "workload.py",
        "        elif high < writes + execs:\n",
        "        elif high < execs:\n",
        "executions are too few",
    ),
)
