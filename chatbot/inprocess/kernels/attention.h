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

/* Keys [n][dwords] -> columns of a matrix whose outputs are the positions. Line by line, others
 * `ahead` come from memory meanwhile: all at once they would take twice as long. */
static void key_columns(uint8_t *to, const int32_t *keys, int64_t n, int64_t dwords,
                        const int32_t *ahead) {
    for (int64_t p = 0; p < n; p += LANES)
        for (int64_t u = 0; u < dwords; u += LANES) {
            __m512i x[LANES];
            for (int64_t i = 0; i < LANES; i++) {
                __mmask16 here = p + i < n ? first(dwords - u) : 0;
                _mm_prefetch(ahead + (p + i) * dwords + u, _MM_HINT_T1);
                x[i] = _mm512_maskz_loadu_epi32(here, keys + smaller(p + i, n - 1) * dwords + u);
            }
            transpose(x);
            uint8_t *at = to + ((p / COLUMN * dwords + u) * 2 + p / LANES % 2) * 64;
            for (int64_t i = 0; i < LANES && u + i < dwords; i++)
                _mm512_storeu_si512(at + i * 128, x[i]);
        }
}

/* Values [n][size] -> columns of a matrix whose inputs are the positions. */
static void value_columns(uint8_t *to, const int32_t *values, int64_t n, int64_t size,
                          int64_t kind, const int32_t *ahead) {
    int64_t units = up_to(n, kind);
    for (int64_t u = 0; u < units; u++)
        for (int64_t d = 0; d < size; d += LANES) {
            __mmask16 here = first(size - d);
            __m512i x;
            _mm_prefetch(ahead + u * size + d, _MM_HINT_T1);
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
static inline float weigh(const float *scores, int32_t *weights, int64_t seen, int64_t n,
                          float scale, int64_t kind, float *most, float *total) {
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

typedef struct { /* tokens of a part, with the heads that share the keys and values of one */
    Part part;
    int64_t head, begin, end;
} Item;

/* The item of this number, or none: `part.count` is 0 then. */
static Item item(const Model *m, const Step *s, int64_t number) {
    for (int64_t p = 0; p < s->parts; p++) {
        Part part = s->part[p];
        int64_t blocks = up_to(part.count, QUERIES * m->kv / m->heads), block = number / m->kv;
        if (block < blocks)
            return (Item){part, number % m->kv, part.count * block / blocks,
                          part.count * (block + 1) / blocks};
        number -= blocks * m->kv;
    }
    return (Item){0};
}

typedef struct { /* of the positions from some on, up to KEYS of them */
    const int32_t *keys, *values;
    int64_t count;
} Block;

static inline Block block(const Model *m, const Step *s, int64_t layer, const Item *i, int64_t k) {
    int64_t reach = i->part.start + i->end, row = i->part.row * m->kv + i->head;
    int64_t at = (row * s->positions + k) * m->size / m->kind;
    return (Block){(const int32_t *)s->keys[layer] + at, (const int32_t *)s->values[layer] + at,
                   larger(0, smaller(KEYS, reach - k))};
}

/* What an item's tokens read; `next` is what the same thread comes to afterwards. */
static void attend(const Model *m, const Step *s, int64_t layer, const Item *it, const Item *next,
                   Rows y, Rows out) {
    uint8_t keys[KEYS * MOST_SIZE * 4], values[KEYS * MOST_SIZE * 4];
    float scores[TALL * KEYS], read[QUERIES * MOST_SIZE], most[QUERIES], total[QUERIES];
    int32_t queries[QUERIES * MOST_SIZE], weights[TALL * KEYS];
    int64_t group = m->heads / m->kv, n = (it->end - it->begin) * group, size = m->size;
    int64_t dwords = size / m->kind, token = it->part.first + it->begin;
    int64_t position = it->part.start + it->begin, reach = it->part.start + it->end;
    for (int64_t q = 0; q < n; q++) {
        const float *from = row(y, token + q / group) + (it->head * group + q % group) * size;
        pack(queries + q * dwords, from, size, m->kind, 1);
        most[q] = -FLT_MAX / 2;
        total[q] = 0;
    }
    for (int64_t k = 0; k < reach; k += KEYS) {
        Block b = block(m, s, layer, it, k), ahead = b;
        if (k + KEYS < reach)
            ahead = block(m, s, layer, it, k + KEYS);
        else if (next->part.count)
            ahead = block(m, s, layer, next, 0);
        key_columns(keys, b.keys, b.count, dwords, ahead.keys);
        value_columns(values, b.values, b.count, size, m->kind, ahead.values);
        int64_t in = up_to(b.count, m->kind) * m->kind;
        Matrix to_keys = {keys, NULL, NULL, size, b.count, m->kind, 1};
        Matrix to_values = {values, NULL, NULL, in, size, m->kind, 1};
        for (int64_t t = 0, tiles = up_to(n, TALL); t < tiles; t++) {
            int64_t q = n * t / tiles, tall = n * (t + 1) / tiles - q;
            product(&to_keys, 0, up_to(b.count, COLUMN), (Rows){scores, KEYS},
                    (Rows){(float *)(queries + q * dwords), dwords}, NULL, tall, 0);
            for (int64_t i = q; i < q + tall; i++) {
                int64_t seen = smaller(position + i / group + 1 - k, b.count);
                float shrink = weigh(scores + (i - q) * KEYS, weights + (i - q) * KEYS, seen,
                                     b.count, m->scale * LOG2_E, m->kind, most + i, total + i);
                for (int64_t d = 0; k && shrink != 1 && d < size; d++)
                    read[i * size + d] *= shrink;
            }
            product(&to_values, 0, up_to(size, COLUMN), (Rows){read + q * size, size},
                    (Rows){(float *)weights, KEYS}, NULL, tall, k ? ADDED : 0);
        }
    }
    for (int64_t q = 0; q < n; q++) {
        float *to = row(out, token + q / group) + (it->head * group + q % group) * size;
        for (int64_t d = 0; d < size; d++)
            to[d] = read[q * size + d] / total[q];
    }
}

static void attend_all(Thread me, const Model *m, const Step *s, int64_t layer, Rows y, Rows out) {
    Item now = item(m, s, me.number);
    for (int64_t number = me.number + me.of; now.part.count; number += me.of) {
        Item next = item(m, s, number);
        attend(m, s, layer, &now, &next, y, out);
        now = next;
    }
}
