/* Vectors of 16 floats, and how they are packed. */
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "structs.h"

#define LOG2_E 1.44269504f

typedef struct { /* rows of floats or dwords */
    float *data;
    int64_t pitch;
} Rows;

static inline float *row(Rows rows, int64_t n) { return rows.data + n * rows.pitch; }

static inline int64_t up_to(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static inline __mmask16 first(int64_t n) {
    return n >= LANES ? 0xffff : n > 0 ? (__mmask16)((1u << n) - 1) : 0;
}

static inline __m256i narrowed(__m512 x) { /* to bfloat16, the nearest; NaN stays NaN */
#ifdef __AVX512BF16__
    return (__m256i)_mm512_cvtneps_pbh(x);
#else
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i half = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 wrong = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    half = _mm512_mask_mov_epi32(half, wrong, _mm512_set1_epi32(0x7fc00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(half, 16));
#endif
}

/* 2 to the power of x, for float32 to 3e-7 of it, for bfloat16 to 1e-4: a fit of degree 5 or 3 from
 * -1/2 to 1/2. */
static inline __attribute__((always_inline)) __m512 power_of_two(const int kind, __m512 x) {
    __m512 n = _mm512_roundscale_ps(x, 0), r = _mm512_sub_ps(x, n), y;
    if (kind == F32) {
        y = _mm512_set1_ps(0.00132669704f);
        y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.00967545975f));
        y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.0555074262f));
        y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.240221218f));
        y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.693146949f));
        y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.00000007f));
    } else {
        y = _mm512_set1_ps(0.055171378f);
        y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.242611215f));
        y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.693261027f));
        y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.999928057f));
    }
    return _mm512_scalef_ps(y, n);
}

static void pack_bytes(int32_t *to, const float *from, int64_t size, float *scale, int32_t *sum) {
    __m512 most = _mm512_setzero_ps(), wrong = most;
    for (int64_t i = 0; i < size; i += LANES) {
        __m512 x = _mm512_maskz_loadu_ps(first(size - i), from + i);
        most = _mm512_max_ps(most, _mm512_abs_ps(x));
        wrong = _mm512_fmadd_ps(x, _mm512_setzero_ps(), wrong); /* NaN, where x is no number */
    }
    *scale = _mm512_reduce_max_ps(most) / 127 + _mm512_reduce_add_ps(wrong);
    __m512 steps = _mm512_set1_ps(*scale > 0 ? 1 / *scale : 0);
    __m512i all = _mm512_setzero_si512();
    for (int64_t i = 0; i < size; i += LANES) {
        __mmask16 here = first(size - i);
        __m512 x = _mm512_mul_ps(_mm512_maskz_loadu_ps(here, from + i), steps);
        __m512i whole = _mm512_cvtps_epi32(x);
        all = _mm512_add_epi32(all, whole);
        _mm512_mask_cvtepi32_storeu_epi8((int8_t *)to + i, here, whole);
    }
    *sum = -128 * _mm512_reduce_add_epi32(all);
}

/* n floats -> dwords; behind bytes come the scale of each group and what their sums begin at. */
static inline void pack(int32_t *to, const float *from, int64_t n, int64_t kind, int64_t groups) {
    if (kind == F32)
        memcpy(to, from, n * sizeof(float));
    else if (kind == BF16)
        for (int64_t i = 0; i < n; i += LANES) {
            __m256i halves = narrowed(_mm512_maskz_loadu_ps(first(n - i), from + i));
            _mm256_mask_storeu_epi16((uint16_t *)to + i, first(n - i), halves);
        }
    else
        for (int64_t g = 0, size = n / groups; g < groups; g++) {
            int32_t *more = to + n / I8 + 2 * g;
            pack_bytes(to + g * size / I8, from + g * size, size, (float *)more, more + 1);
        }
}

static int64_t packed(const Matrix *m) { /* dwords of a token */
    return m->in / m->kind + (m->kind == I8 ? 2 * m->groups : 0);
}
