/* One step of a Llama-like model on a CPU with AVX-512. `native.py` calls it. */
#include <math.h>

#include "attention.h"

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
        __m512 down = power_of_two(F32, _mm512_mul_ps(x, _mm512_set1_ps(-LOG2_E)));
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
static void place(const Model *m, const Step *s, int64_t layer, Part part, int64_t token,
                  int64_t head, Rows y) {
    const Layer *l = m->layer + layer;
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
    Rows x, y, read;  /* residuals, outputs of products, what attention read */
    Rows in, plain;   /* inputs of products, packed, and packed for adapters of another kind */
    Rows low, low_in; /* what adapters make of them, and that packed */
    Gate gate;
} Work;

static int64_t width(const Model *m, const Step *s, Work *w) { /* lays the rows out */
    int64_t in = packed(&m->head), plain = m->hidden, y = m->hidden, low = 0;
    for (int64_t l = 0; l < m->layers; l++)
        for (int j = 0; j < 4; j++) {
            in = larger(in, packed(&m->layer[l].joint[j]));
            plain = larger(plain, m->layer[l].joint[j].in);
            y = larger(y, m->layer[l].joint[j].out);
        }
    for (int64_t o = 0; o < s->all.owners; o++)
        low = larger(low, 3 * s->all.owner[o].rank);
    int64_t sizes[] = {m->hidden, y, m->heads * m->size, in, plain, low, low}, total = 0;
    Rows *rows[] = {&w->x, &w->y, &w->read, &w->in, &w->plain, &w->low, &w->low_in};
    for (int i = 0; i < 7; i++) {
        int64_t pitch = up_to(sizes[i], LANES) * LANES;
        *rows[i] = (Rows){s->scratch + total * s->all.count, pitch};
        total += pitch;
    }
    return total;
}

/* Pack n floats of a token as the input of a joint, and of what adapters add to it. */
static void hand(const Work *w, const Matrix *m, int64_t token, const float *from) {
    pack((int32_t *)row(w->in, token), from, m->in, m->kind, m->groups);
    if (w->s->all.owners && m->kind != w->m->kind)
        pack((int32_t *)row(w->plain, token), from, m->in, w->m->kind, 1);
}

/* y = (or +=) what a joint and the tokens' adapters make of their inputs. */
static void multiply(Thread me, const Work *w, const Tokens *t, int64_t layer, int joint, Rows y,
                     int add) {
    const Matrix *m = &w->m->layer[layer].joint[joint];
    int64_t kind = w->m->kind;
    Rows plain = m->kind == kind ? w->in : w->plain;
    shared_product(me, m, y, w->in, NULL, t->count, add);
    for (int64_t o = 0; o < t->owners; o++) {
        const Owner *own = t->owner + o;
        const Low *low = own->low + layer * 4 + joint;
        shared_product(me, &low->down, w->low, plain, own->tokens, own->count, 0);
    }
    meet(me);
    if (!t->owners)
        return;
    for (int64_t o = 0; o < t->owners; o++) {
        const Owner *own = t->owner + o;
        int64_t n = own->rank * own->low[layer * 4 + joint].linears;
        for MINE(i, own->count)
            pack((int32_t *)row(w->low_in, own->tokens[i]), row(w->low, own->tokens[i]), n, kind,
                 1);
    }
    meet(me);
    for (int64_t o = 0; o < t->owners; o++) {
        const Owner *own = t->owner + o;
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

/* All tokens' queries of a layer, in y; their keys and values are kept. */
static void begin_layer(Thread me, const Work *w, int64_t layer) {
    const Model *m = w->m;
    const Step *s = w->s;
    const Layer *l = m->layer + layer;
    for MINE(t, s->all.count) {
        norm(row(w->y, t), row(w->x, t), l->before, m->hidden, m->eps);
        hand(w, &l->joint[QKV], t, row(w->y, t));
    }
    meet(me);
    multiply(me, w, &s->all, layer, QKV, w->y, 0);
    int64_t heads = m->heads + 2 * m->kv;
    for (const Part *part = s->all.part; part < s->all.part + s->all.parts; part++)
        for MINE(i, part->count * heads)
            place(m, s, layer, *part, part->first + i / heads, i % heads, w->y);
    meet(me);
}

/* The rest of it, for some tokens. */
static void end_layer(Thread me, const Work *w, const Tokens *some, int64_t layer) {
    const Model *m = w->m;
    const Layer *l = m->layer + layer;
    attend_all(me, m, w->s, some, layer, w->y, w->read);
    meet(me);
    for MINE(t, some->count)
        hand(w, &l->joint[OUT], t, row(w->read, t));
    meet(me);
    multiply(me, w, some, layer, OUT, w->x, ADDED);
    for MINE(t, some->count) {
        norm(row(w->y, t), row(w->x, t), l->after, m->hidden, m->eps);
        hand(w, &l->joint[GATE_UP], t, row(w->y, t));
    }
    meet(me);
    multiply(me, w, some, layer, GATE_UP, w->y, 0);
    for MINE(t, some->count) {
        activate(row(w->y, t), row(w->y, t) + m->inner, m->inner);
        hand(w, &l->joint[DOWN], t, row(w->y, t));
    }
    meet(me);
    multiply(me, w, some, layer, DOWN, w->x, ADDED);
}

/* The tokens that are told come first, and the others are over. */
static void leave_told(Thread me, const Work *w) {
    const Step *s = w->s;
    if (me.number == 0 && s->told.count < s->all.count)
        for (int64_t i = 0; i < s->told.count; i++) {
            memmove(row(w->x, i), row(w->x, s->last[i]), w->x.pitch * sizeof(float));
            memmove(row(w->y, i), row(w->y, s->last[i]), w->y.pitch * sizeof(float));
        }
    meet(me);
}

static void run_step(void *data) {
    Work *w = data;
    const Model *m = w->m;
    const Step *s = w->s;
    Thread me = self(&w->gate);
    for MINE(t, s->all.count)
        embed(row(w->x, t), m->embedding, s->ids[t], m->hidden, m->words);
    meet(me);
    for (int64_t layer = 0; layer < m->layers - 1; layer++) {
        begin_layer(me, w, layer);
        end_layer(me, w, &s->all, layer);
    }
    begin_layer(me, w, m->layers - 1);
    leave_told(me, w);
    end_layer(me, w, &s->told, m->layers - 1);
    for MINE(t, s->told.count) {
        norm(row(w->y, t), row(w->x, t), m->norm, m->hidden, m->eps);
        pack((int32_t *)row(w->in, t), row(w->y, t), m->hidden, m->head.kind, m->head.groups);
    }
    meet(me);
    shared_product(me, &m->head, (Rows){s->logits, m->head.out}, w->in, NULL, s->told.count, 0);
}

/* Floats of scratch that a step takes. */
int64_t talkback_scratch(const Model *m, const Step *s) {
    Work w;
    return width(m, s, &w) * s->all.count;
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
    shared_product(self(NULL), p->m, p->y, p->x, NULL, p->n, 0);
}

/* x [n][in], packed in `room`, which has as many dwords a token as `packed` says -> y [n][out]. */
void talkback_product(const Matrix *m, float *y, const float *x, int32_t *room, int64_t n,
                      int64_t threads) {
    Single p = {m, {y, m->out}, {(float *)room, packed(m)}, n};
    for (int64_t i = 0; i < n; i++)
        pack((int32_t *)row(p.x, i), x + i * m->in, m->in, m->kind, m->groups);
    together(run_product, &p, threads);
}
