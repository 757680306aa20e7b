/*
 * The fault path and its notifier clients under sequential consistency: one page, two frames.
 *
 * Written for SPIN apart from kvmpfn/protocol, from the same description (docs/protocol.md): each d_step is
 * one access, and what a thread has read is forgotten when it is last used, so that the states can be counted
 * against the explorer's. Macros choose the path and what is wrong with it:
 *
 *   VCPUS, CLIENTS    how many
 *   REFERENCE         0 none, 1 held, 2 put early
 *   MARK              whether the page is marked accessed after unlock, on RETRY too, and at the zap
 *   UNGUARDED         the notifier does not zap
 *   NO_CHECK          staleness is not checked
 *   RANGE_ALONE, SEQ_ALONE, LATE_SNAPSHOT, NO_FLUSH, SWAPPED, NO_DECREMENT, NO_UNLOCK
 *   COMPLETION        state it as a formula, to be checked under weak fairness
 */
#define WRITER 255
#define FRAME(entry) (((entry) - 1) % 2)
#define GENERATION(entry) (((entry) - 1) / 2)
#define FREED(entry) (generation[FRAME(entry)] != GENERATION(entry))

byte seq, in_progress, range_start, range_end, mmu_lock, spte;
byte pte = 3; /* frame 0 in its first generation */
byte refcount[2], generation[2], tlb[VCPUS], over;
bool request[VCPUS], in_guest[VCPUS];

/* No vCPU goes by a translation that the host does not back. */
inline check() {
	do
	:: user < VCPUS ->
		assert(!(in_guest[user] && tlb[user]) || (tlb[user] == pte && !FREED(tlb[user])));
		user++
	:: else -> break
	od;
	user = 0
}

inline put(entry) {
	assert(refcount[FRAME(entry)] > 0);
	refcount[FRAME(entry)]--;
	if
	:: refcount[FRAME(entry)] == 0 && generation[FRAME(entry)] % 2 -> generation[FRAME(entry)]++
	:: else
	fi
}

/* Map a free frame, if the page is absent. */
inline populate() {
	if
	:: pte == 0 && generation[0] % 2 == 0 -> generation[0]++; refcount[0] = 1; pte = 1 + 2 * generation[0]
	:: pte == 0 && generation[0] % 2 == 1 -> generation[1]++; refcount[1] = 1; pte = 2 + 2 * generation[1]
	:: else
	fi
}

#define MAPPABLE (pte || generation[0] % 2 == 0 || generation[1] % 2 == 0)

/* Forget what the check has read, and go on to the walk, or with RETRY to the unlock. */
#define JUDGED(stale) \
	next = (stale -> UNLOCK : WALK); retry = (stale) && MARK; \
	now_in_progress = 0; now_start = 0; now_end = 0; snapshot = 0

#ifdef NO_CHECK
#define FIRST WALK
#elif defined(SEQ_ALONE)
#define FIRST SEQUENCE
#else
#define FIRST PROGRESS
#endif

#ifdef RANGE_ALONE
#define NOT_IN_RANGE JUDGED(false)
#else
#define NOT_IN_RANGE next = SEQUENCE
#endif

#define RESOLVE populate(); pfn = pte; first = 0; check()

mtype = { PROGRESS, START, END, SEQUENCE, WALK, EXCHANGE, UNLOCK };

proctype vcpu(byte self) {
	byte snapshot, first, again, pfn, now_in_progress, now_start, now_end, old, user;
	mtype next;
	bool retry;

resolves:
#ifndef LATE_SNAPSHOT
	if
	:: d_step { snapshot = seq }
	fi;
#endif
	if
	:: d_step { first = pte }
	fi;
#if REFERENCE
	if
	:: d_step { first && refcount[FRAME(first)] -> refcount[FRAME(first)]++ }
	:: d_step { first && !refcount[FRAME(first)] -> skip }; goto slow
	:: d_step { !first && MAPPABLE -> RESOLVE; refcount[FRAME(pfn)]++ }; goto resolved
	fi;
	d_step { again = pte; if :: again == first -> pfn = first; first = 0 :: else fi; again = 0 };
#else
	if
	:: d_step { first -> again = pte; if :: again == first -> pfn = first; first = 0 :: else fi; again = 0 }
	:: d_step { !first && MAPPABLE -> RESOLVE }
	fi;
#endif
resolved:
	if
#if REFERENCE
	:: d_step { !pfn -> put(first) }; goto slow
#else
	:: d_step { !pfn && MAPPABLE -> RESOLVE }; goto resolved
#endif
#if REFERENCE == 2
	:: d_step { pfn -> put(pfn) }
	fi;
	if
#endif
#ifdef LATE_SNAPSHOT
	:: d_step { pfn -> snapshot = seq }
	fi;
	if
#endif
	:: d_step { pfn && mmu_lock != WRITER -> mmu_lock++; next = FIRST }
	fi;
locked:
	if
	:: d_step {
		next == PROGRESS ->
		now_in_progress = in_progress;
		if
		:: now_in_progress -> next = START
		:: else -> NOT_IN_RANGE
		fi
	   };
	   goto locked
	:: d_step { next == START -> now_start = range_start; next = END }; goto locked
	:: d_step {
		next == END ->
		now_end = range_end;
		if
		:: now_start <= 0 && 0 < now_end -> JUDGED(true)
		:: else -> NOT_IN_RANGE
		fi
	   };
	   goto locked
	:: d_step { next == SEQUENCE -> JUDGED(seq != snapshot) }; goto locked
	:: d_step { next == WALK -> old = spte; next = EXCHANGE; if :: old == pfn -> next = UNLOCK; old = 0 :: else fi };
	   goto locked
	:: d_step {
		next == EXCHANGE ->
		assert(spte != old || old == 0);
		if
		:: spte == old -> spte = pfn
		:: else -> retry = MARK
		fi;
		old = 0; next = UNLOCK
	   };
	   goto locked
	:: d_step {
		next == UNLOCK ->
		mmu_lock--; next = 0;
#if !MARK && REFERENCE != 1
		pfn = 0
#endif
	   }
	fi;
#if MARK
	d_step {
		assert(!FREED(pfn)); retry = 0;
#if REFERENCE != 1
		pfn = 0
#endif
	};
#endif
#if REFERENCE == 1
	d_step { put(pfn); pfn = 0; check() };
#endif
	goto enters;
#if REFERENCE
slow:
	if
	:: d_step { MAPPABLE -> RESOLVE; refcount[FRAME(pfn)]++ }; goto resolved
	fi;
#endif
enters:
	if
	:: d_step { request[self] -> request[self] = 0; tlb[self] = 0 }; goto enters
	:: d_step { !request[self] -> in_guest[self] = 1; check() }
	fi;
end_guest:
	if
	:: d_step { request[self] -> in_guest[self] = 0 }; goto enters
	:: d_step { !tlb[self] && spte -> tlb[self] = spte; check() }; goto end_guest
	:: d_step { !tlb[self] && !spte -> in_guest[self] = 0 }; goto resolves
	fi
}

proctype client() {
	byte was, low, high, leaf, gone, user;
	byte now_seq, now_in_progress;

	d_step {
		mmu_lock == 0 ->
		mmu_lock = WRITER; was = in_progress; low = range_start; high = range_end;
#ifndef UNGUARDED
		leaf = spte
#endif
	};
	d_step { in_progress = was + 1 };
	d_step { range_start = (was -> low : 0); low = 0 };
	d_step { range_end = (was && high > 1 -> high : 1); high = 0; was = 0 };
zaps:
	if
	:: d_step { !leaf -> mmu_lock = 0 }
	:: d_step { leaf -> spte = 0 };
#if MARK
	   d_step { assert(!FREED(leaf)) };
#endif
#ifndef NO_FLUSH
	   d_step { request[0] = 1 };
#if VCPUS > 1
	   d_step { request[1] = 1 };
#endif
#if VCPUS > 1
	   d_step { !(request[0] && in_guest[0]) && !(request[1] && in_guest[1]) -> leaf = 0 };
#else
	   d_step { !(request[0] && in_guest[0]) -> leaf = 0 };
#endif
	   goto zaps
#else
	   d_step { mmu_lock = 0; leaf = 0 }
#endif
	fi;
	d_step { gone = pte; pte = 0; check() };
unmapped:
	if
	:: d_step { gone -> put(gone); gone = 0; check() }; goto unmapped
	:: d_step { !gone && mmu_lock == 0 -> mmu_lock = WRITER; now_seq = seq; now_in_progress = in_progress }
	fi;
#ifndef SWAPPED
	d_step { seq = now_seq + 1; now_seq = 0 };
#endif
#ifndef NO_DECREMENT
	d_step { in_progress = now_in_progress - 1; now_in_progress = 0 };
#endif
#ifdef SWAPPED
	d_step { seq = now_seq + 1; now_seq = 0 };
#endif
	d_step {
#ifndef NO_UNLOCK
		mmu_lock = 0;
#endif
		over++
	};
end_over:
	false
}

#define SETTLED(v) (in_guest[v] && tlb[v] && !request[v])

/* Completion: once no client is on its way, every vCPU comes to have a translation for good. */
#ifdef COMPLETION
#if VCPUS > 1
ltl completion { [] (over == CLIENTS -> <> (SETTLED(0) && SETTLED(1))) }
#else
ltl completion { [] (over == CLIENTS -> <> SETTLED(0)) }
#endif
#endif

/* One state more than the explorer counts: the one before this. */
init {
	atomic {
		refcount[0] = 1; generation[0] = 1;
		run vcpu(0);
#if VCPUS > 1
		run vcpu(1);
#endif
		run client();
#if CLIENTS > 1
		run client();
#endif
	}
}
