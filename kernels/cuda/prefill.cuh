// Causal attention of chunks of prompts: FlashAttention (Dao et al. 2022; the order of work of version 2) over the paged
// cache. A block has rows of (token, head of the group) pairs of one kv head, so that a group shares every load of K and V.
// What the kernels for all devices (`prefill.cu`) and for Hopper (`prefill_hopper.cu`) share. Grid: kv heads, tiles.
#pragma once

struct PrefillTile {
    u32 first_row;  // of the sequence
    u32 rows;       // of the sequence in this step
    u32 context;    // position of the first row
    u32 first_block;
    u32 first;  // first pair of the tile: token * group + head
    u32 unused[3];
};

struct PrefillArgs {
    Paged cache;
    const PrefillTile* tiles;
    const u16* q;  // [rows, stride]
    u16* out;      // [rows, stride]
    u32 stride;
    u32 group;
    float scale;  // positive
    u32 window;   // 0: none
};

// How far a maximum may grow, as a power of two, before sums are scaled anew: they have room for it in f32, and the weights
// are as exact in bf16.
#define MOST_GROWTH 8.0f

// Which keys a tile of `ROWS` pairs sees, in blocks of `KEYS`; and the position of each pair, for `positions`.
template <u32 ROWS, u32 KEYS>
struct Span {
    u32 first;
    u32 end;

    DEVICE Span(const PrefillArgs& args, const PrefillTile& tile, u32* positions) : first(0) {
        const u32 last = tile.rows * args.group - 1, least = tile.context + tile.first / args.group;
        if (args.window && least >= args.window) first = (least + 1 - args.window) / KEYS * KEYS;
        end = tile.context + min(tile.first + ROWS - 1, last) / args.group + 1;
        if (threadIdx.x < ROWS) positions[threadIdx.x] = tile.context + min(tile.first + threadIdx.x, last) / args.group;
    }
};

// Where the keys of a block lie in the cache, in eights of elements (32 bits do for 64 GiB of a layer's K): found once for the
// 2 D / 8 loads that each takes. A thread finds those that it loads side by side.
template <int D, u32 KEYS, u32 THREADS>
struct KeyPlaces {
    static const u32 CHUNKS = D / 8, STEP = THREADS / CHUNKS, COUNT = KEYS / STEP;
    static_assert(COUNT % 4 == 0, "a thread reads its places four at a time");

    // A thread's own key's; any there is where the key is not.
    DEVICE static u32 find(const PrefillArgs& args, const u32* table, u32 first, u32 end) {
        const u32 key = first + threadIdx.x;
        if (threadIdx.x >= KEYS || key >= end) return 0;
        return (u32)cache_row(args.cache, table, blockIdx.x, key) * (args.cache.d_padded / 8);
    }

    DEVICE static void note(u32* places, u32 own) {
        if (threadIdx.x < KEYS) places[threadIdx.x % STEP * COUNT + threadIdx.x / STEP] = own;
    }

    // K or V to shared memory, of `keys` keys, then zeros. `to`: where the thread's first eight elements belong; the next are
    // those of STEP keys further, `advance` elements behind them.
    DEVICE static void load(const PrefillArgs& args, const u32* places, u32 keys, const u16* cache, u16* to, u32 advance) {
        const u32 chunk = threadIdx.x % CHUNKS, key = threadIdx.x / CHUNKS;
        const bool inside = 8 * chunk < args.cache.d_padded;
        const uint4* own = (const uint4*)(places + key * COUNT);
#pragma unroll 1
        for (u32 n = 0; n < COUNT; n += 4) {
            const uint4 four = own[n / 4];
            const u32 at[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (u32 i = 0; i < 4; i++)
                copy_async(to + (n + i) * advance, (const uint4*)cache + at[i] + (inside ? chunk : 0),
                           inside && key + (n + i) * STEP < keys);
        }
    }
};

// Where a row of a tile lies in q and the output; null where there is none. `position`: the row's.
template <class T>
DEVICE T* place_of_pair(const PrefillArgs& args, const PrefillTile& tile, T* all, u32 row, u32 position) {
    const u32 pair = tile.first + row, token = position - tile.context, head = blockIdx.x * args.group + pair - token * args.group;
    return pair < tile.rows * args.group ? all + (u64)(tile.first_row + token) * args.stride + head * args.cache.d : 0;
}

// A tile's queries to shared memory; zeros where there are none. Copied behind the caller's back where they can be.
template <int D, u32 ROWS, u32 THREADS, class Place>
DEVICE void load_queries(const PrefillArgs& args, const PrefillTile& tile, const u32* positions, Place place) {
    const u32 chunks = D / 8, d = args.cache.d;
#pragma unroll 4
    for (u32 n = 0; n < ROWS * chunks / THREADS; n++) {
        const u32 r = threadIdx.x / chunks + n * (THREADS / chunks), chunk = threadIdx.x % chunks, i = 8 * chunk;
        const u16* from = place_of_pair(args, tile, args.q, r, positions[r]);
        u16* to = place(r, chunk);
        if (d % 8 == 0)
            copy_async(to, from && i < d ? from + i : args.q, from && i < d);
        else
            *(uint4*)to = from ? load8_raw(from + i, (int)d - (int)i) : make_uint4(0, 0, 0, 0);
    }
}

// Scores of sixteen rows, as a product's fragments of eight keys each; then weights.
template <u32 KEYS>
using Scores = float[KEYS / 8][4];

// Leaves out the keys from `first` on that rows do not see: few blocks of keys have such. `positions`: of the sixteen rows.
template <u32 KEYS>
DEVICE void mask(u32 window, const u32* positions, u32 first, Scores<KEYS>& s) {
    if (first + KEYS <= positions[0] + 1 && (!window || first + window > positions[15])) return;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 own = positions[8 * half + threadIdx.x % 32 / 4];
#pragma unroll
        for (u32 n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (u32 e = 0; e < 2; e++) {
                const u32 key = first + n * 8 + threadIdx.x % 4 * 2 + e;
                if (key > own || (window && key + window <= own)) s[n][2 * half + e] = -INFINITY_F;
            }
    }
}

// What is known of sixteen rows so far. A lane's are g and g + 8.
template <int D>
struct SixteenRows {
    float acc[D / 8][4];
    float base[2];  // what weights are relative to, as a power of two; -infinity: no key so far
    float sum[2];   // of the lane's own columns

    DEVICE SixteenRows() {
        base[0] = base[1] = -INFINITY_F, sum[0] = sum[1] = 0.0f;
#pragma unroll
        for (u32 n = 0; n < D / 8; n++) acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0.0f;
    }

    // Turns scores into weights. `scale`: of a score to a power of two. Returns whether `rescale` is to follow.
    template <u32 EIGHTS>
    DEVICE bool soften(float scale, float (&s)[EIGHTS][4], float (&factor)[2]) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            float two[2] = {-INFINITY_F, -INFINITY_F};
#pragma unroll
            for (u32 n = 0; n < EIGHTS; n++) two[n % 2] = fmaxf(two[n % 2], fmaxf(s[n][2 * half], s[n][2 * half + 1]));
            float max = fmaxf(two[0], two[1]);
            max = fmaxf(max, __shfl_xor_sync(FULL_WARP, max, 1));
            max = fmaxf(max, __shfl_xor_sync(FULL_WARP, max, 2)) * scale;
            factor[half] = 1.0f;
            if (max > base[half] + MOST_GROWTH) {
                factor[half] = exp2_approx(base[half] - max);
                base[half] = max;
                sum[half] *= factor[half];
            }
            // A window may leave a row without a key here.
            const float from = base[half] == -INFINITY_F ? 0.0f : base[half];
#pragma unroll
            for (u32 n = 0; n < EIGHTS; n++)
#pragma unroll
                for (u32 e = 2 * half; e < 2 * half + 2; e++) {
                    s[n][e] = exp2_approx(s[n][e] * scale - from);
                    sum[half] += s[n][e];
                }
        }
        return __ballot_sync(FULL_WARP, factor[0] != 1.0f || factor[1] != 1.0f);
    }

    DEVICE void rescale(const float (&factor)[2]) {
#pragma unroll
        for (u32 n = 0; n < D / 8; n++)
#pragma unroll
            for (u32 e = 0; e < 4; e++) acc[n][e] *= factor[e / 2];
    }

    // `first`: number of the first row in its tile; `positions`: of the sixteen.
    DEVICE void store(const PrefillArgs& args, const PrefillTile& tile, u32 first, const u32* positions) const {
        const u32 g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const float all = sum_of_quad(sum[half]);
            u16* out = place_of_pair(args, tile, args.out, first + 8 * half + g, positions[8 * half + g]);
            if (!out) continue;
            const float share = __fdividef(1.0f, all);
#pragma unroll
            for (u32 n = 0; n < D / 8; n++) {
                const u32 i = n * 8 + 2 * q;
                if (i < args.cache.d)
                    *(u32*)(out + i) = pack_bf16(acc[n][2 * half] * share, acc[n][2 * half + 1] * share);
            }
        }
    }
};

// Weights of sixteen keys as the other operand of a product.
template <u32 EIGHTS>
DEVICE void pack_weights(const float (&s)[EIGHTS][4], u32 n, u32 (&a)[4]) {
#pragma unroll
    for (u32 e = 0; e < 4; e++) {
        const float(&own)[4] = s[2 * n + e / 2];
        a[e] = pack_bf16(own[2 * (e % 2)], own[2 * (e % 2) + 1]);
    }
}
