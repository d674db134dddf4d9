/* Threads: those of torch's OpenMP, so that no others wait beside them. Where torch has another
 * OpenMP than GNU's, there is one. */
#pragma once
#include <immintrin.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

#define PATIENCE 10000 /* looks at a gate until the core is offered to others */

extern void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned) __attribute__((weak));
extern int omp_get_thread_num(void) __attribute__((weak));
extern int omp_get_num_threads(void) __attribute__((weak));

typedef struct { /* where threads wait for each other; zero at first */
    atomic_int arrived, opened;
} Gate;

typedef struct {
    int64_t number, of;
    Gate *gate;
} Thread;

static int several(void) { return GOMP_parallel && omp_get_thread_num && omp_get_num_threads; }

static void together(void (*run)(void *), void *data, int64_t threads) {
    if (several())
        GOMP_parallel(run, data, (unsigned)threads, 0);
    else
        run(data);
}

static Thread self(Gate *gate) {
    if (several())
        return (Thread){omp_get_thread_num(), omp_get_num_threads(), gate};
    return (Thread){0, 1, gate};
}

/* Go on when all have come. OpenMP's own barrier sleeps at once where other threads of the process
 * have computed as well, and there are hundreds of them in a step. */
static void meet(Thread me) {
    int before = atomic_load(&me.gate->opened);
    if (me.of == 1)
        return;
    if (atomic_fetch_add(&me.gate->arrived, 1) + 1 == me.of) {
        atomic_store(&me.gate->arrived, 0);
        atomic_store(&me.gate->opened, before + 1);
        return;
    }
    for (int64_t looks = 0; atomic_load(&me.gate->opened) == before; looks++) {
        if (looks < PATIENCE)
            _mm_pause();
        else
            sched_yield();
    }
}

static inline int64_t share(int64_t n, Thread me) { return n * me.number / me.of; }

static inline Thread next(Thread me) { return (Thread){me.number + 1, me.of, me.gate}; }

#define MINE(i, n) (int64_t i = share(n, me); i < share(n, next(me)); i++)
