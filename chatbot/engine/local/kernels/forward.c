/* One forward of a Llama-like model on a CPU with AVX-512; `runners/llama_cpu.py` calls it.
 *
 * All threads run all layers side by side and share out each operation: products by outputs,
 * attention by cost, everything else by tokens. A barrier stands wherever a thread reads what
 * others have written. Activations are float32 between products; inputs of a product are packed
 * in its matrix's type once, by whoever computed them, and not once a thread. */
#include <math.h>

#include "attention.h"
#include "layout.h"

/* -- What is between the products, for one token */

/* RMSNorm of n floats: x / sqrt(mean(x^2) + eps) * weight. `to` may be x. */
static void rms_norm(float *to, const float *x, const float *weight, int64_t n, float eps) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += LANES) {
        __m512 values = _mm512_maskz_loadu_ps(first_lanes(n - i), x + i);
        sum = _mm512_fmadd_ps(values, values, sum);
    }
    float scale = 1 / sqrtf(_mm512_reduce_add_ps(sum) / (float)n + eps);
    for (int64_t i = 0; i < n; i++)
        to[i] = x[i] * scale * weight[i];
}

/* Rotary position embedding (RoPE) of one head, in place. The model's halves are paired, i with
 * i + size / 2, as transformers' `rotate_half` does. */
static void rope(float *x, const float *cos, const float *sin, int64_t size) {
    for (int64_t i = 0, j = size / 2; i < size / 2; i++, j++) {
        float a = x[i], b = x[j];
        x[i] = a * cos[i] - b * sin[i];
        x[j] = b * cos[j] + a * sin[j];
    }
}

/* gate = silu(gate) * up, for n floats each: silu(x) is x / (1 + e^-x). */
static void silu_and_multiply(float *gate, const float *up, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) {
        __mmask16 lanes = first_lanes(n - i);
        __m512 x = _mm512_maskz_loadu_ps(lanes, gate + i);
        __m512 y = _mm512_maskz_loadu_ps(lanes, up + i);
        __m512 power = exp2_fit(F32, _mm512_mul_ps(x, _mm512_set1_ps(-LOG2_E)));
        x = _mm512_div_ps(_mm512_mul_ps(x, y), _mm512_add_ps(power, _mm512_set1_ps(1)));
        _mm512_mask_storeu_ps(gate + i, lanes, x);
    }
}

/* The embedding of a token [n], widened to floats. */
static void embed(float *to, const uint8_t *table, int64_t id, int64_t n, int64_t packing) {
    if (packing == F32) {
        memcpy(to, (const float *)table + id * n, n * sizeof(float));
        return;
    }
    const uint16_t *from = (const uint16_t *)table + id * n;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)from[i] << 16;
        memcpy(to + i, &bits, sizeof(float));
    }
}

/* One head of one token, of its queries, keys and values side by side in y: normalize and rotate
 * it, but for values, and store keys and values in the cache, in the cache's type. */
static void rope_and_store_kv(const Model *m, const ForwardArgs *args, int64_t layer, Chunk chunk,
                              int64_t token, int64_t head, Rows y) {
    const Layer *l = m->layers + layer;
    float *x = row(y, token) + head * m->head_size;
    const float *weight = head < m->num_heads ? l->q_norm : l->k_norm;
    if (head < m->num_heads + m->num_kv_heads) {
        if (weight)
            rms_norm(x, x, weight, m->head_size, m->eps);
        rope(x, args->cos + token * m->head_size, args->sin + token * m->head_size, m->head_size);
    }
    if (head < m->num_heads)
        return;
    int64_t kv_head = (head - m->num_heads) % m->num_kv_heads;
    int64_t position = chunk.start + token - chunk.first_token;
    void *cache =
        (head < m->num_heads + m->num_kv_heads ? args->key_cache : args->value_cache)[layer];
    int64_t row_of_head = chunk.cache_row * m->num_kv_heads + kv_head;
    int64_t offset = (row_of_head * args->kv_capacity + position) * m->head_size / m->packing;
    pack((int32_t *)cache + offset, x, m->head_size, m->packing, 1);
}

/* -- A forward */

/* What all threads work on. Each of the rows has one for each token, in `scratch`. */
typedef struct {
    const Model *m;
    const ForwardArgs *args;
    Rows residual;         /* [hidden_size]: the residual stream */
    Rows y;                /* outputs of products, and of norms */
    Rows attention;        /* [num_heads * head_size]: outputs of attention */
    Rows input;            /* input of a product, packed for its matrix */
    Rows lora_input;       /* the same, packed for adapters, if those are of another type */
    Rows lora_down;        /* A x of the token's adapter */
    Rows lora_down_packed; /* that, packed as the input of B */
    Barrier barrier;
} Work;

/* How many tokens the rows have memory for, see TILE_ROWS. */
static int64_t scratch_tokens(const ForwardArgs *args) {
    return args->tokens.num_tokens + TILE_ROWS - 1;
}

/* Lay out the rows in `scratch`, wide enough for every layer, and return the floats that a token
 * takes. Rows are padded to whole vectors of 64 bytes. */
static int64_t lay_out(const Model *m, const ForwardArgs *args, Work *w) {
    int64_t input = packed_dwords(&m->lm_head), lora_input = m->hidden_size, y = m->hidden_size;
    int64_t lora_down = 0;
    for (int64_t l = 0; l < m->num_layers; l++)
        for (int j = 0; j < NUM_LINEARS; j++) {
            input = max_of(input, packed_dwords(&m->layers[l].linears[j]));
            lora_input = max_of(lora_input, m->layers[l].linears[j].inputs);
            y = max_of(y, m->layers[l].linears[j].outputs);
        }
    for (int64_t a = 0; a < args->tokens.num_adapters; a++)
        lora_down = max_of(lora_down, 3 * args->tokens.adapters[a].rank);
    int64_t attention = m->num_heads * m->head_size, total = 0;
    int64_t sizes[] = {m->hidden_size, y, attention, input, lora_input, lora_down, lora_down};
    Rows *rows[] = {&w->residual,   &w->y,         &w->attention,       &w->input,
                    &w->lora_input, &w->lora_down, &w->lora_down_packed};
    for (int i = 0; i < 7; i++) {
        int64_t stride = ceil_div(sizes[i], LANES) * LANES;
        *rows[i] = (Rows){args->scratch + total * scratch_tokens(args), stride};
        total += stride;
    }
    return total;
}

/* Pack a token's activations as the input of a matrix, and of what adapters add to it. */
static void pack_input(const Work *w, const Matrix *m, int64_t token, const float *from) {
    pack((int32_t *)row(w->input, token), from, m->inputs, m->packing, m->groups);
    if (w->args->tokens.num_adapters && m->packing != w->m->packing)
        pack((int32_t *)row(w->lora_input, token), from, m->inputs, w->m->packing, 1);
}

/* y = (or +=) W x + B A x for all tokens of a batch: one of a layer's fused linears, with each
 * token's own adapter. The inputs must have been packed, and a barrier passed. */
static void linear_with_lora(Thread me, const Work *w, const TokenBatch *t, int64_t layer,
                             int linear, Rows y, int mode) {
    const Matrix *m = &w->m->layers[layer].linears[linear];
    int64_t packing = w->m->packing;
    Rows lora_input = m->packing == packing ? w->input : w->lora_input;
    parallel_gemm(me, m, y, w->input, NULL, t->num_tokens, mode);
    for (int64_t a = 0; a < t->num_adapters; a++) {
        const AdapterTokens *own = t->adapters + a;
        const Lora *lora = own->loras + layer * NUM_LINEARS + linear;
        parallel_gemm(me, &lora->a, w->lora_down, lora_input, own->token_indices, own->num_tokens,
                      0);
    }
    barrier_wait(me);
    if (!t->num_adapters)
        return;
    for (int64_t a = 0; a < t->num_adapters; a++) {
        const AdapterTokens *own = t->adapters + a;
        int64_t n = own->rank * own->loras[layer * NUM_LINEARS + linear].num_linears;
        FOR_SHARE(i, own->num_tokens)
            pack((int32_t *)row(w->lora_down_packed, own->token_indices[i]),
                 row(w->lora_down, own->token_indices[i]), n, packing, 1);
    }
    barrier_wait(me);
    for (int64_t a = 0; a < t->num_adapters; a++) {
        const AdapterTokens *own = t->adapters + a;
        const Lora *lora = own->loras + layer * NUM_LINEARS + linear;
        Rows to = y, from = w->lora_down_packed;
        for (int64_t i = 0; i < lora->num_linears; i++) { /* the linears lie side by side in y */
            parallel_gemm(me, &lora->b[i], to, from, own->token_indices, own->num_tokens,
                          ACCUMULATE);
            to.data += lora->b[i].outputs;
            from.data += own->rank / packing;
        }
    }
    barrier_wait(me);
}

/* The first half of a layer, for all tokens: their queries are then in y, their keys and values in
 * the cache. */
static void project_qkv(Thread me, const Work *w, int64_t layer) {
    const Model *m = w->m;
    const ForwardArgs *args = w->args;
    const Layer *l = m->layers + layer;
    const TokenBatch *all = &args->tokens;
    FOR_SHARE(t, all->num_tokens) {
        rms_norm(row(w->y, t), row(w->residual, t), l->input_norm, m->hidden_size, m->eps);
        pack_input(w, &l->linears[QKV], t, row(w->y, t));
    }
    barrier_wait(me);
    linear_with_lora(me, w, all, layer, QKV, w->y, 0);
    int64_t heads = m->num_heads + 2 * m->num_kv_heads;
    for (const Chunk *chunk = all->chunks; chunk < all->chunks + all->num_chunks; chunk++)
        FOR_SHARE(i, chunk->num_tokens * heads)
            rope_and_store_kv(m, args, layer, *chunk, chunk->first_token + i / heads, i % heads,
                              w->y);
    barrier_wait(me);
}

/* The second half of a layer, for some tokens: attention and MLP, each added to the residual. */
static void attend_and_mlp(Thread me, const Work *w, const TokenBatch *some, int64_t layer) {
    const Model *m = w->m;
    const Layer *l = m->layers + layer;
    parallel_attention(me, m, w->args, some, layer, w->y, w->attention);
    barrier_wait(me);
    FOR_SHARE(t, some->num_tokens)
        pack_input(w, &l->linears[OUT], t, row(w->attention, t));
    barrier_wait(me);
    linear_with_lora(me, w, some, layer, OUT, w->residual, ACCUMULATE);
    FOR_SHARE(t, some->num_tokens) {
        rms_norm(row(w->y, t), row(w->residual, t), l->post_attention_norm, m->hidden_size, m->eps);
        pack_input(w, &l->linears[GATE_UP], t, row(w->y, t));
    }
    barrier_wait(me);
    linear_with_lora(me, w, some, layer, GATE_UP, w->y, 0);
    FOR_SHARE(t, some->num_tokens) {
        silu_and_multiply(row(w->y, t), row(w->y, t) + m->intermediate_size, m->intermediate_size);
        pack_input(w, &l->linears[DOWN], t, row(w->y, t));
    }
    barrier_wait(me);
    linear_with_lora(me, w, some, layer, DOWN, w->residual, ACCUMULATE);
}

/* Move the rows of the tokens whose logits are wanted to the front. No later layer reads what the
 * others would still compute, so a long prompt's last layer is only of its last token. Indices are
 * ascending: no row is overwritten before it has moved. */
static void keep_logit_tokens(Thread me, const Work *w) {
    const ForwardArgs *args = w->args;
    int64_t n = args->logit_tokens.num_tokens;
    if (me.index == 0 && n < args->tokens.num_tokens)
        for (int64_t i = 0; i < n; i++) {
            int64_t from = args->logit_rows[i];
            memmove(row(w->residual, i), row(w->residual, from),
                    w->residual.stride * sizeof(float));
            memmove(row(w->y, i), row(w->y, from), w->y.stride * sizeof(float));
        }
    barrier_wait(me);
}

/* Where a forward counts its layers, for whoever watches that it gets on; set by Python. */
int64_t *talkback_progress;

static void count_layer(Thread me) {
    if (me.index == 0 && talkback_progress)
        __atomic_fetch_add(talkback_progress, 1, __ATOMIC_RELAXED);
}

/* A forward, on one of its threads. */
static void run_forward(void *data) {
    Work *w = data;
    const Model *m = w->m;
    const ForwardArgs *args = w->args;
    int64_t last = m->num_layers - 1, n = args->logit_tokens.num_tokens;
    Thread me = this_thread(&w->barrier);
    FOR_SHARE(t, args->tokens.num_tokens)
        embed(row(w->residual, t), m->embedding, args->token_ids[t], m->hidden_size,
              m->embedding_packing);
    barrier_wait(me);
    for (int64_t layer = 0; layer < last; layer++) {
        project_qkv(me, w, layer);
        attend_and_mlp(me, w, &args->tokens, layer);
        count_layer(me);
    }
    project_qkv(me, w, last);
    keep_logit_tokens(me, w);
    attend_and_mlp(me, w, &args->logit_tokens, last);
    count_layer(me);
    FOR_SHARE(t, n) {
        rms_norm(row(w->y, t), row(w->residual, t), m->final_norm, m->hidden_size, m->eps);
        pack((int32_t *)row(w->input, t), row(w->y, t), m->hidden_size, m->lm_head.packing,
             m->lm_head.groups);
    }
    barrier_wait(me);
    parallel_gemm(me, &m->lm_head, (Rows){args->logits, m->lm_head.outputs}, w->input, NULL, n, 0);
    end_products();
}

/* -- What Python calls, in `library.py` */

/* Floats of scratch that a forward takes. */
int64_t talkback_scratch_floats(const Model *m, const ForwardArgs *args) {
    Work w;
    return lay_out(m, args, &w) * scratch_tokens(args);
}

/* Run the model on the tokens: keys and values go to the cache, logits to `logits`. */
void talkback_forward(const Model *m, const ForwardArgs *args) {
    Work w = {.m = m, .args = args};
    lay_out(m, args, &w);
    parallel(run_forward, &w, args->num_threads);
}

typedef struct {
    const Matrix *m;
    Rows y, x;
    int64_t n;
} GemmArgs;

static void run_gemm(void *data) {
    const GemmArgs *g = data;
    parallel_gemm(this_thread(NULL), g->m, g->y, g->x, NULL, g->n, 0);
    end_products();
}

/* One product: x [n][inputs] -> y [n][outputs]. `packed` is memory for x packed, as many dwords a
 * token as `packed_dwords` returns, and for 15 tokens more. */
void talkback_gemm(const Matrix *m, float *y, const float *x, int32_t *packed, int64_t n,
                   int64_t threads) {
    GemmArgs g = {m, {y, m->outputs}, {(float *)packed, packed_dwords(m)}, n};
    for (int64_t i = 0; i < n; i++)
        pack((int32_t *)row(g.x, i), x + i * m->inputs, m->inputs, m->packing, m->groups);
    parallel(run_gemm, &g, threads);
}

/* The table of struct layouts, and in `count` how many entries it has. */
const FieldLayout *talkback_layout(int64_t *count) {
    *count = sizeof(layouts) / sizeof(layouts[0]);
    return layouts;
}
