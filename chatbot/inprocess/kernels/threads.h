/* Threads: those of torch's OpenMP, so that no others wait beside them. Where torch has another
 * OpenMP than GNU's, there is one. */
#pragma once
#include <stdint.h>

extern void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned) __attribute__((weak));
extern void GOMP_barrier(void) __attribute__((weak));
extern int omp_get_thread_num(void) __attribute__((weak));
extern int omp_get_num_threads(void) __attribute__((weak));

typedef struct {
    int64_t number, of;
} Thread;

static void together(void (*run)(void *), void *data, int64_t threads) {
    if (GOMP_parallel && GOMP_barrier && omp_get_thread_num && omp_get_num_threads)
        GOMP_parallel(run, data, (unsigned)threads, 0);
    else
        run(data);
}

static Thread self(void) {
    if (GOMP_parallel && omp_get_thread_num && omp_get_num_threads)
        return (Thread){omp_get_thread_num(), omp_get_num_threads()};
    return (Thread){0, 1};
}

static void meet(Thread me) {
    if (me.of > 1)
        GOMP_barrier();
}

static inline int64_t share(int64_t n, Thread me) { return n * me.number / me.of; }

static inline Thread next(Thread me) { return (Thread){me.number + 1, me.of}; }

#define MINE(i, n) (int64_t i = share(n, me); i < share(n, next(me)); i++)
