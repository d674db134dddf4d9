/* How threads share out attention.
 *
 * A task is some consecutive tokens of a chunk with the query heads of one key/value head: they
 * read the same keys and values, which are then packed once for all of them. What a token costs
 * grows with its position, so that threads get equal shares of the cost and not of the tokens. */
#pragma once
#include "pack.h"
#include "threads.h"

#define QUERY_BLOCK 256 /* queries (tokens times heads) of a task, at most */

typedef struct {
    Chunk chunk; /* `chunk.num_tokens` is 0 where there is no task */
    int64_t kv_head;
    int64_t begin, end; /* tokens, counted within the chunk */
} AttentionTask;

/* Goes through one thread's share of the tasks: chunk by chunk, head by head, token by token. */
typedef struct {
    int64_t chunk, kv_head, begin; /* of what comes next */
    int64_t cost_before;           /* of everything before this chunk and head */
    int64_t cost_begin, cost_end;  /* the thread's share of the cost of everything */
} TaskIterator;

/* What a chunk's tokens cost for one head: about as many keys as they look back at, in total. */
static int64_t chunk_cost(Chunk chunk) {
    return chunk.num_tokens * (chunk.start + chunk.num_tokens);
}

static TaskIterator iterate_tasks(Thread me, const Model *m, const TokenBatch *t) {
    int64_t all = 0;
    for (int64_t c = 0; c < t->num_chunks; c++)
        all += chunk_cost(t->chunks[c]) * m->num_kv_heads;
    return (TaskIterator){.cost_begin = share_begin(all, me), .cost_end = share_end(all, me)};
}

/* How many of a chunk's tokens come before so much of its cost. */
static int64_t tokens_before(Chunk chunk, int64_t cost) {
    int64_t per_token = chunk.start + chunk.num_tokens;
    return max_of(0, min_of(chunk.num_tokens, (cost + per_token / 2) / per_token));
}

/* The next task of this thread's share, or none. */
static AttentionTask next_task(TaskIterator *it, const Model *m, const TokenBatch *t) {
    while (it->chunk < t->num_chunks) {
        Chunk chunk = t->chunks[it->chunk];
        int64_t begin = max_of(it->begin, tokens_before(chunk, it->cost_begin - it->cost_before));
        int64_t end = tokens_before(chunk, it->cost_end - it->cost_before);
        it->begin = min_of(end, begin + QUERY_BLOCK * m->num_kv_heads / m->num_heads);
        if (begin < end)
            return (AttentionTask){chunk, it->kv_head, begin, it->begin};
        it->begin = 0;
        it->cost_before += chunk_cost(chunk);
        it->kv_head = (it->kv_head + 1) % m->num_kv_heads;
        it->chunk += it->kv_head == 0;
    }
    return (AttentionTask){0};
}
