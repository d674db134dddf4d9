/* Products of tokens with a matrix. */
#pragma once
#include "numbers.h"
#include "threads.h"

#define TALL 9     /* tokens of a tile: their sums stay in 18 registers, two a token */
#define AHEAD 2048 /* bytes that come from memory early */

enum { ADDED = 1, BIASED = 2 }; /* to what is there already, and with a bias */

/* sum + a b, dword by dword. Assembler, since gcc copies these sums to other registers and back. */
#define DOT(instruction, sum, a, b) \
    __asm__(instruction " %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b))

static inline __attribute__((always_inline)) __m512i
dot(const int kind, __m512i sum, __m512i a, __m512i b) {
    if (kind == F32)
        DOT("vfmadd231ps", sum, a, b);
    else if (kind == I8)
        DOT("vpdpbusd", sum, a, b);
    else {
#ifdef __AVX512BF16__
        DOT("vdpbf16ps", sum, a, b);
#else
        __m512i high = _mm512_set1_epi32(0xffff0000);
        DOT("vfmadd231ps", sum, _mm512_slli_epi32(a, 16), _mm512_slli_epi32(b, 16));
        DOT("vfmadd231ps", sum, _mm512_and_si512(a, high), _mm512_and_si512(b, high));
#endif
    }
    return sum;
}

typedef struct { /* a column of a matrix */
    const uint8_t *panels;
    const float *scale, *bias;
    int64_t units, groups, outs;
} Column;

/* gcc keeps sums in registers that have names, and not those of an array. */
#define EACH(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8)
#define BEGIN(r) \
    __m512i left##r = _mm512_setzero_si512(), right##r = left##r;
#define AGAIN(r) \
    if (r < tall && kind == I8) \
        left##r = right##r = _mm512_set1_epi32(x[r][w.units + 2 * g + 1]);
#define GO_ON(r) \
    if (r < tall) { \
        __m512i here = _mm512_set1_epi32(x[r][u]); \
        left##r = dot(kind, left##r, left, here); \
        right##r = dot(kind, right##r, right, here); \
    }
#define SCALE(r) \
    if (r < tall && kind == I8) { \
        __m512 scale = _mm512_set1_ps(((const float *)x[r])[w.units + 2 * g]); \
        total[r][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(left##r), scale, total[r][0]); \
        total[r][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(right##r), scale, total[r][1]); \
        left##r = (__m512i)total[r][0]; \
        right##r = (__m512i)total[r][1]; \
    }
#define END(r) \
    if (r < tall) { \
        finish(kind, y[r], (__m512)left##r, w.scale, w.bias, first(w.outs), add); \
        finish(kind, y[r] + LANES, (__m512)right##r, w.scale + LANES, w.bias + LANES, \
               first(w.outs - LANES), add); \
    }

static inline __attribute__((always_inline)) void
finish(const int kind, float *y, __m512 x, const float *scale, const float *bias, __mmask16 here,
       int add) {
    if (kind == I8)
        x = _mm512_mul_ps(x, _mm512_maskz_loadu_ps(here, scale));
    if (add & BIASED)
        x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(here, bias));
    if (add & ADDED)
        x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(here, y));
    _mm512_mask_storeu_ps(y, here, x);
}

/* y[r] = (or +=) x[r] times the column, for `tall` rows. */
static inline __attribute__((always_inline)) void
tile(const int kind, const int tall, float **y, const int32_t **x, Column w, int add) {
    __m512 total[TALL][2] = {0};
    int64_t size = w.units / w.groups;
    EACH(BEGIN)
    for (int64_t g = 0; g < w.groups; g++) {
        EACH(AGAIN)
        for (int64_t u = g * size; u < (g + 1) * size; u++) {
            const uint8_t *both = w.panels + u * 128;
            _mm_prefetch(both + AHEAD, _MM_HINT_T0);
            _mm_prefetch(both + AHEAD + 64, _MM_HINT_T0);
            __m512i left = _mm512_loadu_si512(both), right = _mm512_loadu_si512(both + 64);
            EACH(GO_ON)
        }
        EACH(SCALE)
    }
    EACH(END)
}

#define CASE(n) \
    case n: tile(kind, n, y, x, w, add); break;

static inline __attribute__((always_inline)) void
of_kind(const int kind, int64_t tall, float **y, const int32_t **x, Column w, int add) {
    switch (tall) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9)
    }
}

/* Columns `from` to `to` of a product: of all n tokens, or of those that `which` names. */
static void product(const Matrix *m, int64_t from, int64_t to, Rows y, Rows x,
                    const int64_t *which, int64_t n, int add) {
    int64_t units = m->in / m->kind, tiles = up_to(n, TALL);
    if (m->bias)
        add |= BIASED;
    for (int64_t out = from * COLUMN; out < to * COLUMN; out += COLUMN) {
        Column w = {m->panels + out / COLUMN * units * 128, m->scale + out, m->bias + out, units,
                    m->groups, m->out - out};
        for (int64_t t = 0; t < tiles; t++) {
            int64_t begin = n * t / tiles, tall = n * (t + 1) / tiles - begin;
            float *ys[TALL];
            const int32_t *xs[TALL];
            for (int64_t r = 0; r < tall; r++) {
                int64_t token = which ? which[begin + r] : begin + r;
                ys[r] = row(y, token) + out;
                xs[r] = (const int32_t *)row(x, token);
            }
            if (m->kind == F32)
                of_kind(F32, tall, ys, xs, w, add);
            else if (m->kind == BF16)
                of_kind(BF16, tall, ys, xs, w, add);
            else
                of_kind(I8, tall, ys, xs, w, add);
        }
    }
}

static void shared_product(Thread me, const Matrix *m, Rows y, Rows x, const int64_t *which,
                           int64_t n, int add) {
    int64_t columns = up_to(m->out, COLUMN);
    product(m, share(columns, me), share(columns, next(me)), y, x, which, n, add);
}
