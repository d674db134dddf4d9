/* Vectors of 16 floats, and how activations are packed for products. */
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "structs.h"

#define LOG2_E 1.44269504f

/* A matrix of floats or dwords whose rows (tokens) lie `stride` apart. */
typedef struct {
    float *data;
    int64_t stride;
} Rows;

static inline float *row(Rows rows, int64_t n) { return rows.data + n * rows.stride; }

static inline int64_t ceil_div(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

static inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

static inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

/* The mask of the first n lanes: of all from 16 on, of none below 1. */
static inline __mmask16 first_lanes(int64_t n) {
    return n >= LANES ? 0xffff : n > 0 ? (__mmask16)((1u << n) - 1) : 0;
}

/* 16 floats -> bfloat16, rounded to nearest even; NaN stays NaN. */
static inline __m256i to_bfloat16(__m512 x) {
#ifdef __AVX512BF16__
    return (__m256i)_mm512_cvtneps_pbh(x);
#else
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i half = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    half = _mm512_mask_mov_epi32(half, nan, _mm512_set1_epi32(0x7fc00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(half, 16));
#endif
}

/* 2 to the power of x, within 3e-7 of it for float32 and 1e-4 for bfloat16: x is split into the
 * nearest whole number, which goes to the exponent, and a rest between -1/2 and 1/2, whose power is
 * a polynomial fit of degree 5 or 3. */
static inline __attribute__((always_inline)) __m512 exp2_fit(const int packing, __m512 x) {
    __m512 n = _mm512_roundscale_ps(x, 0), r = _mm512_sub_ps(x, n), y;
    if (packing == F32) {
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

/* One stage of `rotate` within a vector: each lane becomes the sum with the lane `distance` away,
 * or, in the `upper` one of the two, the difference. */
static inline __m512 butterfly(__m512 x, int distance, __mmask16 upper) {
    __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512 other = _mm512_permutexvar_ps(_mm512_xor_epi32(lanes, _mm512_set1_epi32(distance)), x);
    return _mm512_mask_sub_ps(_mm512_add_ps(x, other), upper, other, x);
}

/* Rotate `size` floats, block by block, by a Hadamard matrix of ones and minus ones. An outlier,
 * which would leave a scale's other values few of the 255 steps, is spread over its block. */
static inline void rotate(float *to, const float *from, int64_t size) {
    int64_t block = min_of(size & -size, MAX_ROTATION);
    for (int64_t i = 0; i < size; i += LANES) {
        __mmask16 lanes = first_lanes(size - i);
        __m512 x = _mm512_maskz_loadu_ps(lanes, from + i);
        if (block > 1) x = butterfly(x, 1, 0xaaaa);
        if (block > 2) x = butterfly(x, 2, 0xcccc);
        if (block > 4) x = butterfly(x, 4, 0xf0f0);
        if (block > 8) x = butterfly(x, 8, 0xff00);
        _mm512_mask_storeu_ps(to + i, lanes, x);
    }
    for (int64_t half = LANES; half < block; half *= 2)
        for (int64_t i = 0; i < size; i += LANES)
            if (!(i & half)) {
                __m512 a = _mm512_loadu_ps(to + i), b = _mm512_loadu_ps(to + i + half);
                _mm512_storeu_ps(to + i, _mm512_add_ps(a, b));
                _mm512_storeu_ps(to + i + half, _mm512_sub_ps(a, b));
            }
}

/* `size` floats -> signed bytes of one scale, the largest magnitude becoming 127; they are rotated,
 * as the weights are.
 *
 * vpdpbusd multiplies unsigned bytes with signed ones, so weights are stored with 128 added. What
 * that adds to every sum of products, 128 times the sum of the inputs, depends on the input alone:
 * `sum_offset` takes it off again, by being what the sums begin at. An input that is not finite
 * makes the scale NaN, which spreads to the outputs instead of becoming a number. */
static void quantize(int32_t *to, const float *from, int64_t size, float *scale,
                     int32_t *sum_offset) {
    float rotated[MAX_SCALE_GROUP];
    rotate(rotated, from, size);
    __m512 magnitude = _mm512_setzero_ps(), not_finite = magnitude;
    for (int64_t i = 0; i < size; i += LANES) {
        __m512 x = _mm512_maskz_loadu_ps(first_lanes(size - i), rotated + i);
        magnitude = _mm512_max_ps(magnitude, _mm512_abs_ps(x));
        not_finite = _mm512_fmadd_ps(x, _mm512_setzero_ps(), not_finite); /* x * 0: NaN then */
    }
    *scale = _mm512_reduce_max_ps(magnitude) / 127 + _mm512_reduce_add_ps(not_finite);
    __m512 inverse = _mm512_set1_ps(*scale > 0 ? 1 / *scale : 0);
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = 0; i < size; i += LANES) {
        __mmask16 lanes = first_lanes(size - i);
        __m512 x = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, rotated + i), inverse);
        __m512i bytes = _mm512_cvtps_epi32(x);
        sum = _mm512_add_epi32(sum, bytes);
        _mm512_mask_cvtepi32_storeu_epi8((int8_t *)to + i, lanes, bytes);
    }
    *sum_offset = -128 * _mm512_reduce_add_epi32(sum);
}

/* n floats -> dwords. Bytes are quantized in `groups`, and behind them come two dwords a group: its
 * scale, and what its sums of products begin at. */
static inline void pack(int32_t *to, const float *from, int64_t n, int64_t packing,
                        int64_t groups) {
    if (packing == F32)
        memcpy(to, from, n * sizeof(float));
    else if (packing == BF16)
        for (int64_t i = 0; i < n; i += LANES) {
            __m256i halves = to_bfloat16(_mm512_maskz_loadu_ps(first_lanes(n - i), from + i));
            _mm256_mask_storeu_epi16((uint16_t *)to + i, first_lanes(n - i), halves);
        }
    else
        for (int64_t g = 0, size = n / groups; g < groups; g++) {
            int32_t *scales = to + n / I8 + 2 * g;
            quantize(to + g * size / I8, from + g * size, size, (float *)scales, scales + 1);
        }
}

/* Dwords of a token that is packed as the input of a matrix. */
static int64_t packed_dwords(const Matrix *m) {
    return m->inputs / m->packing + (m->packing == I8 ? 2 * m->groups : 0);
}
