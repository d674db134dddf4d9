/* Attention: keys and values become the panels of two matrices, block by block. */
#pragma once
#include <float.h>

#include "product.h"

#define KEYS 128      /* positions, and */
#define QUERIES 128   /* queries that are held against each other at a time */
#define MOST_SIZE 256 /* of a head */

/* 16 rows of 16 dwords -> the columns. */
static inline __attribute__((always_inline)) void transpose(__m512i *x) {
    __m512i y[16];
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            x[i + 2 * j] = _mm512_unpacklo_epi64(y[i + j], y[i + j + 2]);
            x[i + 2 * j + 1] = _mm512_unpackhi_epi64(y[i + j], y[i + j + 2]);
        }
    for (int i = 0; i < 4; i++) {
        y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
        y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
        y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
        y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        x[i] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88);
        x[i + 8] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0xdd);
    }
}

/* Keys [n][dwords] -> columns of a matrix whose outputs are the positions. */
static void key_columns(uint8_t *to, const int32_t *keys, int64_t n, int64_t dwords) {
    for (int64_t p = 0; p < n; p += LANES)
        for (int64_t u = 0; u < dwords; u += LANES) {
            __m512i x[LANES];
            for (int64_t i = 0; i < LANES; i++) {
                __mmask16 here = p + i < n ? first(dwords - u) : 0;
                x[i] = _mm512_maskz_loadu_epi32(here, keys + smaller(p + i, n - 1) * dwords + u);
            }
            transpose(x);
            uint8_t *at = to + ((p / COLUMN * dwords + u) * 2 + p / LANES % 2) * 64;
            for (int64_t i = 0; i < LANES && u + i < dwords; i++)
                _mm512_storeu_si512(at + i * 128, x[i]);
        }
}

/* Values [n][size] -> columns of a matrix whose inputs are the positions. */
static void value_columns(uint8_t *to, const void *values, int64_t n, int64_t size, int64_t kind) {
    int64_t units = up_to(n, kind);
    for (int64_t u = 0; u < units; u++)
        for (int64_t d = 0; d < size; d += LANES) {
            __mmask16 here = first(size - d);
            __m512i x;
            if (kind == F32)
                x = _mm512_maskz_loadu_epi32(here, (const float *)values + u * size + d);
            else {
                const uint16_t *even = (const uint16_t *)values + 2 * u * size + d;
                const uint16_t *odd = even + size;
                __mmask16 also = 2 * u + 1 < n ? here : 0;
                x = _mm512_or_si512(
                    _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(here, even)),
                    _mm512_slli_epi32(
                        _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(also, also ? odd : even)),
                        16));
            }
            _mm512_storeu_si512(to + ((d / COLUMN * units + u) * 2 + d / LANES % 2) * 64, x);
        }
}

/* Scores of the first `seen` positions -> their weights, 2 to the power of `scale` times each,
 * packed for the next product. `most` and `total` are the highest score so far and the sum of
 * weights; a higher one shrinks what came before: by how much is returned. */
static inline float weigh(const float *scores, int32_t *weights, int64_t seen, int64_t n, float scale,
                          int64_t kind, float *most, float *total) {
    float before = *most, shrink = 1;
    __m512 high = _mm512_set1_ps(before), sum = _mm512_setzero_ps();
    for (int64_t p = 0; p < seen; p += LANES)
        high = _mm512_mask_max_ps(high, first(seen - p), high, _mm512_loadu_ps(scores + p));
    if (_mm512_cmp_ps_mask(high, _mm512_set1_ps(before), _CMP_NLE_UQ)) {
        *most = _mm512_reduce_max_ps(high);
        shrink = _mm512_cvtss_f32(power_of_two(_mm512_set1_ps((before - *most) * scale)));
    }
    __m512 least = _mm512_set1_ps(*most * scale);
    for (int64_t p = 0; p < n; p += LANES) {
        __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(scores + p), _mm512_set1_ps(scale), least);
        x = _mm512_maskz_mov_ps(first(seen - p), power_of_two(x));
        sum = _mm512_add_ps(sum, x);
        if (kind == F32)
            _mm512_storeu_ps((float *)weights + p, x);
        else
            _mm256_storeu_si256((__m256i *)((uint16_t *)weights + p), narrowed(x));
    }
    *total = *total * shrink + _mm512_reduce_add_ps(sum);
    return shrink;
}

/* Have so many dwords come from memory meanwhile. */
static inline void fetch(const int32_t *from, int64_t dwords) {
    for (int64_t i = 0; i < dwords; i += LANES)
        _mm_prefetch(from + i, _MM_HINT_T1);
}

/* What some tokens of a part read with the heads that share the keys and values of one. */
static void attend(const Model *m, const Step *s, int64_t layer, Part part, int64_t head,
                   int64_t begin, int64_t end, Rows y, Rows out) {
    uint8_t keys[KEYS * MOST_SIZE * 4], values[KEYS * MOST_SIZE * 4];
    float scores[TALL * KEYS], read[QUERIES * MOST_SIZE], most[QUERIES], total[QUERIES];
    int32_t queries[QUERIES * MOST_SIZE], weights[TALL * KEYS];
    int64_t group = m->heads / m->kv, n = (end - begin) * group, size = m->size;
    int64_t dwords = size / m->kind, reach = part.start + end;
    int64_t place = (part.row * m->kv + head) * s->positions * dwords;
    for (int64_t q = 0; q < n; q++) {
        const float *from = row(y, part.first + begin + q / group);
        pack(queries + q * dwords, from + (head * group + q % group) * size, size, m->kind, 1);
        most[q] = -FLT_MAX / 2;
        total[q] = 0;
    }
    for (int64_t k = 0; k < reach; k += KEYS) {
        int64_t here = smaller(KEYS, reach - k), at = place + k * dwords;
        const int32_t *from_keys = (const int32_t *)s->keys[layer] + at;
        const int32_t *from_values = (const int32_t *)s->values[layer] + at;
        int64_t more = smaller(KEYS, reach - k - here) * dwords;
        fetch(from_keys + here * dwords, more);
        key_columns(keys, from_keys, here, dwords);
        fetch(from_values + here * dwords, more);
        value_columns(values, from_values, here, size, m->kind);
        Matrix to_keys = {keys, NULL, NULL, size, here, m->kind, 1};
        int64_t in = up_to(here, m->kind) * m->kind;
        Matrix to_values = {values, NULL, NULL, in, size, m->kind, 1};
        for (int64_t t = 0, tiles = up_to(n, TALL); t < tiles; t++) {
            int64_t q = n * t / tiles, tall = n * (t + 1) / tiles - q;
            product(&to_keys, 0, up_to(here, COLUMN), (Rows){scores, KEYS},
                    (Rows){(float *)(queries + q * dwords), dwords}, NULL, tall, 0);
            for (int64_t i = q; i < q + tall; i++) {
                int64_t seen = smaller(part.start + begin + i / group + 1 - k, here);
                float shrink = weigh(scores + (i - q) * KEYS, weights + (i - q) * KEYS, seen, here,
                                     m->scale * LOG2_E, m->kind, most + i, total + i);
                for (int64_t d = 0; k && shrink != 1 && d < size; d++)
                    read[i * size + d] *= shrink;
            }
            product(&to_values, 0, up_to(size, COLUMN), (Rows){read + q * size, size},
                    (Rows){(float *)weights, KEYS}, NULL, tall, k ? ADDED : 0);
        }
    }
    for (int64_t q = 0; q < n; q++) {
        float *to = row(out, part.first + begin + q / group) + (head * group + q % group) * size;
        for (int64_t d = 0; d < size; d++)
            to[d] = read[q * size + d] / total[q];
    }
}

static void attend_all(Thread me, const Model *m, const Step *s, int64_t layer, Rows y, Rows out) {
    int64_t item = 0;
    for (int64_t p = 0; p < s->parts; p++) {
        Part part = s->part[p];
        int64_t blocks = up_to(part.count, QUERIES * m->kv / m->heads);
        for (int64_t i = 0; i < blocks * m->kv; i++) {
            int64_t begin = part.count * (i / m->kv) / blocks;
            int64_t end = part.count * (i / m->kv + 1) / blocks;
            if (item++ % me.of == me.number)
                attend(m, s, layer, part, i % m->kv, begin, end, y, out);
        }
    }
}
