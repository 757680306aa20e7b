"""Names of the things the engine counts, in the order of its result arrays.

Everything above `core/` reads a result by these tuples, so that a position is written down once.
Counter names are the ones KVM's own statistics use, plus ours (docs/model.md, "Counters").
"""

COUNTERS = (
    "pf_taken", "pf_fixed", "pf_spurious", "pf_emulate", "pf_error", "pf_fast",
    "retry.pre_gup.range", "retry.pre_gup.false_range", "retry.pre_gup.seq",
    "retry.post_gup.range", "retry.post_gup.false_range", "retry.post_gup.seq",
    "retry.locked.range", "retry.locked.false_range", "retry.locked.seq",
    "retry.race.leaf", "retry.race.parent", "retry.race.frozen", "retry.other",
    "installs", "pages_4k", "pages_2m", "pages_1g",
    "tables_built", "tables_lost", "tables_freed", "huge_splits",
    "gup_fast_miss", "host_faults", "host_faults_lost", "cow_breaks", "numa_hints", "migration_waits",
    "swap_ins", "swap_outs", "ksm_merges", "thp_splits", "thp_collapses", "pml_full",
    "remote_tlb_flush", "remote_tlb_flush_requests", "kicks", "host_ipis",
    "invalidations", "invalidations.self", "zapped", "aged", "zap_yields",
    "stale_uses", "freed_uses",
    "gets", "puts", "reference_hold_ps",
    "storm_asked", "storm_done", "storm_late", "storm_skipped", "host_op_busy",
    "lock_wait.mmu_lock.read", "lock_wait.mmu_lock.write",
    "lock_wait.mmap_lock.read", "lock_wait.mmap_lock.write", "lock_wait.ptl.exclusive",
    "accesses",
)  # fmt: skip
"""Columns of `counters`, int64[vms, len(COUNTERS)]; `pages_*` are leaves present at the end,
`lock_wait.*` and `reference_hold_ps` are picoseconds."""

RMW_CONTEXTS = ("fault", "zap")
"""Who issued an atomic: a vCPU's fault, or a notifier client (start, end and the zap between)."""

RMW_LINES = (
    "folio", "mmu_lock", "stat_pages", "spte", "page_table", "mmap_lock", "ptl", "mn_lock",
    "dirty_bitmap", "vcpu_request", "local", "host", "host_folio",
)  # fmt: skip
"""Columns of `rmw`, int64[vms, contexts, lines]. `local` holds barriers on a vCPU's own words;
`host` and `host_folio` are the host's own atomics, which KVM would not save by dropping references."""

DISTANCES = ("own", "core", "llc", "socket", "remote", "memory")
"""Columns of `transfers`, int64[vms, distances]: where a line was when it was asked for."""

PARTS = (
    "exit_entry", "handler", "seq_line", "gup", "folio", "mmap_lock", "mmap_wait", "ptl", "ptl_wait",
    "host_fault", "self_invalidation", "mmu_lock", "mmu_lock_wait", "walk", "spte", "stat_pages",
    "dirty_log", "flush", "wasted",
)  # fmt: skip
"""Columns of `parts`, int64[vms, len(PARTS)] in ps; they sum to the time spent in faults, exactly.
Attempts that ended in RETRY are whole in `wasted`."""

VCPU_FIELDS = (
    "start", "end", "guest", "faults", "kicked", "accesses", "taken", "retries",
    "tries_max", "latency_max",
)  # fmt: skip
"""Columns of `vcpus`, int64[vms * vcpus, len(VCPU_FIELDS)]; times in ps.
end - start == guest + faults + kicked, exactly."""

CLIENT_FIELDS = ("vm", "asked", "done", "late_ps", "late_max_ps", "busy_ps", "skipped")
"""Columns of `clients`, int64[clients, len(CLIENT_FIELDS)], one row a storm client."""

TIMELINE = ("taken", "resolved", "retries", "invalidations", "zapped", "wasted_ps")
"""Columns of `timeline`, int64[bins, len(TIMELINE)]; bin width in ps is in `timeline_bin_ps`."""

STEPS = (
    "access", "handle", "fast_page_fault", "fast_dirty", "pml_flush", "gup", "get", "early_put", "got",
    "precheck", "slow", "mm_fault", "alloc", "fill", "cow_lock", "install", "map_file", "installed",
    "lru_add", "follow_lock", "follow", "pfn_get", "remap", "remapped", "mapped", "link", "split_stats",
    "table_count", "freeze", "freeze_stats", "frozen", "release_unused", "leaf", "set_leaf", "unlink",
    "unlink_count", "unlink_stats", "unlink_mark", "stats", "release", "release_clean", "drain_puts",
    "finish", "read_lock", "write_lock", "queue_head", "write_grant", "read_unlock", "write_unlock",
    "mmap_lock", "owner_load", "owner_store", "mmap_unlock", "ptl_lock", "ptl_unlock", "flush", "host_flush",
    "start", "start_locked", "zap", "zap_mark", "yield", "relock", "resume", "flushed", "started", "end",
    "end_locked", "ended", "idle", "cut", "split", "split_flushed", "ptes", "pte_end", "after", "restore",
    "collapse", "collapse_flushed", "collapsed", "over", "age", "aged", "sync_dirty_log", "clear_dirty",
    "clear_leaf", "clear_mark", "cleared", "done", "stopped",
)  # fmt: skip
"""Step names of the event log, by number."""

LOG_FIELDS = ("time", "actor", "step", "a", "b")
"""Columns of `log`, int64[rows, 5]; `log_seen` tells how many rows there would have been."""

HIST_SUB_BITS = 6
"""Latency buckets: 64 a factor of two, so a bucket's middle is within 0.8 % of any value in it."""

ERRORS = ("", "arena exhausted", "invariant broken", "page-table pool exhausted")
