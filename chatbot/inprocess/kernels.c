/* One step of a Llama-like model on a CPU with AVX-512; native.py calls it and says what is in the
 * structs.
 *
 * Every product, also both of attention, is of tokens packed in dwords with a matrix packed in
 * panels. A dword holds one float, two bfloat16 or four bytes; the kind of a matrix is how many. A
 * panel holds 16 outputs side by side, dword by dword, and two panels lie side by side in a column.
 */
#include <float.h>
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16    /* floats of a vector: outputs of a panel */
#define COLUMN 32   /* outputs, and */
#define TALL 8      /* tokens of a tile: their sums stay in 16 registers, two a token */
#define AHEAD 2048  /* bytes that are fetched early where few tokens wait for memory */
#define KEYS 128    /* positions, and */
#define QUERIES 128 /* queries that attention holds against each other at a time */
#define MOST_SIZE 256 /* of a head */
#define LOG2_E 1.44269504f

enum { F32 = 1, BF16 = 2, I8 = 4 };
enum { ADDED = 1, BIASED = 2 };

typedef struct {           /* y = x W^T + b */
    const uint8_t *panels; /* [out / 32][in / kind][2][16][kind], filled up with zeros */
    const float *scale;    /* [out], of bytes; they are 128 more than they stand for */
    const float *bias;     /* [out], or NULL */
    int64_t in, out, kind;
    int64_t groups; /* of inputs that share a scale, where those are bytes; else 1 */
} Matrix;

typedef struct {
    Matrix joint[4];             /* QKV, OUT, GATE_UP, DOWN */
    const float *before, *after; /* [hidden]: weights of the norms */
    const float *queries, *keys; /* [size]: of the norms of queries and keys, or NULL */
} Layer;

enum { QKV, OUT, GATE_UP, DOWN };

typedef struct {
    int64_t layers, hidden, inner, heads, kv, size;
    int64_t kind; /* of the cache, the embedding and the adapters: F32 or BF16 */
    float eps, scale;
    const Layer *layer;
    const float *norm; /* [hidden] */
    const uint8_t *embedding; /* [vocabulary][hidden] */
    Matrix head;
} Model;

typedef struct { /* tokens that one row reads, from position `start` on */
    int64_t first, count, row, start;
} Part;

typedef struct { /* what an adapter adds to a joint of so many linears */
    Matrix down, up[3];
    int64_t linears;
} Low;

typedef struct { /* tokens that speak with one adapter */
    const int64_t *tokens;
    int64_t count, rank;
    const Low *low; /* [layers][4] */
} Owner;

typedef struct {
    int64_t threads, tokens, parts, told, owners, positions;
    const int64_t *ids;     /* [tokens] */
    const float *cos, *sin; /* [tokens][size] */
    const Part *part;
    const Owner *owner;
    const int64_t *last;             /* [told]: tokens whose logits are wanted */
    void *const *keys, *const *values; /* [layers] -> [rows][kv][positions][size] */
    float *scratch;                  /* as much as `talkback_scratch` says */
    float *logits;                   /* [told][vocabulary] */
} Step;

typedef struct { /* rows of floats or dwords */
    float *data;
    int64_t pitch;
} Rows;

static inline float *row(Rows rows, int64_t n) { return rows.data + n * rows.pitch; }

static inline int64_t up_to(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* -- Threads: those of torch's OpenMP; where it has another, one */

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

/* -- Numbers */

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

static inline __m512 power_of_two(__m512 x) { /* to 3e-7 of it: a fit of degree 5 from -1/2 to 1/2 */
    x = _mm512_max_ps(_mm512_set1_ps(-126), _mm512_min_ps(_mm512_set1_ps(127), x));
    __m512 n = _mm512_roundscale_ps(x, 0), r = _mm512_sub_ps(x, n);
    __m512 y = _mm512_set1_ps(0.00132669704f);
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.00967545975f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.0555074262f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.240221218f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.693146949f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.00000007f));
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

/* -- Products */

/* Assembler, since gcc copies these sums to other registers and back. */
static inline __attribute__((always_inline)) __m512i
dot(const int kind, __m512i sum, __m512i a, __m512i b) {
    if (kind == F32)
        __asm__("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    else if (kind == I8)
        __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    else {
#ifdef __AVX512BF16__
        __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#else
        __m512i high = _mm512_set1_epi32(0xffff0000);
        sum = dot(F32, sum, _mm512_slli_epi32(a, 16), _mm512_slli_epi32(b, 16));
        sum = dot(F32, sum, _mm512_and_si512(a, high), _mm512_and_si512(b, high));
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
#define EACH(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)
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
            if (tall <= 2) {
                _mm_prefetch(both + AHEAD, _MM_HINT_T0);
                _mm_prefetch(both + AHEAD + 64, _MM_HINT_T0);
            }
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
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
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

/* -- Attention */

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

/* Scores of the first `seen` positions -> their weights, powers of two of so many times them, packed
 * for the next product. `most` and `total` are those of all positions so far; returned is by how much what was read shrinks. */
static inline float weigh(float *scores, int32_t *weights, int64_t seen, int64_t n, float scale,
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
        __m512 x = _mm512_fmsub_ps(
            _mm512_loadu_ps(scores + p), _mm512_set1_ps(scale), least);
        x = _mm512_maskz_mov_ps(first(seen - p), power_of_two(x));
        sum = _mm512_add_ps(sum, x);
        _mm512_storeu_ps(scores + p, x);
    }
    pack(weights, scores, up_to(n, LANES) * LANES, kind, 1);
    *total = *total * shrink + _mm512_reduce_add_ps(sum);
    return shrink;
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
        key_columns(keys, (const int32_t *)s->keys[layer] + at, here, dwords);
        value_columns(values, (const int32_t *)s->values[layer] + at, here, size, m->kind);
        Matrix to_keys = {keys, NULL, NULL, size, here, m->kind, 1};
        Matrix to_values = {
            values, NULL, NULL, up_to(here, m->kind) * m->kind, size, m->kind, 1};
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

/* -- What is between the products, for one token */

static void norm(float *to, const float *x, const float *weight, int64_t n, float eps) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += LANES) {
        __m512 here = _mm512_maskz_loadu_ps(first(n - i), x + i);
        sum = _mm512_fmadd_ps(here, here, sum);
    }
    float scale = 1 / sqrtf(_mm512_reduce_add_ps(sum) / (float)n + eps);
    for (int64_t i = 0; i < n; i++)
        to[i] = x[i] * scale * weight[i];
}

static void turn(float *x, const float *cos, const float *sin, int64_t size) {
    for (int64_t i = 0, j = size / 2; i < size / 2; i++, j++) {
        float a = x[i], b = x[j];
        x[i] = a * cos[i] - b * sin[i];
        x[j] = b * cos[j] + a * sin[j];
    }
}

static void activate(float *gate, const float *up, int64_t n) { /* silu(gate) * up */
    for (int64_t i = 0; i < n; i += LANES) {
        __mmask16 here = first(n - i);
        __m512 x = _mm512_maskz_loadu_ps(here, gate + i), y = _mm512_maskz_loadu_ps(here, up + i);
        __m512 down = power_of_two(_mm512_mul_ps(x, _mm512_set1_ps(-LOG2_E)));
        x = _mm512_div_ps(_mm512_mul_ps(x, y), _mm512_add_ps(down, _mm512_set1_ps(1)));
        _mm512_mask_storeu_ps(gate + i, here, x);
    }
}

static void embed(float *to, const uint8_t *table, int64_t id, int64_t n, int64_t kind) {
    if (kind == F32) {
        memcpy(to, (const float *)table + id * n, n * sizeof(float));
        return;
    }
    const uint16_t *from = (const uint16_t *)table + id * n;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)from[i] << 16;
        memcpy(to + i, &bits, sizeof(float));
    }
}

/* Turn a head of the new tokens' queries, keys or values, and keep keys and values. */
static void place(const Model *m, const Step *s, const Layer *l, int64_t layer, Part part,
                  int64_t token, int64_t head, Rows y) {
    float *x = row(y, token) + head * m->size;
    const float *weight = head < m->heads ? l->queries : l->keys;
    if (head < m->heads + m->kv) {
        if (weight)
            norm(x, x, weight, m->size, m->eps);
        turn(x, s->cos + token * m->size, s->sin + token * m->size, m->size);
    }
    if (head < m->heads)
        return;
    int64_t which = (head - m->heads) % m->kv, position = part.start + token - part.first;
    void *store = (head < m->heads + m->kv ? s->keys : s->values)[layer];
    int64_t at = ((part.row * m->kv + which) * s->positions + position) * m->size / m->kind;
    pack((int32_t *)store + at, x, m->size, m->kind, 1);
}

/* -- A step */

typedef struct { /* what all threads work on */
    const Model *m;
    const Step *s;
    Rows x, y, read;   /* residuals, outputs of products, what attention read */
    Rows in, plain;    /* inputs of products, packed, and packed for adapters */
    Rows low, low_in;  /* what adapters make of them, and that packed */
} Work;

static int64_t width(const Model *m, const Step *s, Work *w) { /* lays the rows out */
    int64_t in = packed(&m->head), plain = m->hidden, y = m->hidden, low = 0;
    for (int64_t l = 0; l < m->layers; l++)
        for (int j = 0; j < 4; j++) {
            in = larger(in, packed(&m->layer[l].joint[j]));
            plain = larger(plain, m->layer[l].joint[j].in);
            y = larger(y, m->layer[l].joint[j].out);
        }
    for (int64_t o = 0; o < s->owners; o++)
        low = larger(low, 3 * s->owner[o].rank);
    int64_t sizes[] = {m->hidden, y, m->heads * m->size, in, plain, low, low}, total = 0;
    Rows *rows[] = {&w->x, &w->y, &w->read, &w->in, &w->plain, &w->low, &w->low_in};
    for (int i = 0; i < 7; i++) {
        int64_t pitch = up_to(sizes[i], LANES) * LANES;
        *rows[i] = (Rows){s->scratch + total * s->tokens, pitch};
        total += pitch;
    }
    return total;
}

/* Pack n floats of a token as the input of a joint, and of what adapters add to it. */
static void hand(const Work *w, const Matrix *m, int64_t token, const float *from) {
    pack((int32_t *)row(w->in, token), from, m->in, m->kind, m->groups);
    if (w->s->owners)
        pack((int32_t *)row(w->plain, token), from, m->in, w->m->kind, 1);
}

/* y = (or +=) what a joint and the tokens' adapters make of their inputs. */
static void multiply(Thread me, const Work *w, int64_t layer, int joint, Rows y, int add) {
    const Step *s = w->s;
    int64_t kind = w->m->kind;
    shared_product(me, &w->m->layer[layer].joint[joint], y, w->in, NULL, s->tokens, add);
    for (int64_t o = 0; o < s->owners; o++) {
        const Owner *own = s->owner + o;
        const Low *low = own->low + layer * 4 + joint;
        shared_product(me, &low->down, w->low, w->plain, own->tokens, own->count, 0);
    }
    meet(me);
    if (!s->owners)
        return;
    for (int64_t o = 0; o < s->owners; o++) {
        const Owner *own = s->owner + o;
        int64_t n = own->rank * own->low[layer * 4 + joint].linears;
        for MINE(i, own->count)
            pack((int32_t *)row(w->low_in, own->tokens[i]), row(w->low, own->tokens[i]), n, kind, 1);
    }
    meet(me);
    for (int64_t o = 0; o < s->owners; o++) {
        const Owner *own = s->owner + o;
        const Low *low = own->low + layer * 4 + joint;
        Rows to = y, from = w->low_in;
        for (int64_t i = 0; i < low->linears; i++) {
            shared_product(me, &low->up[i], to, from, own->tokens, own->count, ADDED);
            to.data += low->up[i].out;
            from.data += own->rank / kind;
        }
    }
    meet(me);
}

static void run_layer(Thread me, const Work *w, int64_t layer) {
    const Model *m = w->m;
    const Step *s = w->s;
    const Layer *l = m->layer + layer;
    for MINE(t, s->tokens) {
        norm(row(w->y, t), row(w->x, t), l->before, m->hidden, m->eps);
        hand(w, &l->joint[QKV], t, row(w->y, t));
    }
    meet(me);
    multiply(me, w, layer, QKV, w->y, 0);
    int64_t heads = m->heads + 2 * m->kv;
    for (int64_t p = 0; p < s->parts; p++)
        for MINE(i, s->part[p].count * heads)
            place(m, s, l, layer, s->part[p], s->part[p].first + i / heads, i % heads, w->y);
    meet(me);
    attend_all(me, m, s, layer, w->y, w->read);
    meet(me);
    for MINE(t, s->tokens)
        hand(w, &l->joint[OUT], t, row(w->read, t));
    meet(me);
    multiply(me, w, layer, OUT, w->x, ADDED);
    for MINE(t, s->tokens) {
        norm(row(w->y, t), row(w->x, t), l->after, m->hidden, m->eps);
        hand(w, &l->joint[GATE_UP], t, row(w->y, t));
    }
    meet(me);
    multiply(me, w, layer, GATE_UP, w->y, 0);
    for MINE(t, s->tokens) {
        activate(row(w->y, t), row(w->y, t) + m->inner, m->inner);
        hand(w, &l->joint[DOWN], t, row(w->y, t));
    }
    meet(me);
    multiply(me, w, layer, DOWN, w->x, ADDED);
}

static void run_step(void *data) {
    const Work *w = data;
    const Model *m = w->m;
    const Step *s = w->s;
    Thread me = self();
    for MINE(t, s->tokens)
        embed(row(w->x, t), m->embedding, s->ids[t], m->hidden, m->kind);
    meet(me);
    for (int64_t layer = 0; layer < m->layers; layer++)
        run_layer(me, w, layer);
    for MINE(i, s->told) {
        norm(row(w->y, i), row(w->x, s->last[i]), m->norm, m->hidden, m->eps);
        pack((int32_t *)row(w->in, i), row(w->y, i), m->hidden, m->head.kind, m->head.groups);
    }
    meet(me);
    shared_product(me, &m->head, (Rows){s->logits, m->head.out}, w->in, NULL, s->told, 0);
}

/* Floats of scratch that a step takes. */
int64_t talkback_scratch(const Model *m, const Step *s) {
    Work w;
    return width(m, s, &w) * s->tokens;
}

/* Read the tokens: their keys and values go to the cache, the logits to `logits`. */
void talkback_step(const Model *m, const Step *s) {
    Work w = {.m = m, .s = s};
    width(m, s, &w);
    together(run_step, &w, s->threads);
}

typedef struct {
    const Matrix *m;
    Rows y, x;
    int64_t n;
} Single;

static void run_product(void *data) {
    const Single *p = data;
    Thread me = self();
    shared_product(me, p->m, p->y, p->x, NULL, p->n, 0);
}

/* x [n][in], packed in `room` of as many dwords as talkback_packed says -> y [n][out]. */
void talkback_product(const Matrix *m, float *y, const float *x, int32_t *room, int64_t n,
                      int64_t threads) {
    Single p = {m, {y, m->out}, {(float *)room, packed(m)}, n};
    for (int64_t i = 0; i < n; i++)
        pack((int32_t *)row(p.x, i), x + i * m->in, m->in, m->kind, m->groups);
    together(run_product, &p, threads);
}
