"""The engine's memory: one flat int64 array, and where things lie in it.

A "pointer" is an index into the array, a structure a run of words, and a constant below the offset of
a field: `w[vm + L.SEQ]` is C's `kvm->mmu_invalidate_seq`. One array of one type keeps compilation short
and lets page tables be allocated as they are in the kernel: 512 entries each, when a fault needs one.
The fields of a structure are numbered in the order in which they stand.
"""

# A cache line is one word: busy_until in ps above OWNER_BITS, owner (cpu + 1; 0 = memory) below.
OWNER_BITS = 11
OWNER_MASK = (1 << OWNER_BITS) - 1
NOBODY = OWNER_MASK  # an actor number that no actor has: its draws are the same for all
TIME_LIMIT = 1 << 52  # 75 minutes of virtual time
NEVER = 1 << 62  # the event of an actor that has none

# Where a CPU is: its socket, LLC domain and core, each in so many bits; all within the one before.
PLACE_BITS = 20

# Header: absolute addresses.
(
    NOW,
    EVENTS,
    ERROR,
    ERROR_AT,
    ACTORS,
    ACTOR_PTRS,
    CLIENT_COUNT,
    VCPU_COUNT,
    VM_COUNT,
    VM_PTRS,
    QUEUE,
    QUEUE_LEAVES,
    CPU_PLACE,
    SEED_LOW,
    SEED_HIGH,
    CHECK,
    RUNNING,
    TAKEN,
    UNTIL_FAULTS,
    UNTIL_PS,
    BUMP,
    LIMIT,
    LOG,
    LOG_CAP,
    LOG_SEEN,
    SLOWEST,
    SLOWEST_CAP,
    WAITS,
    WAITS_CAP,
    WAITS_SEEN,
    COUNTERS,
    RMW,
    TRANSFERS,
    PARTS,
    HIST,
    TRIES,
    TIMELINE,
    TIMELINE_BINS,
    TIMELINE_SHIFT,
    ZERO_FOLIO,
    SOCKETS,
    LEVELS,
    DIRTY_LOGGING,
    PML,
    NX_HUGE_PAGES,
    LRU,
    PREEMPT_YIELDS,
    EAGER_PAGE_SPLIT,
    INITIALLY_ALL_SET,
    FREE_TABLES,
    UNLINKED,
    HOST_TABLES,
) = range(52)

# Mechanisms of the fault path (docs/model.md, "Mechanisms"): absolute addresses.
(
    M_REFERENCE,
    M_GUARDED,
    M_SEQ_CHECKED,
    M_PRECHECKS,
    M_NONREFCOUNTED_MAP,
    M_SPTE_BIT,
    M_DIRTY_MARKING,
    M_ACCESSED_MARKING,
    M_ACCESSED_ON_RETRY,
    M_ZAP_MARKS_PAGE,
    M_PFNMAP_REFERENCE,
    M_EXCLUSIVE,
    M_EARLY_SPURIOUS,
    M_SPLIT_IN_PLACE,
    M_AGING_LOCK,
    M_AGING_FLUSH,
    M_TABLE_LIST_LOCK,
    M_RANGE_LIST,
    M_PUT_BATCH,
) = range(HOST_TABLES + 1, HOST_TABLES + 1 + 19)

# Costs, ps or plain counts: absolute addresses, in the order hosts list them.
(
    C_OWN_ADD,
    C_OWN_CAS,
    C_LATENCY_CORE,
    C_LATENCY_LLC,
    C_LATENCY_SOCKET,
    C_LATENCY_REMOTE,
    C_LATENCY_MEMORY,
    C_OCCUPANCY_CORE,
    C_OCCUPANCY_LLC,
    C_OCCUPANCY_SOCKET,
    C_OCCUPANCY_REMOTE,
    C_OCCUPANCY_MEMORY,
    C_CAS_FACTOR,
    C_EXIT,
    C_ENTRY,
    C_HANDLER_ENTRY,
    C_HANDLER_LOCK,
    C_HANDLER_MAP,
    C_HANDLER_RETURN,
    C_GUP_FAST,
    C_GUP_SLOW,
    C_FOLLOW_PFN,
    C_HOST_FAULT,
    C_ZERO_4K,
    C_ZERO_BANDWIDTH_4K,
    C_ZONE_LOCK_BATCH,
    C_ZONE_LOCK_HOLD,
    C_LRU_BATCH,
    C_LRU_LOCK_HOLD,
    C_COPY_4K,
    C_NUMA_HINT,
    C_COW_BREAK,
    C_TABLE_ALLOC,
    C_TABLE_LOAD,
    C_ACCESS,
    C_ZAP_LEAF,
    C_ZAP_SKIP,
    C_NOTIFIER_CALL,
    C_FLUSH_TLB,
    C_IPI_SOCKET,
    C_IPI_REMOTE,
    C_IPI_SEND,
    C_SLEEP_WAKE,
    C_HOST_PTE,
    C_MIGRATE_BUSY_RETRY,
    C_SWAP_IN,
) = range(M_PUT_BATCH + 1, M_PUT_BATCH + 1 + 46)

HEADER_WORDS = C_SWAP_IN + 1

# A virtual machine (struct kvm and its mm).
VM_WORDS = 32
(
    VM_ID,
    SEQ,
    IN_PROGRESS,
    RANGE_START,
    RANGE_END,
    ACTIVE_HEAD,
    MN_ACTIVE,
    SEQ_VERSION,
    SEQ_LINE,
    MMU_LINE,
    STAT_LINE,
    TABLES_LINE,
    MN_LINE,
    MMU_READERS,
    MMU_WRITER,
    MMU_WAITING,
    MMU_HEAD,
    MMU_TAIL,
    MMU_SPINNING,
    MMAP_LINE,
    MMAP_READERS,
    MMAP_WRITER,
    MMAP_HEAD,
    MMAP_TAIL,
    ROOT,
    REGIONS,
    REGION_COUNT,
    VCPUS,
    VCPU_TOTAL,
    ALIVE,
    VM_RUNNING,
    PAGES,
) = range(VM_WORDS)

# A memory region: one memslot and one VMA.
REGION_WORDS = 21
(
    R_GFN,
    R_PAGES,
    R_BACKING,
    R_MAX_LEVEL,
    R_HOST_LEVEL,
    R_HOST,
    R_HOST_LINES,
    R_PTLS,
    R_FOLIOS,
    R_BITMAP,
    R_FILE_FOLIOS,
    R_ORDER,
    R_PRIVATE,
    R_FAULT_AROUND,
    R_WRITABLE,
    R_POPULATED,
    R_MAPPED,
    R_FIRST,
    R_KSM_FOLIOS,
    R_KSM_SHIFT,
    R_SPARE,
) = range(REGION_WORDS)

# Parts, as names.PARTS.
PART_COUNT = 19
(
    PART_EXIT_ENTRY,
    PART_HANDLER,
    PART_SEQ_LINE,
    PART_GUP,
    PART_FOLIO,
    PART_MMAP_LOCK,
    PART_MMAP_WAIT,
    PART_PTL,
    PART_PTL_WAIT,
    PART_HOST_FAULT,
    PART_SELF_INVALIDATION,
    PART_MMU_LOCK,
    PART_MMU_LOCK_WAIT,
    PART_WALK,
    PART_SPTE,
    PART_STAT_PAGES,
    PART_DIRTY_LOG,
    PART_FLUSH,
    PART_WASTED,
) = range(PART_COUNT)

# An actor: a storm client or a vCPU; each has at most one pending event.
(
    ID,
    PC,
    CPU,
    SOCKET,
    VM,
    SMT,
    NEXT,
    AFTER,
    AFTER_MMAP,
    WAIT_MODE,
    SINCE,
    CONTEXT,
    PART_AS,
    COUNTERS_AT,
    RMW_AT,
    TRANSFERS_AT,
    N_START,
    N_END,
    N_CURSOR,
    N_FLUSH_NEXT,
    N_FLUSH_LAST,
    N_FLUSH_WHO,
    N_FLUSH_KICKED,
    N_RETURN,
    N_LEAF,
    N_LINE,
    N_LEAF_LEVEL,
    N_GFN,
    N_PENDING_FLUSH,
    N_PROGRESS,
    N_ACTIVE_NEXT,
    IS_VCPU,
    INDEX,
    HELD_PTL,
    HELD_MMAP,
    T_START,
    T_END,
    FINISHED,
) = range(38)

# A vCPU, and the struct kvm_page_fault of the fault it is in.
(
    V_N,
    V_HAVE,
    V_HITS,
    V_GFN,
    V_KIND,
    V_THINK,
    V_OWED,
    V_TLB_REQUEST,
    V_REQUEST_LINE,
    V_SEEN,
    V_SEQ,
    V_T0,
    V_CHAIN,
    V_FIRST_EVENT,
    V_TRIES,
    V_PRESENT,
    V_WRITABLE,
    V_GEN,
    V_PTE,
    V_FOLIO,
    V_REF,
    V_REF_T0,
    V_OUTCOME,
    V_LEVEL,
    V_LEAF,
    V_OLD,
    V_COW,
    V_UPGRADE,
    V_PAGES,
    V_COPY,
    V_LOOKS,
    V_OWN_FRAME,
    V_AROUND,
    V_PCP,
    V_LRU,
    V_GUEST,
    V_FAULTS,
    V_KICKED,
    V_ACCESSES,
    V_TAKEN,
    V_RETRIES,
    V_TRIES_MAX,
    V_LATENCY_MAX,
    V_PHASE,
    V_PHASE_N,
    V_PHASES_LEFT,
    V_LINK,
    V_LINK_LINE,
    V_LINK_OLD,
    V_LINK_LEVEL,
    V_LEAF_LINE,
    V_PTE_FOLIO,
    V_PML,
    V_PML_COUNT,
    V_PML_NEXT,
    V_BATCH,
    V_BATCH_COUNT,
    V_BATCH_NEXT,
    V_BATCH_REFS,
    V_UNLINK,
    V_UNLINK_NEXT,
    V_UNLINK_LEAVES,
    V_PARTS,
) = range(FINISHED + 1, FINISHED + 1 + 63)

VCPU_WORDS = V_PARTS + PART_COUNT

# One phase of a vCPU's workload; most workloads have one. They form a ring.
PHASE_WORDS = 19
(
    PH_KIND,
    PH_NEXT,
    PH_LIMIT,
    PH_ENDLESS,
    PH_THINK,
    PH_THINK_EXP,
    PH_WRITES,
    PH_EXECS,
    PH_BASE,
    PH_COUNT,
    PH_FIRST,
    PH_ORDER,
    PH_STRIDE,
    PH_TABLE,
    PH_BINS,
    PH_HOT_PAGES,
    PH_HOT_SHARE,
    PH_DRIFT,
    PH_DRIFT_EVERY,
) = range(PHASE_WORDS)

# What a share of all accesses is in PH_WRITES, PH_EXECS and PH_HOT_SHARE.
ALL_BITS = 32
# Zipf's ranks below 1 << ZIPF_SINGLE_BITS are a bin each; then an octave is 1 << ZIPF_OCTAVE_BITS bins.
ZIPF_SINGLE_BITS = 12
ZIPF_OCTAVE_BITS = 8
# A row of an alias table: threshold, in units of 1 / (1 << FRACTION_BITS), and alias.
ALIAS_WORDS = 2
FRACTION_BITS = 48

# A storm client.
(
    S_ARRIVAL,
    S_GAP,
    S_ON,
    S_OFF,
    S_SPAN,
    S_OFFSET,
    S_HOLD,
    S_ACTION,
    S_LIMIT,
    S_K,
    S_NOMINAL,
    S_BURST_T,
    S_HOLD_T0,
    S_PTE_CURSOR,
    S_CHANGED,
    S_BUSY_T0,
    S_BUSY_TRIES,
    S_WAITERS,
    S_ASKED,
    S_DONE,
    S_LATE,
    S_LATE_MAX,
    S_BUSY,
    S_SKIPPED,
    S_BUSY_NOW,
    S_START,
    S_END,
    S_SCAN,
    S_ROUND,
    S_TABLE,
    S_BITS,
    S_BITS_HIGH,
    S_BITS_GFN,
) = range(VCPU_WORDS, VCPU_WORDS + 33)

CLIENT_WORDS = S_BITS_GFN + 1

# A page table, KVM's or the host's: entries, a line for each eight of them, then the page-table lock.
TABLE_LINES = 512
TABLE_PTL = 576  # the host's
TABLE_NX = 576  # KVM's: nx_huge_page_disallowed
TABLE_WORDS = 580
# A FIFO spinlock.
PTL_LINE = 0
PTL_HELD = 1
PTL_HEAD = 2
PTL_TAIL = 3
PTL_WORDS = 4
# A folio: its line, and flags with the count of KVM's references in flight.
FOLIO_LINE = 0
FOLIO_STATE = 1
FOLIO_WORDS = 2
F_REFERENCED = 1
F_ACTIVE = 2
F_DIRTY = 4
F_ON_LRU = 8
F_RESERVED = 16
F_WORKINGSET = 32
F_LRU_REFS_SHIFT = 6
F_LRU_REFS = 3 << 6
F_TOGGLES = 256
F_REF_ONE = 1 << 32
F_FLAGS = F_REF_ONE - 1

# SPTE bits (kernel-facts of the NPT layout: P W U A D huge, software bits 9, 10 and 59).
SPTE_PRESENT = 1
SPTE_W = 2
SPTE_X = 4
SPTE_A = 1 << 5
SPTE_D = 1 << 6
SPTE_HUGE = 1 << 7
SPTE_HOST_W = 1 << 9
SPTE_MMU_W = 1 << 10
SPTE_TABLE = 1 << 11
SPTE_PFN_SHIFT = 12
SPTE_REFCOUNTED = 1 << 59
SPTE_PFN_MASK = (1 << 40) - 1
SPTE_FROZEN = 0x5A0
SPTE_REMOVED = 1 << 60  # frozen for good: an entry of a table that a huge leaf has replaced

# Host page-table entry: state, flags, the client that noted it, and the generation of the frame. The word of
# a 2M page of thp that is split holds P_SPLIT and its table instead.
(
    P_ABSENT,
    P_RW,
    P_RO,
    P_PROTNONE,
    P_MIGRATION,
    P_SPECIAL,
) = range(6)
P_STATE = 7
P_KSM = 8
P_FREED = 16
P_ZERO = 32
P_FILE = 64
P_COMPOUND = 128
P_SWAP = 256
P_SPLIT = 512
P_CLIENT_SHIFT = 10
P_CLIENT_MASK = 0xFFF << 10
P_GEN_SHIFT = 22
# A split 2M page: a table, then the folios of its pages' own frames.
SPLIT_WORDS = TABLE_WORDS + 512 * FOLIO_WORDS
# 512 pages of the dirty bitmap: a line, then 16 words of 32 bits.
BITMAP_WORDS = 17
PML_ENTRIES = 512
# A folio that is in a batch of puts: which, how many references, the sum of the times they were got at.
BATCH_FOLIO = 0
BATCH_REFS = 1
BATCH_T0 = 2
BATCH_WORDS = 3

# Backings.
(
    B_ANON,
    B_KSM,
    B_ZERO_PAGE,
    B_THP,
    B_HUGETLB_2M,
    B_HUGETLB_1G,
    B_PAGE_CACHE,
    B_DAX,
    B_PFNMAP,
    B_PFNMAP_STRUCT_PAGE,
    B_TAIL_PAGES,
) = range(11)

# When the reference is put.
(
    REF_HELD,
    REF_EARLY_PUT,
    REF_LOCKED_PUT,
    REF_NONE,
) = range(4)

# Which SPTEs carry the refcounted bit.
(
    BIT_NONE,
    BIT_4K,
    BIT_ALL,
) = range(3)

# When the page is marked dirty.
(
    DIRTY_AT_ZAP,
    DIRTY_AT_MAP,
    DIRTY_NONE,
) = range(3)

# When the page is marked accessed.
(
    ACCESSED_AFTER_UNLOCK,
    ACCESSED_BEFORE_UNLOCK,
    ACCESSED_LOCKED_RELEASE,
    ACCESSED_NONE,
) = range(4)

# LRU kinds.
(
    LRU_OFF,
    LRU_CLASSIC,
    LRU_MGLRU,
) = range(3)

# Access kinds.
(
    READ,
    WRITE,
    EXEC,
) = range(3)

# Outcomes (RET_PF_*).
(
    RET_RETRY,
    RET_FIXED,
    RET_SPURIOUS,
    RET_EMULATE,
    RET_ERROR,
) = range(5)

# Workload kinds.
(
    W_SWEEP,
    W_UNIFORM,
    W_REPLAY,
    W_STRIDED,
    W_ZIPF,
    W_HOT_COLD,
) = range(6)

# In which order a workload takes pages by number: as they are, permuted by the vCPU, or alike for all.
(
    ORDER_SEQUENTIAL,
    ORDER_OWN,
    ORDER_SHARED,
) = range(3)

# Arrival processes.
(
    ARR_POISSON,
    ARR_PERIODIC,
    ARR_CLOSED,
    ARR_BURSTS,
) = range(4)

# Where a storm's span lies, if not at a fixed page (S_OFFSET).
PLACE_RANDOM = -1
PLACE_SCAN = -2

# Storm actions.
(
    ACT_MADVISE,
    ACT_NUMA,
    ACT_MIGRATION,
    ACT_FORK,
    ACT_AGE,
    ACT_KSM,
    ACT_KHUGEPAGED,
    ACT_MPROTECT,
    ACT_RECLAIM,
    ACT_CLEAR_DIRTY_LOG,
) = range(10)

# Lock modes.
MODE_READ = 0
MODE_WRITE = 1

# Counters, as names.COUNTERS.
COUNTER_COUNT = 64
(
    K_PF_TAKEN,
    K_PF_FIXED,
    K_PF_SPURIOUS,
    K_PF_EMULATE,
    K_PF_ERROR,
    K_PF_FAST,
    K_RETRY_PRE_GUP_RANGE,
    K_RETRY_PRE_GUP_FALSE_RANGE,
    K_RETRY_PRE_GUP_SEQ,
    K_RETRY_POST_GUP_RANGE,
    K_RETRY_POST_GUP_FALSE_RANGE,
    K_RETRY_POST_GUP_SEQ,
    K_RETRY_LOCKED_RANGE,
    K_RETRY_LOCKED_FALSE_RANGE,
    K_RETRY_LOCKED_SEQ,
    K_RETRY_RACE_LEAF,
    K_RETRY_RACE_PARENT,
    K_RETRY_RACE_FROZEN,
    K_RETRY_OTHER,
    K_INSTALLS,
    K_PAGES_4K,
    K_PAGES_2M,
    K_PAGES_1G,
    K_TABLES_BUILT,
    K_TABLES_LOST,
    K_TABLES_FREED,
    K_HUGE_SPLITS,
    K_GUP_FAST_MISS,
    K_HOST_FAULTS,
    K_HOST_FAULTS_LOST,
    K_COW_BREAKS,
    K_NUMA_HINTS,
    K_MIGRATION_WAITS,
    K_SWAP_INS,
    K_SWAP_OUTS,
    K_KSM_MERGES,
    K_THP_SPLITS,
    K_THP_COLLAPSES,
    K_PML_FULL,
    K_REMOTE_TLB_FLUSH,
    K_REMOTE_TLB_FLUSH_REQUESTS,
    K_KICKS,
    K_HOST_IPIS,
    K_INVALIDATIONS,
    K_INVALIDATIONS_SELF,
    K_ZAPPED,
    K_AGED,
    K_ZAP_YIELDS,
    K_STALE_USES,
    K_FREED_USES,
    K_GETS,
    K_PUTS,
    K_REFERENCE_HOLD_PS,
    K_STORM_ASKED,
    K_STORM_DONE,
    K_STORM_LATE,
    K_STORM_SKIPPED,
    K_HOST_OP_BUSY,
    K_LOCK_WAIT_MMU_LOCK_READ,
    K_LOCK_WAIT_MMU_LOCK_WRITE,
    K_LOCK_WAIT_MMAP_LOCK_READ,
    K_LOCK_WAIT_MMAP_LOCK_WRITE,
    K_LOCK_WAIT_PTL_EXCLUSIVE,
    K_ACCESSES,
) = range(COUNTER_COUNT)

# Lines of `rmw`, as names.RMW_LINES.
LINE_COUNT = 13
(
    X_FOLIO,
    X_MMU_LOCK,
    X_STAT_PAGES,
    X_SPTE,
    X_PAGE_TABLE,
    X_MMAP_LOCK,
    X_PTL,
    X_MN_LOCK,
    X_DIRTY_BITMAP,
    X_VCPU_REQUEST,
    X_LOCAL,
    X_HOST,
    X_HOST_FOLIO,
) = range(LINE_COUNT)
CTX_FAULT = 0
CTX_ZAP = 1

# Distances, as names.DISTANCES.
DISTANCE_COUNT = 6
(
    D_OWN,
    D_CORE,
    D_LLC,
    D_SOCKET,
    D_REMOTE,
    D_MEMORY,
) = range(DISTANCE_COUNT)

# Timeline columns, as names.TIMELINE.
TIMELINE_COUNT = 6
(
    TL_TAKEN,
    TL_RESOLVED,
    TL_RETRIES,
    TL_INVALIDATIONS,
    TL_ZAPPED,
    TL_WASTED_PS,
) = range(TIMELINE_COUNT)

# Steps, as names.STEPS.
(
    PC_ACCESS,
    PC_HANDLE,
    PC_FAST_PAGE_FAULT,
    PC_FAST_DIRTY,
    PC_PML_FLUSH,
    PC_GUP,
    PC_GET,
    PC_EARLY_PUT,
    PC_GOT,
    PC_PRECHECK,
    PC_SLOW,
    PC_MM_FAULT,
    PC_ALLOC,
    PC_FILL,
    PC_COW_LOCK,
    PC_INSTALL,
    PC_MAP_FILE,
    PC_INSTALLED,
    PC_LRU_ADD,
    PC_FOLLOW_LOCK,
    PC_FOLLOW,
    PC_PFN_GET,
    PC_REMAP,
    PC_REMAPPED,
    PC_MAPPED,
    PC_LINK,
    PC_SPLIT_STATS,
    PC_TABLE_COUNT,
    PC_FREEZE,
    PC_FREEZE_STATS,
    PC_FROZEN,
    PC_RELEASE_UNUSED,
    PC_LEAF,
    PC_SET_LEAF,
    PC_UNLINK,
    PC_UNLINK_COUNT,
    PC_UNLINK_STATS,
    PC_UNLINK_MARK,
    PC_STATS,
    PC_RELEASE,
    PC_RELEASE_CLEAN,
    PC_DRAIN_PUTS,
    PC_FINISH,
    PC_READ_LOCK,
    PC_WRITE_LOCK,
    PC_QUEUE_HEAD,
    PC_WRITE_GRANT,
    PC_READ_UNLOCK,
    PC_WRITE_UNLOCK,
    PC_MMAP_LOCK,
    PC_OWNER_LOAD,
    PC_OWNER_STORE,
    PC_MMAP_UNLOCK,
    PC_PTL_LOCK,
    PC_PTL_UNLOCK,
    PC_FLUSH,
    PC_HOST_FLUSH,
    PC_START,
    PC_START_LOCKED,
    PC_ZAP,
    PC_ZAP_MARK,
    PC_YIELD,
    PC_RELOCK,
    PC_RESUME,
    PC_FLUSHED,
    PC_STARTED,
    PC_END,
    PC_END_LOCKED,
    PC_ENDED,
    PC_IDLE,
    PC_CUT,
    PC_SPLIT,
    PC_SPLIT_FLUSHED,
    PC_PTES,
    PC_PTE_END,
    PC_AFTER,
    PC_RESTORE,
    PC_COLLAPSE,
    PC_COLLAPSE_FLUSHED,
    PC_COLLAPSED,
    PC_OVER,
    PC_AGE,
    PC_AGED,
    PC_SYNC_DIRTY_LOG,
    PC_CLEAR_DIRTY,
    PC_CLEAR_LEAF,
    PC_CLEAR_MARK,
    PC_CLEARED,
    PC_DONE,
    PC_STOPPED,
) = range(90)

HIST_SUB_BITS = 6
HIST_BUCKETS = 3136
TRIES_BUCKETS = 64
