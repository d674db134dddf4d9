/* Constants, and sizes and offsets of the structs as this compiler laid them out; `library.py`
 * compares them with those of `structs.py`. */
#pragma once
#include <stddef.h>

#include "structs.h"

typedef struct {
    const char *struct_name;
    const char *field; /* "" for the struct as a whole */
    int64_t offset, size;
} FieldLayout;

#define WHOLE(type) {#type, "", 0, sizeof(type)}
#define CONSTANT(name) {"", #name, 0, name}
#define FIELD(type, name) {#type, #name, offsetof(type, name), sizeof(((type *)0)->name)}

static const FieldLayout layouts[] = {
    CONSTANT(LANES),
    CONSTANT(PANEL_PAIR),
    CONSTANT(TILE_ROWS),
    CONSTANT(MAX_SCALE_GROUP),
    CONSTANT(MAX_ROTATION),
    CONSTANT(NUM_LINEARS),

    WHOLE(Matrix),
    FIELD(Matrix, panels),
    FIELD(Matrix, scales),
    FIELD(Matrix, bias),
    FIELD(Matrix, inputs),
    FIELD(Matrix, outputs),
    FIELD(Matrix, packing),
    FIELD(Matrix, groups),

    WHOLE(Layer),
    FIELD(Layer, linears),
    FIELD(Layer, input_norm),
    FIELD(Layer, post_attention_norm),
    FIELD(Layer, q_norm),
    FIELD(Layer, k_norm),

    WHOLE(Model),
    FIELD(Model, num_layers),
    FIELD(Model, hidden_size),
    FIELD(Model, intermediate_size),
    FIELD(Model, num_heads),
    FIELD(Model, num_kv_heads),
    FIELD(Model, head_size),
    FIELD(Model, packing),
    FIELD(Model, embedding_packing),
    FIELD(Model, eps),
    FIELD(Model, attention_scale),
    FIELD(Model, layers),
    FIELD(Model, final_norm),
    FIELD(Model, embedding),
    FIELD(Model, lm_head),

    WHOLE(Chunk),
    FIELD(Chunk, first_token),
    FIELD(Chunk, num_tokens),
    FIELD(Chunk, cache_row),
    FIELD(Chunk, start),

    WHOLE(Lora),
    FIELD(Lora, a),
    FIELD(Lora, b),
    FIELD(Lora, num_linears),

    WHOLE(AdapterTokens),
    FIELD(AdapterTokens, token_indices),
    FIELD(AdapterTokens, num_tokens),
    FIELD(AdapterTokens, rank),
    FIELD(AdapterTokens, loras),

    WHOLE(TokenBatch),
    FIELD(TokenBatch, num_tokens),
    FIELD(TokenBatch, num_chunks),
    FIELD(TokenBatch, num_adapters),
    FIELD(TokenBatch, chunks),
    FIELD(TokenBatch, adapters),

    WHOLE(ForwardArgs),
    FIELD(ForwardArgs, num_threads),
    FIELD(ForwardArgs, kv_capacity),
    FIELD(ForwardArgs, token_ids),
    FIELD(ForwardArgs, cos),
    FIELD(ForwardArgs, sin),
    FIELD(ForwardArgs, key_cache),
    FIELD(ForwardArgs, value_cache),
    FIELD(ForwardArgs, scratch),
    FIELD(ForwardArgs, logits),
    FIELD(ForwardArgs, logit_rows),
    FIELD(ForwardArgs, tokens),
    FIELD(ForwardArgs, logit_tokens),
};
