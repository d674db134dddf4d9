/* What Python hands over: `__init__.py` has the same structs, field by field.
 *
 * Every product, also both of attention, is of tokens packed in dwords with a matrix packed in
 * panels. A dword holds one float, two bfloat16 or four bytes; the kind of a matrix is how many. A
 * panel holds 16 outputs side by side, dword by dword, and two panels lie side by side in a column.
 */
#pragma once
#include <stdint.h>

#define LANES 16  /* floats of a vector: outputs of a panel */
#define COLUMN 32 /* outputs of a column */

enum { F32 = 1, BF16 = 2, I8 = 4 };
enum { QKV, OUT, GATE_UP, DOWN };

typedef struct { /* y = x W^T + b */
    const uint8_t *panels; /* [out / 32][in / kind][2][16][kind], filled up with zeros */
    const float *scale;    /* [out], of bytes; they are 128 more than they stand for */
    const float *bias;     /* [out], or NULL */
    int64_t in, out, kind;
    int64_t groups; /* of inputs that share a scale, where those are bytes; else 1 */
} Matrix;

typedef struct {
    Matrix joint[4];             /* by QKV, OUT, GATE_UP and DOWN */
    const float *before, *after; /* [hidden]: weights of the norms */
    const float *queries, *keys; /* [size]: of the norms of queries and keys, or NULL */
} Layer;

typedef struct {
    int64_t layers, hidden, inner, heads, kv, size;
    int64_t kind;  /* of the cache and the adapters: F32 or BF16 */
    int64_t words; /* the embedding's */
    float eps, scale;
    const Layer *layer;
    const float *norm;        /* [hidden] */
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

typedef struct { /* some tokens, side by side */
    int64_t count, parts, owners;
    const Part *part;
    const Owner *owner;
} Tokens;

typedef struct {
    int64_t threads, positions;
    const int64_t *ids;     /* [all.count] */
    const float *cos, *sin; /* [all.count][size] */
    void *const *keys, *const *values; /* [layers] -> [rows][kv][positions][size] */
    float *scratch;         /* as much as `talkback_scratch` says */
    float *logits;          /* [told.count][vocabulary] */
    const int64_t *last;    /* [told.count]: which of all tokens they are, in order */
    Tokens all, told;       /* those whose logits are wanted alone go through all of the last layer */
} Step;
