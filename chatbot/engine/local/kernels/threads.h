/* Threads: those of torch's OpenMP, since a second pool would wait beside them. Where torch brings
 * another OpenMP than GNU's, whose symbols are then missing, everything runs on one thread. */
#pragma once
#include <immintrin.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

#define SPINS_BEFORE_YIELD 10000 /* checks of a barrier before the core is offered to others */

extern void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned) __attribute__((weak));
extern int omp_get_thread_num(void) __attribute__((weak));
extern int omp_get_num_threads(void) __attribute__((weak));

/* A barrier that can be used again and again; zero at first. */
typedef struct {
    atomic_int arrived;    /* threads that are waiting */
    atomic_int generation; /* how often it has opened */
} Barrier;

typedef struct {
    int64_t index, count;
    Barrier *barrier;
} Thread;

static int has_openmp(void) { return GOMP_parallel && omp_get_thread_num && omp_get_num_threads; }

/* Run `run(data)` on so many threads at once. */
static void parallel(void (*run)(void *), void *data, int64_t threads) {
    if (has_openmp())
        GOMP_parallel(run, data, (unsigned)threads, 0);
    else
        run(data);
}

/* The calling thread, within `parallel`. */
static Thread this_thread(Barrier *barrier) {
    if (has_openmp())
        return (Thread){omp_get_thread_num(), omp_get_num_threads(), barrier};
    return (Thread){0, 1, barrier};
}

/* Wait until all threads have arrived. OpenMP's own barrier puts threads to sleep at once where
 * other threads of the process have computed as well, and a forward has hundreds of barriers: this
 * one spins first. */
static void barrier_wait(Thread me) {
    int before = atomic_load(&me.barrier->generation);
    if (me.count == 1)
        return;
    if (atomic_fetch_add(&me.barrier->arrived, 1) + 1 == me.count) {
        atomic_store(&me.barrier->arrived, 0); /* before it opens: who leaves may come again */
        atomic_store(&me.barrier->generation, before + 1);
        return;
    }
    for (int64_t spins = 0; atomic_load(&me.barrier->generation) == before; spins++) {
        if (spins < SPINS_BEFORE_YIELD)
            _mm_pause();
        else
            sched_yield();
    }
}

/* Where a thread's share of n items begins and ends. Shares do not depend on timing, so that the
 * same thread comes to the same items, and their memory, again and again. */
static inline int64_t share_begin(int64_t n, Thread me) { return n * me.index / me.count; }

static inline int64_t share_end(int64_t n, Thread me) { return n * (me.index + 1) / me.count; }

#define FOR_SHARE(i, n) for (int64_t i = share_begin(n, me); i < share_end(n, me); i++)
