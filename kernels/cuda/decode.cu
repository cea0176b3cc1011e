// Attention of single rows: each sequence's keys are cut into items, one block an item and kv head.
//
// Products run with keys as rows and the heads of a group as columns, Sᵀ = K Qᵀ and Oᵀ = Vᵀ Pᵀ, so that eight heads fill a
// fragment and K and V go from memory to the tensor cores without shared memory. Grid: items, kv heads, heads of a
// group / 8. The last block of a sequence to finish combines its items, in order of item.

#define WARPS 4
#define COLUMNS 8  // heads at once

struct DecodeItem {
    u32 row;
    u32 context;  // position of the row
    u32 first_block;
    u32 first_key;  // a multiple of 16
    u32 end_key;
    u32 item;   // number among the sequence's items
    u32 items;  // of the sequence
    u32 place;  // of the sequence's first item in the partial results
};

struct DecodeArgs {
    Paged cache;
    const DecodeItem* items;  // those past the last have no keys
    const u16* q;  // [rows, stride]
    u16* out;      // [rows, stride]
    float* sums;   // [places, heads, d_padded]: partial results, not divided
    float* stats;  // [places, heads, 2]: maximum and sum of weights
    u32* arrived;  // [places, kv_heads * gridDim.z], zero between launches
    u32 stride;
    u32 group;  // heads that share a kv head
    float scale;
    u32 window;  // 0: none
    u32 early;   // keys of an item that are asked for at once
    u32 unused;
};

// Where four keys' V lie for one lane, or K's two: the row of key `first + i`.
struct KeyRows {
    const Paged& cache;
    const u32* table;
    u32 head;
    u32 first;
    u64 base;  // row of `first` where the sixteen keys lie in one block
    bool whole;

    DEVICE KeyRows(const Paged& cache, const u32* table, u32 head, u32 first)
        : cache(cache), table(table), head(head), first(first), whole(cache.block_size % 16 == 0) {
        base = cache_row(cache, table, head, first);
    }

    DEVICE u64 offset(u32 i) const {
        return (whole ? base + i : cache_row(cache, table, head, first + i)) * cache.d_padded;
    }
};

// Not as constants: the kernel starts before the last key is there.
DEVICE uint4 load_cached(const u16* p, bool valid) {
    return valid ? __ldcg((const uint4*)p) : make_uint4(0, 0, 0, 0);
}

DEVICE u32 lows(u32 a, u32 b) { return __byte_perm(a, b, 0x5410); }
DEVICE u32 highs(u32 a, u32 b) { return __byte_perm(a, b, 0x7632); }

DEVICE float max_over_keys(float x) {
    x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 4));
    x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 8));
    return fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 16));
}

DEVICE float sum_over_keys(float x) {
    x += __shfl_xor_sync(FULL_WARP, x, 4);
    x += __shfl_xor_sync(FULL_WARP, x, 8);
    return x + __shfl_xor_sync(FULL_WARP, x, 16);
}

// 2^(x - max), 0 where nothing was seen.
DEVICE float weight(float x, float max) { return max == -INFINITY_F ? 0.0f : exp2_approx(x - max); }

// What a warp has seen so far, for columns (heads) 2q and 2q+1.
template <int D>
struct Running {
    // Row g of fragment t is element 64 (t / 4) + 8 g + 2 (t % 4), row g + 8 the next one.
    float acc[D / 16][4];
    float max[2];
    float sum[2];  // of the lane's own keys
};

// Scores of sixteen keys: c0 and c1 are key g, c2 and c3 key g + 8.
template <int D>
DEVICE void scores16(const Paged& cache, const KeyRows& rows, u32 count, const uint4 (&query)[D / 32],
                     float (&s)[4]) {
    const u32 lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const u16* up = cache.k + (g < count ? rows.offset(g) : 0);
    const u16* down = cache.k + (g + 8 < count ? rows.offset(g + 8) : 0);
    uint4 a[D / 32], b[D / 32];
#pragma unroll
    for (u32 j = 0; j < D / 32; j++) {
        u32 i = 32 * j + 8 * q;
        a[j] = load_cached(up + i, g < count && i < cache.d_padded);
        b[j] = load_cached(down + i, g + 8 < count && i < cache.d_padded);
    }
#pragma unroll
    for (u32 j = 0; j < D / 32; j++) {
        mma16(s, a[j].x, b[j].x, a[j].y, b[j].y, query[j].x, query[j].y);
        mma16(s, a[j].z, b[j].z, a[j].w, b[j].w, query[j].z, query[j].w);
    }
}

template <int D>
struct Values {
    uint4 v[4][D / 64];  // keys 2q, 2q+1, 2q+8, 2q+9; elements 64 n + 8 g ..

    DEVICE void load(const Paged& cache, const KeyRows& rows, u32 count) {
        const u32 lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
#pragma unroll
        for (u32 k = 0; k < 4; k++) {
            u32 key = 2 * q + (k & 1) + (k & 2) * 4;
            const u16* from = cache.v + (key < count ? rows.offset(key) : 0);
#pragma unroll
            for (u32 n = 0; n < D / 64; n++) {
                u32 i = 64 * n + 8 * g;
                v[k][n] = load_cached(from + i, key < count && i < cache.d_padded);
            }
        }
    }

    // acc += Vᵀ Pᵀ
    DEVICE void accumulate(float (&acc)[D / 16][4], u32 p0, u32 p1) const {
#pragma unroll
        for (u32 n = 0; n < D / 64; n++) {
            const u32 a[4] = {v[0][n].x, v[0][n].y, v[0][n].z, v[0][n].w};
            const u32 b[4] = {v[1][n].x, v[1][n].y, v[1][n].z, v[1][n].w};
            const u32 c[4] = {v[2][n].x, v[2][n].y, v[2][n].z, v[2][n].w};
            const u32 d[4] = {v[3][n].x, v[3][n].y, v[3][n].z, v[3][n].w};
#pragma unroll
            for (u32 t = 0; t < 4; t++)
                mma16(acc[n * 4 + t], lows(a[t], b[t]), highs(a[t], b[t]), lows(c[t], d[t]),
                      highs(c[t], d[t]), p0, p1);
        }
    }
};

// Online softmax (Milakov and Gimelshein 2018) over one score a head and key; leaves weights in `s`.
template <int D>
DEVICE void soften(Running<D>& run, float (&s)[4]) {
#pragma unroll
    for (u32 e = 0; e < 2; e++) {
        float max = fmaxf(run.max[e], max_over_keys(fmaxf(s[e], s[2 + e])));
        float factor = weight(run.max[e], max);
        s[e] = weight(s[e], max), s[2 + e] = weight(s[2 + e], max);
        run.sum[e] = run.sum[e] * factor + s[e] + s[2 + e];
        run.max[e] = max;
#pragma unroll
        for (u32 t = 0; t < D / 16; t++) run.acc[t][e] *= factor, run.acc[t][2 + e] *= factor;
    }
}

// The first key that the item's row sees.
DEVICE u32 first_seen(const DecodeArgs& args, const DecodeItem& item) {
    return args.window && item.context >= args.window ? item.context + 1 - args.window : 0;
}

// Asks for keys and values of an item while the kernel before still runs. Most lay there before; what does not yet goes to
// L2, too, as all writes do.
template <int D>
DEVICE void ask_for_keys(const DecodeArgs& args, const DecodeItem& item) {
    const Paged& cache = args.cache;
    const u32 first = max(item.first_key, first_seen(args, item)), end = min(item.end_key, first + args.early);
    // A lane has a line of a key.
    constexpr u32 LINES = (D + 63) / 64;
    for (u32 at = threadIdx.x; at < args.early * LINES; at += WARPS * 32) {
        const u32 key = first + at / LINES, i = at % LINES * 64;
        if (key >= end || i >= cache.d_padded) break;
        const u64 row = cache_row(cache, cache.block_tables + item.first_block, blockIdx.y, key);
        prefetch_l2(cache.k + row * cache.d_padded + i);
        prefetch_l2(cache.v + row * cache.d_padded + i);
    }
}

template <int D>
DEVICE void run_keys(const DecodeArgs& args, const DecodeItem& item, const uint4 (&query)[D / 32],
                     Running<D>& run) {
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4;
    const u32* table = args.cache.block_tables + item.first_block;
    const float scale = args.scale * LOG2_E;
    const u32 least = first_seen(args, item);
    for (u32 first = item.first_key + warp * 16; first < item.end_key; first += WARPS * 16) {
        if (first + 16 <= least) continue;
        const u32 count = min(item.end_key - first, 16u);
        const KeyRows rows(args.cache, table, blockIdx.y, first);
        float s[4] = {};
        Values<D> values;
        // Both loads are under way before the first product, unless registers are short.
        if (D <= 128) values.load(args.cache, rows, count);
        scores16<D>(args.cache, rows, count, query, s);
        if (D > 128) values.load(args.cache, rows, count);
#pragma unroll
        for (u32 e = 0; e < 4; e++) {
            u32 i = g + (e & 2) * 4;
            s[e] = i < count && first + i >= least ? s[e] * scale : -INFINITY_F;
        }
        soften(run, s);
        values.accumulate(run.acc, transpose8(pack_bf16(s[0], s[1])), transpose8(pack_bf16(s[2], s[3])));
    }
}

// Results of the block's warps.
template <int D>
struct Shared {
    float acc[WARPS][COLUMNS][D];
    float max[WARPS][COLUMNS];
    float sum[WARPS][COLUMNS];
    u32 last;
};

template <int D>
DEVICE void share(const Running<D>& run, Shared<D>& shared) {
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
#pragma unroll
    for (u32 e = 0; e < 2; e++) {
        float sum = sum_over_keys(run.sum[e]);
        if (g == 0) shared.max[warp][2 * q + e] = run.max[e], shared.sum[warp][2 * q + e] = sum;
#pragma unroll
        for (u32 t = 0; t < D / 16; t++) {
            float* at = &shared.acc[warp][2 * q + e][64 * (t / 4) + 8 * g + 2 * (t % 4)];
            *(float2*)at = make_float2(run.acc[t][e], run.acc[t][2 + e]);
        }
    }
    __syncthreads();
}

// A sum of weighted values with the maximum that the weights refer to.
struct Partial {
    float2 value;
    float max;
    float sum;

    DEVICE Partial() : value(make_float2(0.0f, 0.0f)), max(-INFINITY_F), sum(0.0f) {}

    DEVICE void add(float2 other, float other_max, float other_sum) {
        float top = fmaxf(max, other_max);
        float own = weight(max, top), theirs = weight(other_max, top);
        value.x = value.x * own + other.x * theirs;
        value.y = value.y * own + other.y * theirs;
        sum = sum * own + other_sum * theirs;
        max = top;
    }
};

DEVICE void store_result(const DecodeArgs& args, u32 row, u32 head, u32 i, const Partial& partial) {
    u16* out = args.out + (u64)row * args.stride + head * args.cache.d + i;
    *(u32*)out = pack_bf16(partial.value.x / partial.sum, partial.value.y / partial.sum);
}

template <int D>
DEVICE void attend(const DecodeArgs& args) {
    __shared__ Shared<D> shared;
    const DecodeItem keys = args.items[blockIdx.x];
    let_dependents_start();
    if (keys.end_key == 0) return;
    ask_for_keys<D>(args, keys);
    wait_for_primary();
    const u32 lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, d = args.cache.d;
    const u32 first_head = blockIdx.y * args.group + blockIdx.z * COLUMNS;
    const u32 heads = min(args.group - blockIdx.z * COLUMNS, (u32)COLUMNS);
    uint4 query[D / 32];
    const u16* from = args.q + (u64)keys.row * args.stride + (first_head + g) * d;
#pragma unroll
    for (u32 j = 0; j < D / 32; j++) {
        u32 i = 32 * j + 8 * q;
        query[j] = load8_raw(from + i, g < heads ? (int)d - (int)i : 0);
    }
    Running<D> run;
#pragma unroll
    for (u32 t = 0; t < D / 16; t++)
        run.acc[t][0] = run.acc[t][1] = run.acc[t][2] = run.acc[t][3] = 0.0f;
    run.max[0] = run.max[1] = -INFINITY_F;
    run.sum[0] = run.sum[1] = 0.0f;
    run_keys<D>(args, keys, query, run);
    share<D>(run, shared);
    // Read again, so that it takes no registers meanwhile.
    const DecodeItem item = args.items[blockIdx.x];
    const u32 all_heads = args.cache.kv_heads * args.group, pairs = d / 2;
    for (u32 at = threadIdx.x; at < heads * pairs; at += WARPS * 32) {
        u32 column = at / pairs, i = at % pairs * 2;
        Partial partial;
#pragma unroll
        for (u32 w = 0; w < WARPS; w++)
            partial.add(*(const float2*)&shared.acc[w][column][i], shared.max[w][column], shared.sum[w][column]);
        if (item.items == 1) {
            store_result(args, item.row, first_head + column, i, partial);
        } else {
            u64 place = (u64)(item.place + item.item) * all_heads + first_head + column;
            *(float2*)(args.sums + place * args.cache.d_padded + i) = partial.value;
            if (i == 0) *(float2*)(args.stats + place * 2) = make_float2(partial.max, partial.sum);
        }
    }
    if (item.items == 1) return;

    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        u32* arrived = args.arrived + (item.place * gridDim.y + blockIdx.y) * gridDim.z + blockIdx.z;
        shared.last = atomicAdd(arrived, 1u) + 1 == item.items;
        if (shared.last) *arrived = 0;
    }
    __syncthreads();
    if (!shared.last) return;
    __threadfence();
    for (u32 at = threadIdx.x; at < heads * pairs; at += WARPS * 32) {
        u32 column = at / pairs, i = at % pairs * 2;
        Partial partial;
        for (u32 n = 0; n < item.items; n++) {
            u64 place = (u64)(item.place + n) * all_heads + first_head + column;
            float2 stats = __ldcg((const float2*)(args.stats + place * 2));
            partial.add(__ldcg((const float2*)(args.sums + place * args.cache.d_padded + i)), stats.x, stats.y);
        }
        store_result(args, item.row, first_head + column, i, partial);
    }
}

KERNEL(128, 1) decode64(const DecodeArgs args) { attend<64>(args); }
KERNEL(128, 4) decode128(const DecodeArgs args) { attend<128>(args); }
KERNEL(128, 1) decode256(const DecodeArgs args) { attend<256>(args); }
