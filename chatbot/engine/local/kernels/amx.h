/* The tile registers of AMX, and products by them.
 *
 * A tile holds 16 rows of 64 bytes. One instruction multiplies a tile of packed tokens with a tile
 * of a panel, which has just the rows that it wants, and adds 16 x 16 sums to a third. What a token
 * gets of it does not depend on the tile's other rows: a tile may reach beyond the last token, into
 * whatever lies there, and the sums of those rows are not used.
 *
 * Whether a matrix is multiplied by tiles depends on the matrix alone, so that a token's sums are
 * the same bits in a prompt and as the only one of a step. */
#pragma once
#include "pack.h"

#define MIN_TILE_DWORDS 4 /* a product of fewer at a time is left to AVX-512 */
#define TILE_PREFETCH_BYTES 4096

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16]; /* of each tile */
    uint8_t rows[16];
} TileConfig;

#ifdef TALKBACK_AMX_EMULATION
#include TALKBACK_AMX_EMULATION /* a test's, in C */
#else
/* Assembler, for gcc's own functions do not say that they read and write memory. */
#define CONFIGURE_TILES(config) __asm__ volatile("ldtilecfg %0" ::"m"(*(config)))
#define RELEASE_TILES() __asm__ volatile("tilerelease")
#define ZERO_TILE(t) __asm__ volatile("tilezero %%tmm" #t ::)
#define LOAD_TILE(t, from, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(from), "r"(stride) : "memory")
#define STORE_TILE(t, to, stride) \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(to), "r"(stride) : "memory")
/* sums += a b, of pairs of bfloat16, and of four signed bytes and four unsigned ones. */
#define DOT_BF16(sums, a, b) \
    __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sums ::)
#define DOT_I8(sums, a, b) __asm__ volatile("tdpbsud %%tmm" #b ", %%tmm" #a ", %%tmm" #sums ::)
#endif

#define DOT_TILES(packing, sums, a, b) \
    if (packing == BF16) \
        DOT_BF16(sums, a, b); \
    else \
        DOT_I8(sums, a, b)

/* The tiles: sums of 32 tokens by 32 outputs, then of these tokens, then of a pair of panels. */
enum { SUM_TILES = 4, TOKEN_TILES = 2, PANEL_TILES = 2 };

static _Thread_local int64_t configured_dwords; /* a row of tokens has so many; 0: not configured */

/* Have the calling thread's tiles take so many dwords of each token at a time. */
static void configure_tiles(int64_t dwords) {
    if (dwords == configured_dwords)
        return;
    TileConfig config = {.palette = 1};
    for (int t = 0; t < SUM_TILES + TOKEN_TILES + PANEL_TILES; t++) {
        int tokens = t >= SUM_TILES && t < SUM_TILES + TOKEN_TILES;
        int panels = t >= SUM_TILES + TOKEN_TILES;
        config.row_bytes[t] = (uint16_t)(4 * (tokens ? dwords : LANES));
        config.rows[t] = (uint8_t)(panels ? dwords : TILE_ROWS);
    }
    CONFIGURE_TILES(&config);
    configured_dwords = dwords;
}

/* Leave the calling thread's tiles to others. */
static void release_tiles(void) {
    if (configured_dwords)
        RELEASE_TILES();
    configured_dwords = 0;
}

/* How many dwords of a matrix tiles take at a time: as many as divide those of a group of inputs;
 * 0 where that would be few, or floats. */
static int64_t tile_dwords(const Matrix *m) {
    int64_t group = m->inputs / m->packing / m->groups, dwords = TILE_ROWS;
    while (group % dwords)
        dwords--;
    return m->packing == F32 || dwords < MIN_TILE_DWORDS ? 0 : dwords;
}

/* sums [tokens][32] = products of 16 tokens, or of 32 where `both`, and two panels, over so many
 * dwords from x and `panels` on. With `first` the panels come from memory, and are called ahead. */
static inline __attribute__((always_inline)) void
sum_tiles(const int packing, int both, int first, int32_t *sums, const int32_t *x, int64_t stride,
          const uint8_t *panels, int64_t dwords) {
    int64_t token_bytes = 4 * stride, sum_bytes = 4 * PANEL_PAIR, unit_bytes = UNIT_BYTES;
    ZERO_TILE(0);
    ZERO_TILE(1);
    if (both) {
        ZERO_TILE(2);
        ZERO_TILE(3);
    }
    for (int64_t u = 0; u < dwords; u += configured_dwords) {
        const uint8_t *both_panels = panels + u * UNIT_BYTES;
        for (int64_t d = 0; first && d < configured_dwords * UNIT_BYTES; d += 64)
            _mm_prefetch(both_panels + TILE_PREFETCH_BYTES + d, _MM_HINT_T0);
        LOAD_TILE(6, both_panels, unit_bytes);
        LOAD_TILE(7, both_panels + 64, unit_bytes);
        LOAD_TILE(4, x + u, token_bytes);
        DOT_TILES(packing, 0, 4, 6);
        DOT_TILES(packing, 1, 4, 7);
        if (both) {
            LOAD_TILE(5, x + TILE_ROWS * stride + u, token_bytes);
            DOT_TILES(packing, 2, 5, 6);
            DOT_TILES(packing, 3, 5, 7);
        }
    }
    STORE_TILE(0, sums, sum_bytes);
    STORE_TILE(1, sums + LANES, sum_bytes);
    if (both) {
        STORE_TILE(2, sums + TILE_ROWS * PANEL_PAIR, sum_bytes);
        STORE_TILE(3, sums + TILE_ROWS * PANEL_PAIR + LANES, sum_bytes);
    }
}
