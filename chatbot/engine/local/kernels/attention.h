/* Attention: keys and values become the panels of two matrices, block by block. */
#pragma once
#include <float.h>

#include "product.h"

#define KEYS 128      /* positions, and */
#define QUERIES 256   /* queries that are held against each other at a time */
#define MOST_SIZE 256 /* of a head */
#define SLACK 8       /* powers of two that a weight may grow to before all others shrink */

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
            const int32_t *from = keys + p * dwords + u, *later = ahead + p * dwords + u;
            __mmask16 here = first(dwords - u), rows = first(n - p);
            __m512i x[LANES];
            for (int64_t i = 0; i < LANES; i++, from += dwords, later += dwords) {
                _mm_prefetch(later, _MM_HINT_T1);
                x[i] = _mm512_maskz_loadu_epi32(rows >> i & 1 ? here : 0, from);
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

typedef struct { /* what a query has met so far */
    __m512 total; /* sums of weights */
    float zero;   /* the score whose weight is 1 */
} Met;

/* Scores of n positions, of which `seen` count -> their weights, 2 to the power of `scale` times
 * each, packed for the next product. A far higher score than before is the new zero, and shrinks
 * what came earlier: by how much is returned. */
static inline __attribute__((always_inline)) float
weigh(const int kind, float *scores, int32_t *weights, int64_t seen, int64_t n, float scale,
      Met *met) {
    float shrink = 1;
    __m512 high = _mm512_set1_ps(-FLT_MAX), total = _mm512_setzero_ps();
    for (int64_t p = larger(0, seen); p < up_to(n, LANES) * LANES; p++)
        scores[p] = -FLT_MAX;
    for (int64_t p = 0; p < n; p += LANES)
        high = _mm512_max_ps(high, _mm512_loadu_ps(scores + p));
    if (_mm512_cmp_ps_mask(high, _mm512_set1_ps(met->zero + SLACK / scale), _CMP_NLE_UQ)) {
        float before = met->zero;
        met->zero = _mm512_reduce_max_ps(high);
        __m512 less = power_of_two(F32, _mm512_set1_ps((before - met->zero) * scale));
        met->total = _mm512_mul_ps(met->total, less);
        shrink = _mm512_cvtss_f32(less);
    }
    __m512 zero = _mm512_set1_ps(met->zero * scale);
    for (int64_t p = 0; p < n; p += LANES) {
        __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(scores + p), _mm512_set1_ps(scale), zero);
        x = power_of_two(kind, x);
        total = _mm512_add_ps(total, x);
        if (kind == F32)
            _mm512_storeu_ps((float *)weights + p, x);
        else
            _mm256_storeu_si256((__m256i *)((uint16_t *)weights + p), narrowed(x));
    }
    met->total = _mm512_add_ps(met->total, total);
    return shrink;
}

typedef struct { /* tokens of a part, with the heads that share the keys and values of one */
    Part part;
    int64_t head, begin, end;
} Item;

typedef struct { /* through a thread's share of the items */
    int64_t part, head, begin; /* of what comes next */
    int64_t passed;            /* what all before this head cost */
    int64_t from, to;          /* of the cost of all: the share */
} Walk;

/* A token costs what it looks back at. */
static int64_t cost(Part part) { return part.count * (part.start + part.count); }

static Walk walk(Thread me, const Model *m, const Tokens *t) {
    int64_t all = 0;
    for (int64_t p = 0; p < t->parts; p++)
        all += cost(t->part[p]) * m->kv;
    return (Walk){.from = share(all, me), .to = share(all, next(me))};
}

/* How many of a part's tokens come before so much of its cost. */
static int64_t before(Part part, int64_t spent) {
    int64_t token = part.start + part.count;
    return larger(0, smaller(part.count, (spent + token / 2) / token));
}

/* The next item, or none: `part.count` is 0 then. */
static Item step_on(Walk *w, const Model *m, const Tokens *t) {
    while (w->part < t->parts) {
        Part part = t->part[w->part];
        int64_t begin = larger(w->begin, before(part, w->from - w->passed));
        int64_t end = before(part, w->to - w->passed);
        w->begin = smaller(end, begin + QUERIES * m->kv / m->heads);
        if (begin < end)
            return (Item){part, w->head, begin, w->begin};
        w->begin = 0;
        w->passed += cost(part);
        w->head = (w->head + 1) % m->kv;
        w->part += w->head == 0;
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
    float scores[TALL * KEYS], read[QUERIES * MOST_SIZE], scale = m->scale * LOG2_E;
    int32_t queries[QUERIES * MOST_SIZE], weights[TALL * KEYS];
    Met met[QUERIES];
    int64_t group = m->heads / m->kv, n = (it->end - it->begin) * group, size = m->size;
    int64_t dwords = size / m->kind, token = it->part.first + it->begin;
    int64_t position = it->part.start + it->begin, reach = it->part.start + it->end;
    for (int64_t q = 0; q < n; q++) {
        const float *from = row(y, token + q / group) + (it->head * group + q % group) * size;
        pack(queries + q * dwords, from, size, m->kind, 1);
        met[q] = (Met){_mm512_setzero_ps(), -FLT_MAX / 2};
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
                float *from = scores + (i - q) * KEYS;
                int32_t *to = weights + (i - q) * KEYS;
                float shrink = m->kind == F32 ? weigh(F32, from, to, seen, b.count, scale, met + i)
                                              : weigh(BF16, from, to, seen, b.count, scale, met + i);
                for (int64_t d = 0; k && shrink != 1 && d < size; d++)
                    read[i * size + d] *= shrink;
            }
            product(&to_values, 0, up_to(size, COLUMN), (Rows){read + q * size, size},
                    (Rows){(float *)weights, KEYS}, NULL, tall, k ? ADDED : 0);
        }
    }
    for (int64_t q = 0; q < n; q++) {
        float *to = row(out, token + q / group) + (it->head * group + q % group) * size;
        float total = _mm512_reduce_add_ps(met[q].total);
        for (int64_t d = 0; d < size; d++)
            to[d] = read[q * size + d] / total;
    }
}

static void attend_all(Thread me, const Model *m, const Step *s, const Tokens *t, int64_t layer,
                       Rows y, Rows out) {
    Walk through = walk(me, m, t);
    for (Item now = step_on(&through, m, t); now.part.count;) {
        Item then = step_on(&through, m, t);
        attend(m, s, layer, &now, &then, y, out);
        now = then;
    }
}
