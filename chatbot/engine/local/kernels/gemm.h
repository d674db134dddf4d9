/* Products of packed tokens with a packed matrix (GEMM).
 *
 * The product of tokens x [n][inputs] and a matrix is computed tile by tile: up to 9 tokens times
 * 32 outputs (a pair of panels). All inputs of a tile are summed up in registers before anything is
 * stored, so that the sums of a token are the same bits whatever other tokens are computed beside
 * it and on however many threads: threads share out the outputs, never the inputs.
 */
#pragma once
#include "pack.h"
#include "threads.h"
#ifdef TALKBACK_AMX
#include "amx.h"
#define BLOCK_TOKENS 32
#else
#define BLOCK_TOKENS TILE_TOKENS
#endif

#define TILE_TOKENS 9       /* 18 registers of sums, two a token; what is left holds factors */
#define PREFETCH_BYTES 2048 /* how far ahead of its use the matrix is called from memory */

/* What happens to a product: it is added to what y holds, a bias is added. */
enum { ACCUMULATE = 1, ADD_BIAS = 2 };

/* sum + a b, dword by dword. Assembler, since gcc copies these sums to other registers and back. */
#define MULTIPLY_ADD(instruction, sum, a, b) \
    __asm__(instruction " %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b))

/* sum + a b: 16 sums of the products of a dword's values. Without AVX512-BF16 the two values of a
 * dword are widened to floats, the lower by a shift, the upper by a mask. */
static inline __attribute__((always_inline)) __m512i
dot(const int packing, __m512i sum, __m512i a, __m512i b) {
    if (packing == F32)
        MULTIPLY_ADD("vfmadd231ps", sum, a, b);
    else if (packing == I8)
        MULTIPLY_ADD("vpdpbusd", sum, a, b);
    else {
#ifdef __AVX512BF16__
        MULTIPLY_ADD("vdpbf16ps", sum, a, b);
#else
        __m512i upper = _mm512_set1_epi32(0xffff0000);
        MULTIPLY_ADD("vfmadd231ps", sum, _mm512_slli_epi32(a, 16), _mm512_slli_epi32(b, 16));
        MULTIPLY_ADD("vfmadd231ps", sum, _mm512_and_si512(a, upper), _mm512_and_si512(b, upper));
#endif
    }
    return sum;
}

/* Two panels of a matrix: 32 of its outputs. */
typedef struct {
    const uint8_t *panels; /* [dwords][2][16][packing] */
    const float *scales;   /* [groups][32] of bytes */
    const float *bias;     /* [32] */
    int64_t dwords;        /* of an output, and of a token */
    int64_t groups;        /* of inputs with a scale each */
    int64_t outputs;       /* that are left from here on; 32 and more are a full pair */
} PanelPair;

/* The pair of panels from an output on, a multiple of 32. */
static inline PanelPair panel_pair(const Matrix *m, int64_t out) {
    int64_t dwords = m->inputs / m->packing;
    return (PanelPair){m->panels + out / PANEL_PAIR * dwords * UNIT_BYTES, m->scales + out * m->groups,
                       m->bias + out, dwords, m->groups, m->outputs - out};
}

/* A tile's sums are variables, left0 and right0 to left8 and right8, made by macros: gcc keeps
 * named variables in registers, and an array in memory. Where a tile has fewer tokens the `if`s
 * fall away, since `tokens` is a constant wherever `tile` is inlined. */
#define FOR_EACH_TOKEN(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8)
#define DECLARE_SUMS(r) \
    __m512i left##r = _mm512_setzero_si512(), right##r = left##r;
/* The whole-number sums of a group of bytes begin at the token's offset, see `quantize`. */
#define BEGIN_GROUP(r) \
    if (r < tokens && packing == I8) \
        left##r = right##r = _mm512_set1_epi32(x[r][w.dwords + 2 * g + 1]);
#define ADD_PRODUCTS(r) \
    if (r < tokens) { \
        __m512i factor = _mm512_set1_epi32(x[r][u]); \
        left##r = dot(packing, left##r, left, factor); \
        right##r = dot(packing, right##r, right, factor); \
    }
/* Take the scales of the group, the token's times each output's, into float sums over all groups. */
#define END_GROUP(r) \
    if (r < tokens && packing == I8) { \
        __m512 scale = _mm512_set1_ps(((const float *)x[r])[w.dwords + 2 * g]); \
        total[r][0] = add_group(total[r][0], left##r, scale, left_scales); \
        total[r][1] = add_group(total[r][1], right##r, scale, right_scales); \
        left##r = (__m512i)total[r][0]; \
        right##r = (__m512i)total[r][1]; \
    }
#define STORE_SUMS(r) \
    if (r < tokens) { \
        store_outputs(y[r], (__m512)left##r, w.bias, first_lanes(w.outputs), mode); \
        store_outputs(y[r] + LANES, (__m512)right##r, w.bias + LANES, \
                      first_lanes(w.outputs - LANES), mode); \
    }

/* The whole-number sums of a group, times its scales, join those of the groups before. */
static inline __attribute__((always_inline)) __m512 add_group(__m512 total, __m512i sums,
                                                              __m512 scale, __m512 scales) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), _mm512_mul_ps(scale, scales), total);
}

/* Finish 16 outputs of a token and store those in `lanes`. */
static inline __attribute__((always_inline)) void
store_outputs(float *y, __m512 x, const float *bias, __mmask16 lanes, int mode) {
    if (mode & ADD_BIAS)
        x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(lanes, bias));
    if (mode & ACCUMULATE)
        x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(lanes, y));
    _mm512_mask_storeu_ps(y, lanes, x);
}

/* y[r] = (or +=) x[r] times two panels, for as many `tokens` r. Of the 32 registers, 18 hold sums,
 * two the panels' dwords (left, right) and one a token's dword, the same in all lanes. */
static inline __attribute__((always_inline)) void
tile(const int packing, const int tokens, float **y, const int32_t **x, PanelPair w, int mode) {
    __m512 total[TILE_TOKENS][2] = {0};
    int64_t size = w.dwords / w.groups;
    FOR_EACH_TOKEN(DECLARE_SUMS)
    for (int64_t g = 0; g < w.groups; g++) {
        FOR_EACH_TOKEN(BEGIN_GROUP)
        for (int64_t u = g * size; u < (g + 1) * size; u++) {
            const uint8_t *both = w.panels + u * UNIT_BYTES;
            _mm_prefetch(both + PREFETCH_BYTES, _MM_HINT_T0);
            _mm_prefetch(both + PREFETCH_BYTES + 64, _MM_HINT_T0);
            __m512i left = _mm512_loadu_si512(both), right = _mm512_loadu_si512(both + 64);
            FOR_EACH_TOKEN(ADD_PRODUCTS)
        }
        __m512 left_scales = _mm512_setzero_ps(), right_scales = left_scales;
        if (packing == I8) {
            left_scales = _mm512_loadu_ps(w.scales + g * PANEL_PAIR);
            right_scales = _mm512_loadu_ps(w.scales + g * PANEL_PAIR + LANES);
        }
        FOR_EACH_TOKEN(END_GROUP)
    }
    FOR_EACH_TOKEN(STORE_SUMS)
}

#define TILE_OF(n) \
    case n: tile(packing, n, y, x, w, mode); break;

/* `tile`, compiled for each number of tokens. */
static inline __attribute__((always_inline)) void
any_tile(const int packing, int64_t tokens, float **y, const int32_t **x, PanelPair w, int mode) {
    switch (tokens) {
        TILE_OF(1) TILE_OF(2) TILE_OF(3) TILE_OF(4) TILE_OF(5) TILE_OF(6) TILE_OF(7) TILE_OF(8)
        TILE_OF(9)
    }
}

#ifdef TALKBACK_AMX
/* `tile` by AMX: y = (or +=) x times two panels, for up to 32 tokens that lie side by side from the
 * first row of y and x on. */
static inline __attribute__((always_inline)) void
amx_block(const int packing, int64_t tokens, int first, Rows y, Rows x, PanelPair w, int mode) {
    int32_t sums[BLOCK_TOKENS][PANEL_PAIR] __attribute__((aligned(64)));
    __m512 total[BLOCK_TOKENS][2];
    int64_t size = w.dwords / w.groups;
    for (int64_t g = 0; g < w.groups; g++) {
        sum_tiles(packing, tokens > TILE_ROWS, first, sums[0], (int32_t *)x.data + g * size,
                  x.stride, w.panels + g * size * UNIT_BYTES, size);
        for (int64_t r = 0; r < tokens; r++)
            for (int64_t i = 0; i < 2; i++) {
                __m512i sum = _mm512_load_si512(sums[r] + i * LANES);
                if (packing == I8) {
                    const int32_t *scale = (int32_t *)row(x, r) + w.dwords + 2 * g;
                    __m512 before = g ? total[r][i] : _mm512_setzero_ps();
                    sum = _mm512_add_epi32(sum, _mm512_set1_epi32(scale[1]));
                    total[r][i] = add_group(before, sum, _mm512_set1_ps(*(const float *)scale),
                                            _mm512_loadu_ps(w.scales + g * PANEL_PAIR + i * LANES));
                } else
                    total[r][i] = (__m512)sum;
            }
    }
    for (int64_t r = 0; r < tokens; r++)
        for (int64_t i = 0; i < 2; i++)
            store_outputs(row(y, r) + i * LANES, total[r][i], w.bias + i * LANES,
                          first_lanes(w.outputs - i * LANES), mode);
}

/* How many of n tokens, at most a block, lie side by side from the first on. */
static int64_t side_by_side(const int64_t *token_indices, int64_t n) {
    int64_t count = 1;
    if (!token_indices)
        return min_of(n, BLOCK_TOKENS);
    while (count < min_of(n, BLOCK_TOKENS) && token_indices[count] == *token_indices + count)
        count++;
    return count;
}

/* `gemm` by AMX. */
static void amx_gemm(const Matrix *m, int64_t from, int64_t to, Rows y, Rows x,
                     const int64_t *token_indices, int64_t n, int mode) {
    for (int64_t out = from * PANEL_PAIR; out < to * PANEL_PAIR; out += PANEL_PAIR) {
        PanelPair w = panel_pair(m, out);
        for (int64_t done = 0, tokens; done < n; done += tokens) {
            int64_t token = token_indices ? token_indices[done] : done;
            tokens = side_by_side(token_indices ? token_indices + done : NULL, n - done);
            Rows ys = {row(y, token) + out, y.stride}, xs = {row(x, token), x.stride};
            if (m->packing == BF16)
                amx_block(BF16, tokens, !done, ys, xs, w, mode);
            else
                amx_block(I8, tokens, !done, ys, xs, w, mode);
        }
    }
}
#endif

/* y [..][outputs] = (or +=) x [..], packed, times panel pairs `from` to `to` of the matrix: for n
 * tokens, the first ones or those whose indices are given. Tiles are about equally high, since a
 * low one reads the same panels for less. */
static void gemm(const Matrix *m, int64_t from, int64_t to, Rows y, Rows x,
                 const int64_t *token_indices, int64_t n, int mode) {
    int64_t tiles = ceil_div(n, TILE_TOKENS);
    if (m->bias)
        mode |= ADD_BIAS;
#ifdef TALKBACK_AMX
    if (tile_dwords(m)) {
        configure_tiles(tile_dwords(m));
        amx_gemm(m, from, to, y, x, token_indices, n, mode);
        return;
    }
#endif
    for (int64_t out = from * PANEL_PAIR; out < to * PANEL_PAIR; out += PANEL_PAIR) {
        PanelPair w = panel_pair(m, out);
        for (int64_t t = 0; t < tiles; t++) {
            int64_t begin = n * t / tiles, tokens = n * (t + 1) / tiles - begin;
            float *ys[TILE_TOKENS];
            const int32_t *xs[TILE_TOKENS];
            for (int64_t r = 0; r < tokens; r++) {
                int64_t token = token_indices ? token_indices[begin + r] : begin + r;
                ys[r] = row(y, token) + out;
                xs[r] = (const int32_t *)row(x, token);
            }
            if (m->packing == F32)
                any_tile(F32, tokens, ys, xs, w, mode);
            else if (m->packing == BF16)
                any_tile(BF16, tokens, ys, xs, w, mode);
            else
                any_tile(I8, tokens, ys, xs, w, mode);
        }
    }
}

/* The calling thread's share of a product: some of the outputs, of all n tokens. */
static void parallel_gemm(Thread me, const Matrix *m, Rows y, Rows x, const int64_t *token_indices,
                          int64_t n, int mode) {
    int64_t pairs = ceil_div(m->outputs, PANEL_PAIR);
    gemm(m, share_begin(pairs, me), share_end(pairs, me), y, x, token_indices, n, mode);
}

/* What a thread does after its last product: AMX is left as it was. */
static inline void end_products(void) {
#ifdef TALKBACK_AMX
    release_tiles();
#endif
}
