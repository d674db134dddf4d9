/* Attention over the key/value cache, with an online softmax (FlashAttention).
 *
 * Block by block of positions, keys and values are packed as the panels of two matrices, so that
 * the products of `gemm.h` compute scores = q k^T and outputs = weights v. Scores never exist for
 * more than a block: a running sum of weights, and a base that their exponents are taken from, are
 * kept for each query instead (see `SoftmaxState`). */
#pragma once
#include <float.h>

#include "attention_tasks.h"
#include "gemm.h"

#define KV_BLOCK 128      /* positions whose keys and values are packed at a time */
#define POSITIONS_UNIT 32 /* they are filled up with none to a multiple, which tiles want */
#define MAX_HEAD_SIZE 256 /* buffers on the stack; `llama_cpu.py` refuses larger ones */
#define MAX_LOG2_WEIGHT 8 /* weights may grow to 2^8 before the base moves and all is rescaled */

/* Transpose 16 rows of 16 dwords in registers. */
static inline __attribute__((always_inline)) void transpose_16x16(__m512i *x) {
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

/* Keys [n][dwords] -> panels of a matrix whose outputs are the n positions: 16 keys are read as
 * rows and stored as columns. Cache line by cache line the keys of the next block, `ahead`, are
 * prefetched meanwhile: all at once they would take twice as long. */
static void pack_keys(uint8_t *to, const int32_t *keys, int64_t n, int64_t dwords,
                      const int32_t *ahead) {
    for (int64_t p = 0; p < n; p += LANES)
        for (int64_t u = 0; u < dwords; u += LANES) {
            const int32_t *from = keys + p * dwords + u, *next = ahead + p * dwords + u;
            __mmask16 lanes = first_lanes(dwords - u), rows = first_lanes(n - p);
            __m512i x[LANES];
            for (int64_t i = 0; i < LANES; i++, from += dwords, next += dwords) {
                _mm_prefetch(next, _MM_HINT_T1);
                x[i] = _mm512_maskz_loadu_epi32(rows >> i & 1 ? lanes : 0, from);
            }
            transpose_16x16(x);
            uint8_t *panel = to + ((p / PANEL_PAIR * dwords + u) * 2 + p / LANES % 2) * 64;
            for (int64_t i = 0; i < LANES && u + i < dwords; i++)
                _mm512_storeu_si512(panel + i * UNIT_BYTES, x[i]);
        }
}

/* Values [n][size] -> panels of a matrix whose inputs are so many `positions`: after the n come
 * zeros. A dword in bfloat16 holds the values of two positions, so two rows are interleaved. */
static void pack_values(uint8_t *to, const int32_t *values, int64_t n, int64_t positions,
                        int64_t size, int64_t packing, const int32_t *ahead) {
    int64_t dwords = positions / packing;
    for (int64_t u = 0; u < dwords; u++)
        for (int64_t d = 0; d < size; d += LANES) {
            __mmask16 lanes = first_lanes(size - d);
            __m512i x;
            _mm_prefetch(ahead + u * size + d, _MM_HINT_T1);
            if (packing == F32)
                x = _mm512_maskz_loadu_epi32(u < n ? lanes : 0, values + u * size + d);
            else {
                const uint16_t *even = (const uint16_t *)values + 2 * u * size + d;
                __mmask16 even_lanes = 2 * u < n ? lanes : 0, odd_lanes = 2 * u + 1 < n ? lanes : 0;
                x = _mm512_or_si512(
                    _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(even_lanes, even)),
                    _mm512_slli_epi32(
                        _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(odd_lanes, even + size)),
                        16));
            }
            _mm512_storeu_si512(to + ((d / PANEL_PAIR * dwords + u) * 2 + d / LANES % 2) * 64, x);
        }
}

/* The softmax of a query over the positions that it has read so far. A position's weight is 2 to
 * the power of its score less the base, times the scale; outputs are divided by the sum at last. */
typedef struct {
    __m512 weight_sums; /* lane by lane, to be added up */
    float base_score;   /* the score whose weight is 1 */
} SoftmaxState;

/* Scores of n positions, of which the first `visible` count (causal mask) -> their weights, packed
 * for the product with the values. Only a score that is far above the base becomes the new base:
 * rescaling at every new maximum would cost more, and weights up to 2^8 do no harm. What was summed
 * before shrinks then; the factor is returned, for the outputs so far. */
static inline __attribute__((always_inline)) float
softmax_weights(const int packing, float *scores, int32_t *weights, int64_t visible, int64_t n,
                float scale, SoftmaxState *state) {
    float shrink = 1;
    __m512 high = _mm512_set1_ps(-FLT_MAX), sums = _mm512_setzero_ps();
    for (int64_t p = max_of(0, visible); p < ceil_div(n, LANES) * LANES; p++)
        scores[p] = -FLT_MAX;
    for (int64_t p = 0; p < n; p += LANES)
        high = _mm512_max_ps(high, _mm512_loadu_ps(scores + p));
    __m512 limit = _mm512_set1_ps(state->base_score + MAX_LOG2_WEIGHT / scale);
    if (_mm512_cmp_ps_mask(high, limit, _CMP_NLE_UQ)) { /* true of NaN too */
        float before = state->base_score;
        state->base_score = _mm512_reduce_max_ps(high);
        __m512 factor = exp2_fit(F32, _mm512_set1_ps((before - state->base_score) * scale));
        state->weight_sums = _mm512_mul_ps(state->weight_sums, factor);
        shrink = _mm512_cvtss_f32(factor);
    }
    __m512 base = _mm512_set1_ps(state->base_score * scale);
    for (int64_t p = 0; p < n; p += LANES) {
        __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(scores + p), _mm512_set1_ps(scale), base);
        x = exp2_fit(packing, x);
        sums = _mm512_add_ps(sums, x);
        if (packing == F32)
            _mm512_storeu_ps((float *)weights + p, x);
        else
            _mm256_storeu_si256((__m256i *)((uint16_t *)weights + p), to_bfloat16(x));
    }
    state->weight_sums = _mm512_add_ps(state->weight_sums, sums);
    return shrink;
}

/* Keys and values of one head at up to KV_BLOCK positions. */
typedef struct {
    const int32_t *keys, *values; /* [count][head_size], packed */
    int64_t count;
} KvBlock;

/* The block from `position` on, of what a task's tokens may read: all up to the last of them. */
static inline KvBlock kv_block(const Model *m, const ForwardArgs *args, int64_t layer,
                               const AttentionTask *task, int64_t position) {
    int64_t length = task->chunk.start + task->end;
    int64_t row = task->chunk.cache_row * m->num_kv_heads + task->kv_head;
    int64_t offset = (row * args->kv_capacity + position) * m->head_size / m->packing;
    return (KvBlock){(const int32_t *)args->key_cache[layer] + offset,
                     (const int32_t *)args->value_cache[layer] + offset,
                     max_of(0, min_of(KV_BLOCK, length - position))};
}

/* One task: queries in y -> outputs in out, both [tokens][num_heads][head_size]. `next` is the
 * task that this thread takes afterwards, whose first block is prefetched during the last one here.
 *
 * Queries that share a key/value head (grouped-query attention) lie side by side like tokens, query
 * q being head q % group of token q / group; they are scored in blocks of BLOCK_TOKENS. */
static void attend(const Model *m, const ForwardArgs *args, int64_t layer,
                   const AttentionTask *task, const AttentionTask *next, Rows y, Rows out) {
    uint8_t keys[KV_BLOCK * MAX_HEAD_SIZE * 4], values[KV_BLOCK * MAX_HEAD_SIZE * 4];
    float scores[BLOCK_TOKENS * KV_BLOCK], outputs[QUERY_BLOCK * MAX_HEAD_SIZE];
    float scale = m->attention_scale * LOG2_E; /* weights are powers of 2, not of e */
    int32_t queries[(QUERY_BLOCK + TILE_ROWS - 1) * MAX_HEAD_SIZE];
    int32_t weights[BLOCK_TOKENS * KV_BLOCK];
    SoftmaxState states[QUERY_BLOCK];
    int64_t group = m->num_heads / m->num_kv_heads, n = (task->end - task->begin) * group;
    int64_t size = m->head_size, dwords = size / m->packing;
    int64_t token = task->chunk.first_token + task->begin;
    int64_t position = task->chunk.start + task->begin, length = task->chunk.start + task->end;
    for (int64_t q = 0; q < n; q++) {
        const float *from = row(y, token + q / group) + (task->kv_head * group + q % group) * size;
        pack(queries + q * dwords, from, size, m->packing, 1);
        states[q] = (SoftmaxState){_mm512_setzero_ps(), -FLT_MAX / 2};
    }
    for (int64_t k = 0; k < length; k += KV_BLOCK) {
        KvBlock b = kv_block(m, args, layer, task, k), ahead = b;
        if (k + KV_BLOCK < length)
            ahead = kv_block(m, args, layer, task, k + KV_BLOCK);
        else if (next->chunk.num_tokens)
            ahead = kv_block(m, args, layer, next, 0);
        pack_keys(keys, b.keys, b.count, dwords, ahead.keys);
        int64_t positions = ceil_div(b.count, POSITIONS_UNIT) * POSITIONS_UNIT;
        pack_values(values, b.values, b.count, positions, size, m->packing, ahead.values);
        Matrix to_keys = {keys, NULL, NULL, size, b.count, m->packing, 1};
        Matrix to_values = {values, NULL, NULL, positions, size, m->packing, 1};
        for (int64_t t = 0, tiles = ceil_div(n, BLOCK_TOKENS); t < tiles; t++) {
            int64_t q = n * t / tiles, tokens = n * (t + 1) / tiles - q;
            gemm(&to_keys, 0, ceil_div(b.count, PANEL_PAIR), (Rows){scores, KV_BLOCK},
                 (Rows){(float *)(queries + q * dwords), dwords}, NULL, tokens, 0);
            for (int64_t i = q; i < q + tokens; i++) {
                int64_t visible = min_of(position + i / group + 1 - k, b.count);
                float *from = scores + (i - q) * KV_BLOCK;
                int32_t *to = weights + (i - q) * KV_BLOCK;
                SoftmaxState *state = states + i;
                float shrink =
                    m->packing == F32
                        ? softmax_weights(F32, from, to, visible, positions, scale, state)
                        : softmax_weights(BF16, from, to, visible, positions, scale, state);
                for (int64_t d = 0; k && shrink != 1 && d < size; d++)
                    outputs[i * size + d] *= shrink;
            }
            gemm(&to_values, 0, ceil_div(size, PANEL_PAIR), (Rows){outputs + q * size, size},
                 (Rows){(float *)weights, KV_BLOCK}, NULL, tokens, k ? ACCUMULATE : 0);
        }
    }
    for (int64_t q = 0; q < n; q++) {
        float *to = row(out, token + q / group) + (task->kv_head * group + q % group) * size;
        float sum = _mm512_reduce_add_ps(states[q].weight_sums);
        for (int64_t d = 0; d < size; d++)
            to[d] = outputs[q * size + d] / sum;
    }
}

/* The calling thread's share of a layer's attention, for the tokens of a batch. */
static void parallel_attention(Thread me, const Model *m, const ForwardArgs *args,
                               const TokenBatch *t, int64_t layer, Rows y, Rows out) {
    TaskIterator tasks = iterate_tasks(me, m, t);
    for (AttentionTask task = next_task(&tasks, m, t); task.chunk.num_tokens;) {
        AttentionTask next = next_task(&tasks, m, t);
        attend(m, args, layer, &task, &next, y, out);
        task = next;
    }
}
