/* The structs that Python fills and the kernels read.
 *
 * `structs.py` declares the same structs and constants for Python, and checks by `layout.h` that both
 * agree on every value, size and offset: a slip would read wrong memory silently.
 *
 * Every matrix product, those of attention included, multiplies tokens packed in dwords with a
 * matrix packed in panels. A dword holds one float, two bfloat16 or four bytes: exactly what one
 * lane of a multiply-add instruction (vfmadd231ps, vdpbf16ps, vpdpbusd) takes of each factor. A
 * panel holds 16 outputs side by side, dword by dword, so that one load of 64 bytes feeds all 16
 * lanes; two panels lie side by side, since a tile computes 32 outputs at a time.
 */
#pragma once
#include <stdint.h>

#define LANES 16       /* floats of a vector register, and outputs of a panel */
#define PANEL_PAIR 32  /* outputs of two panels side by side */
#define UNIT_BYTES 128 /* bytes of a dword of each of these outputs */

#define TILE_ROWS 16 /* packed tokens that AMX reads at a time, from any token on: behind the last one
                        of a buffer lies memory for 15 more, of whatever values */

#define MAX_SCALE_GROUP 128 /* inputs, at most, that share a scale when they become bytes */
#define MAX_ROTATION 64     /* and that are rotated together before, see `rotate` */

/* Packing of values: how many share a dword. */
enum { F32 = 1, BF16 = 2, I8 = 4 };

/* The products of a decoder layer, by index. Linears that read the same input are one matrix. */
enum { QKV, OUT, GATE_UP, DOWN, NUM_LINEARS };

/* A linear layer, y = x W^T + b. */
typedef struct {
    const uint8_t *panels; /* [outputs / 32][inputs / packing][2][16][packing], zero padded */
    const float *scales;   /* [outputs / 32][groups][32], of bytes, which are rotated as inputs
                              are and stored with 128 added; else NULL */
    const float *bias;     /* [outputs], or NULL */
    int64_t inputs, outputs;
    int64_t packing; /* F32, BF16 or I8 */
    int64_t groups;  /* of inputs that share a scale, in x and in each output, as bytes; else 1 */
} Matrix;

typedef struct {
    Matrix linears[NUM_LINEARS];
    const float *input_norm;          /* [hidden_size] */
    const float *post_attention_norm; /* [hidden_size] */
    const float *q_norm, *k_norm;     /* [head_size], or NULL where the model has none */
} Layer;

/* What is the same for every forward. */
typedef struct {
    int64_t num_layers, hidden_size, intermediate_size;
    int64_t num_heads, num_kv_heads, head_size;
    int64_t packing;           /* of the cache and the adapters: F32 or BF16 */
    int64_t embedding_packing; /* F32 or BF16 */
    float eps;                 /* of the norms */
    float attention_scale;     /* of q k^T, before the softmax */
    const Layer *layers;       /* [num_layers] */
    const float *final_norm;   /* [hidden_size] */
    const uint8_t *embedding;  /* [vocab][hidden_size] */
    Matrix lm_head;
} Model;

/* Consecutive tokens of one sequence, which go to one row of the cache. */
typedef struct {
    int64_t first_token; /* index among the tokens of the batch */
    int64_t num_tokens;
    int64_t cache_row;
    int64_t start; /* position of the first token in its sequence */
} Chunk;

/* LoRA of one adapter for one of a layer's fused linears: y += B (A x), the scale within B. */
typedef struct {
    Matrix a;    /* the A of all its linears, stacked: [num_linears * rank, inputs] */
    Matrix b[3]; /* the B of each, for its part of the outputs */
    int64_t num_linears;
} Lora;

/* The tokens of a batch that one adapter serves. */
typedef struct {
    const int64_t *token_indices; /* [num_tokens] */
    int64_t num_tokens, rank;
    const Lora *loras; /* [num_layers][NUM_LINEARS] */
} AdapterTokens;

typedef struct {
    int64_t num_tokens, num_chunks, num_adapters;
    const Chunk *chunks;           /* [num_chunks] */
    const AdapterTokens *adapters; /* [num_adapters]; tokens of the base are in none */
} TokenBatch;

/* One forward. */
typedef struct {
    int64_t num_threads;
    int64_t kv_capacity;      /* positions that a row of the cache has memory for */
    const int64_t *token_ids; /* [tokens] */
    const float *cos, *sin;   /* [tokens][head_size]: rotary embedding of each token's position */
    void *const *key_cache;   /* [layers] -> [rows][num_kv_heads][kv_capacity][head_size] */
    void *const *value_cache; /* the same */
    float *scratch;           /* as many floats as `talkback_scratch_floats` returns */
    float *logits;            /* [logit tokens][vocab] */
    const int64_t *logit_rows; /* [logit tokens]: their indices among all tokens, ascending */
    TokenBatch tokens;         /* all */
    TokenBatch logit_tokens; /* those with logits: no others go through the end of the last layer */
} ForwardArgs;
