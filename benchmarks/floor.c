/*
 * A yardstick for the engine's speed: a much smaller model of the same thing in plain C.
 *
 * Virtual CPUs fault on uniformly random pages while two clients invalidate spans of them. What is kept of the
 * real model is what any such program must do: a queue of events, one record a page, one lock, the sequence
 * count with its window from snapshot to check, and the draws (Philox4x32-10, docs/model.md 3), so that vCPU
 * number i touches the same pages here as there. An attempt is two events, where the real model has about
 * seventeen. Its window is an argument, by which the share of retries is brought to that of the run it is
 * compared with: a retry misses no cache, so that programs with other shares do not compare.
 *
 * With prefetching, the record of a vCPU's next page is asked for an access ahead. As many vCPUs as there are
 * go through the queue in between, so that no event waits for memory: the most that reordering loads can give.
 *
 * Printed are the run's numbers, equal with and without prefetching, and the seconds of CPU time it took.
 */
#include <inttypes.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { GFN = 0, GAP = 3, PLACE = 4, START = 7 };           /* purposes of draws */
enum { CLIENTS = 2, ACTOR_BITS = 11, MAX_ACTORS = 1 << ACTOR_BITS };
enum { ACCESS, LOCK, IDLE, BEGIN, END };                   /* steps */

/* Costs in ps. How large they are moves nothing but the order of events. */
#define HIT 1000
#define HANDOFF 50000  /* a line from another thread */
#define OWN 6000       /* a line that is there already */
#define LOCKED 20000   /* for how long a fault keeps the lock's line */
#define RETURN 500000  /* exit and entry */
#define ZAP 10000      /* a page of an invalidated span */

struct page {
	int64_t busy;      /* the time at which its line is free again */
	int32_t owner;     /* who has the line */
	int32_t mapped;
};

struct actor {
	int64_t n;         /* draws so far */
	int64_t page;      /* a vCPU's page, or the first of a client's span */
	uint64_t seq;      /* the count at the snapshot */
	int step;
	int active;        /* a client between start and end */
	int64_t due;       /* a client's next arrival */
};

static struct actor actors[MAX_ACTORS];
static int64_t heap[MAX_ACTORS];
static int queued;
static uint32_t key[2];

static uint64_t draw(int64_t n, uint32_t actor, uint32_t purpose)
{
	uint32_t x[4] = { (uint32_t)n, (uint32_t)((uint64_t)n >> 32), actor, purpose };
	uint32_t a = key[0], b = key[1];

	for (int i = 0; i < 10; i++) {
		uint64_t p = UINT64_C(0xD2511F53) * x[0], q = UINT64_C(0xCD9E8D57) * x[2];
		uint32_t y[4] = { (uint32_t)(q >> 32) ^ x[1] ^ a, (uint32_t)q,
				  (uint32_t)(p >> 32) ^ x[3] ^ b, (uint32_t)p };
		memcpy(x, y, sizeof(x));
		a += 0x9E3779B9;
		b += 0xBB67AE85;
	}
	return (uint64_t)x[0] << 32 | x[1];
}

static int64_t below(int64_t n, uint32_t actor, uint32_t purpose, int64_t bound)
{
	return (int64_t)((unsigned __int128)draw(n, actor, purpose) * (uint64_t)bound >> 64);
}

/* By libm: nobody compares these times to the bit. */
static int64_t exponential(int64_t n, uint32_t actor, int64_t mean)
{
	double u = ((double)(draw(n, actor, GAP) >> 11) + 0.5) * 0x1p-53;

	return (int64_t)((double)mean * -log(u));
}

/*
 * Put an event into the hole at `hole`. Every event has one successor, which takes its place at the top. It is
 * later than most, so the hole goes down to a leaf first, without a branch that could be mispredicted.
 */
static void sift(int hole, int64_t event)
{
	int top = hole;

	for (int child = 2 * hole + 1; child < queued; child = 2 * hole + 1) {
		child += child + 1 < queued && heap[child + 1] < heap[child];
		heap[hole] = heap[child];
		hole = child;
	}
	while (hole > top && heap[(hole - 1) >> 1] > event) {
		heap[hole] = heap[(hole - 1) >> 1];
		hole = (hole - 1) >> 1;
	}
	heap[hole] = event;
}

/* The actor whose event is at the top gets its next one. */
static void schedule(int actor, int step, int64_t time)
{
	actors[actor].step = step;
	sift(0, time << ACTOR_BITS | actor);
}

/* Ask for a line that is free at *busy, and keep it for `hold`; returns the time at which it was granted. */
static int64_t take(int64_t *busy, int64_t now, int64_t hold)
{
	int64_t grant = now > *busy ? now : *busy;

	*busy = grant + hold;
	return grant;
}

/* is_page_fault_stale(): an invalidation finished since the snapshot, or one of this page is under way. */
static int stale(const struct actor *a, uint64_t seq, int clients, int64_t span)
{
	int found = a->seq != seq;

	for (int c = 0; c < clients; c++)
		found |= actors[c].active && (uint64_t)(a->page - actors[c].page) < (uint64_t)span;
	return found;
}

static int64_t cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int main(int argc, char **argv)
{
	if (argc != 10) {
		fprintf(stderr, "usage: floor PAGES VCPUS FAULTS SEED GAP_PS SPAN HOLD_PS WINDOW_PS PREFETCH\n");
		return 2;
	}
	int64_t pages = atoll(argv[1]);
	int vcpus = atoi(argv[2]);
	int64_t faults = atoll(argv[3]);
	uint64_t seed = strtoull(argv[4], NULL, 10);
	int64_t gap = atoll(argv[5]), span = atoll(argv[6]), hold = atoll(argv[7]), window = atoll(argv[8]);
	int prefetch = atoi(argv[9]);
	int clients = gap ? CLIENTS : 0;

	if (pages < 1 || vcpus < 1 || vcpus + CLIENTS >= MAX_ACTORS || faults < 1 || span < 1 || span > pages) {
		fprintf(stderr, "floor: a number is out of range\n");
		return 2;
	}
	key[0] = (uint32_t)seed;
	key[1] = (uint32_t)(seed >> 32);

	/* The clock includes the memory, as it does where a simulation is timed; huge pages as numpy asks. */
	int64_t began = cpu_ns();
	struct page *all = mmap(NULL, (size_t)pages * sizeof(*all), PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (all == MAP_FAILED) {
		perror("floor: mmap");
		return 1;
	}
	madvise(all, (size_t)pages * sizeof(*all), MADV_HUGEPAGE);

	int64_t taken = 0, fixed = 0, retry = 0, hits = 0, zapped = 0, mapped = 0, events = 0, now = 0;
	int64_t lock = 0;
	uint64_t seq = 0;

	for (int i = 0; i < clients + vcpus; i++) {
		struct actor *a = &actors[i];

		a->due = below(0, i, START, 10000000);
		if (i < clients)
			a->due += exponential(0, i, gap);
		else
			a->page = below(0, i, GFN, pages);
		a->step = i < clients ? IDLE : ACCESS;
		heap[i] = a->due << ACTOR_BITS | i;
	}
	queued = clients + vcpus;
	for (int i = queued / 2; i-- > 0; )
		sift(i, heap[i]);
	/* Without clients a page that is mapped stays so, and nothing can fault when all are. */
	while (taken < faults && (clients || mapped < pages)) {
		int64_t event = heap[0];
		int i = event & (MAX_ACTORS - 1);
		struct actor *a = &actors[i];
		struct page *page = &all[a->page];
		int64_t t;

		events++;
		now = event >> ACTOR_BITS;
		switch (a->step) {
		case ACCESS:
			if (!page->mapped) {
				taken++;
				a->seq = seq;
				schedule(i, LOCK, now + window);
				break;
			}
			hits++;
			t = now + HIT;
			goto next_page;
		case LOCK:
			t = take(&lock, now, LOCKED);
			if (stale(a, seq, clients, span)) {
				retry++;
				schedule(i, ACCESS, t + RETURN);
				break;
			}
			t = take(&page->busy, t, OWN) + (page->owner == i ? OWN : HANDOFF) + RETURN;
			page->owner = i;
			mapped += !page->mapped;
			page->mapped = 1;
			fixed++;
next_page:
			a->page = below(++a->n, i, GFN, pages);
			if (prefetch)
				__builtin_prefetch(&all[a->page], 1);
			schedule(i, ACCESS, t);
			break;
		case IDLE:
			a->page = below(a->n, i, PLACE, pages - span + 1);
			schedule(i, BEGIN, take(&lock, now, LOCKED));
			break;
		case BEGIN:
			a->active = 1;
			t = take(&lock, now, ZAP * span);
			for (int64_t p = a->page; p < a->page + span; p++) {
				zapped += all[p].mapped;
				mapped -= all[p].mapped;
				all[p].mapped = 0;
			}
			schedule(i, END, t + ZAP * span + hold);
			break;
		case END:
			a->active = 0;
			seq++;
			a->due += exponential(++a->n, i, gap);
			schedule(i, IDLE, a->due > now ? a->due : now);
			break;
		}
	}

	double seconds = (double)(cpu_ns() - began) * 1e-9;
	struct actor *first = &actors[clients];

	printf("{\"taken\": %" PRId64 ", \"fixed\": %" PRId64 ", \"retry\": %" PRId64 ", \"hits\": %" PRId64
	       ", \"zapped\": %" PRId64 ", \"events\": %" PRId64 ", \"end_ps\": %" PRId64
	       ", \"first_vcpu\": [%" PRId64 ", %" PRId64 "], \"seconds\": %.9f}\n",
	       taken, fixed, retry, hits, zapped, events, now, first->n, first->page, seconds);
	return 0;
}
