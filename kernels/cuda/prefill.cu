// Causal attention of chunks of prompts: FlashAttention (Dao et al. 2022; the order of work of version 2) over the paged
// cache. A block has 64 rows of (token, head of the group) pairs of one kv head, so that a group shares every load of K
// and V; a warp has 16 of them. Grid: tiles, kv heads.

#define ROWS 64
#define THREADS 128

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
    float scale;
    u32 window;  // 0: none
};

// Rows of D elements, padded by 16 bytes so that eight rows of a matrix lie in different banks.
template <int D>
struct Tiles {
    static const int STRIDE = D + 8;
    static const int KEYS = D > 128 ? 32 : 64;
    u16* q;
    u16* k;
    u16* v;

    DEVICE Tiles(u8* memory) : q((u16*)memory), k(q + ROWS * STRIDE), v(k + KEYS * STRIDE) {}
};

// Keys `first` .. of K or V to shared memory; zeros past `end`.
template <int D>
DEVICE void load_keys(const PrefillArgs& args, const PrefillTile& tile, const u16* cache, u32 first, u32 end, u16* to) {
    const u32* table = args.cache.block_tables + tile.first_block;
    const u32 chunks = D / 8;
    for (u32 at = threadIdx.x; at < Tiles<D>::KEYS * chunks; at += THREADS) {
        u32 key = at / chunks, i = at % chunks * 8;
        bool valid = first + key < end && i < args.cache.d_padded;
        u64 row = valid ? cache_row(args.cache, table, blockIdx.y, first + key) : 0;
        copy_async(to + key * Tiles<D>::STRIDE + i, cache + row * args.cache.d_padded + (valid ? i : 0), valid);
    }
    copy_commit();
}

// s = q Kᵀ of a warp's 16 rows.
template <int D>
DEVICE void multiply_keys(const Tiles<D>& tiles, float (&s)[Tiles<D>::KEYS / 8][4]) {
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u16* q = tiles.q + (warp * 16 + lane % 16) * Tiles<D>::STRIDE + lane / 16 * 8;
    const u16* k = tiles.k + (lane / 16 * 8 + lane % 8) * Tiles<D>::STRIDE + lane / 8 % 2 * 8;
#pragma unroll
    for (u32 i = 0; i < D; i += 16) {
        u32 a[4];
        ldmatrix(a, q + i);
#pragma unroll
        for (u32 n = 0; n < Tiles<D>::KEYS / 16; n++) {
            u32 b[4];
            ldmatrix(b, k + n * 16 * Tiles<D>::STRIDE + i);
            mma16(s[2 * n], a[0], a[1], a[2], a[3], b[0], b[1]);
            mma16(s[2 * n + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
        }
    }
}

// acc += p V, p being the weights in `s`.
template <int D>
DEVICE void multiply_values(const Tiles<D>& tiles, const float (&s)[Tiles<D>::KEYS / 8][4], float (&acc)[D / 8][4]) {
    const u32 lane = threadIdx.x % 32;
    const u16* v = tiles.v + lane % 16 * Tiles<D>::STRIDE + lane / 16 * 8;
#pragma unroll
    for (u32 n = 0; n < Tiles<D>::KEYS / 16; n++) {
        u32 a0 = pack_bf16(s[2 * n][0], s[2 * n][1]), a1 = pack_bf16(s[2 * n][2], s[2 * n][3]);
        u32 a2 = pack_bf16(s[2 * n + 1][0], s[2 * n + 1][1]), a3 = pack_bf16(s[2 * n + 1][2], s[2 * n + 1][3]);
#pragma unroll
        for (u32 i = 0; i < D; i += 16) {
            u32 b[4];
            ldmatrix_transposed(b, v + n * 16 * Tiles<D>::STRIDE + i);
            mma16(acc[i / 8], a0, a1, a2, a3, b[0], b[1]);
            mma16(acc[i / 8 + 1], a0, a1, a2, a3, b[2], b[3]);
        }
    }
}

DEVICE float max_of_row(float x) {
    x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 1));
    return fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 2));
}

DEVICE float sum_of_row(float x) {
    x += __shfl_xor_sync(FULL_WARP, x, 1);
    return x + __shfl_xor_sync(FULL_WARP, x, 2);
}

// A lane's rows are g and g + 8 of its warp's 16.
template <int D>
struct Rows {
    float acc[D / 8][4];
    float max[2];
    float sum[2];  // of the lane's own columns
    u32 position[2];
};

// Masks and scales the scores of keys `first` .., updates the running sums, leaves weights in `s`.
template <int D>
DEVICE void soften(const PrefillArgs& args, Rows<D>& rows, u32 first, float (&s)[Tiles<D>::KEYS / 8][4]) {
    const u32 q = threadIdx.x % 4;
    const float scale = args.scale * LOG2_E;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 position = rows.position[half];
        float max = rows.max[half];
#pragma unroll
        for (u32 n = 0; n < Tiles<D>::KEYS / 8; n++) {
#pragma unroll
            for (u32 e = 0; e < 2; e++) {
                u32 key = first + n * 8 + 2 * q + e;
                bool seen = key <= position && (!args.window || key + args.window > position);
                float& x = s[n][2 * half + e];
                x = seen ? x * scale : -INFINITY_F;
                max = fmaxf(max, x);
            }
        }
        max = max_of_row(max);
        // A window may leave a row without a key here.
        const float base = max == -INFINITY_F ? 0.0f : max;
        const float factor = exp2_approx(rows.max[half] - base);
        float sum = 0.0f;
#pragma unroll
        for (u32 n = 0; n < Tiles<D>::KEYS / 8; n++) {
#pragma unroll
            for (u32 e = 0; e < 2; e++) {
                float& x = s[n][2 * half + e];
                x = exp2_approx(x - base);
                sum += x;
            }
        }
        rows.sum[half] = rows.sum[half] * factor + sum;
        rows.max[half] = max;
#pragma unroll
        for (u32 n = 0; n < D / 8; n++) rows.acc[n][2 * half] *= factor, rows.acc[n][2 * half + 1] *= factor;
    }
}

template <int D>
DEVICE void load_queries(const PrefillArgs& args, const PrefillTile& tile, u32 total, u16* to) {
    const u32 chunks = D / 8;
    for (u32 at = threadIdx.x; at < ROWS * chunks; at += THREADS) {
        u32 r = at / chunks, i = at % chunks * 8, pair = tile.first + r;
        uint4 x = make_uint4(0, 0, 0, 0);
        if (pair < total) {
            u32 token = pair / args.group, head = blockIdx.y * args.group + pair % args.group;
            x = load8_raw(args.q + (u64)(tile.first_row + token) * args.stride + head * args.cache.d + i,
                          (int)args.cache.d - (int)i);
        }
        *(uint4*)(to + r * Tiles<D>::STRIDE + i) = x;
    }
}

template <int D>
DEVICE void store_rows(const PrefillArgs& args, const PrefillTile& tile, u32 total, const Rows<D>& rows) {
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const float sum = sum_of_row(rows.sum[half]);
        const u32 pair = tile.first + warp * 16 + g + 8 * half;
        if (pair >= total) continue;
        u32 token = pair / args.group, head = blockIdx.y * args.group + pair % args.group;
        u16* out = args.out + (u64)(tile.first_row + token) * args.stride + head * args.cache.d;
#pragma unroll
        for (u32 n = 0; n < D / 8; n++) {
            u32 i = n * 8 + 2 * q;
            if (i < args.cache.d)
                *(u32*)(out + i) = pack_bf16(rows.acc[n][2 * half] / sum, rows.acc[n][2 * half + 1] / sum);
        }
    }
}

template <int D>
DEVICE void prefill(const PrefillArgs& args) {
    DYNAMIC_SHARED(memory);
    const Tiles<D> tiles(memory);
    const u32 KEYS = Tiles<D>::KEYS;
    const PrefillTile tile = args.tiles[blockIdx.x];
    const u32 warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4;
    const u32 total = tile.rows * args.group;
    const u32 last = (min(tile.first + ROWS, total) - 1) / args.group;
    const u32 end = tile.context + last + 1;
    const u32 least = tile.context + tile.first / args.group;
    u32 first = args.window && least >= args.window ? (least + 1 - args.window) / KEYS * KEYS : 0;

    Rows<D> rows;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 pair = min(tile.first + warp * 16 + g + 8 * half, total - 1);
        rows.position[half] = tile.context + pair / args.group;
        rows.max[half] = -INFINITY_F;
        rows.sum[half] = 0.0f;
    }
#pragma unroll
    for (u32 n = 0; n < D / 8; n++)
        rows.acc[n][0] = rows.acc[n][1] = rows.acc[n][2] = rows.acc[n][3] = 0.0f;

    load_keys<D>(args, tile, args.cache.k, first, end, tiles.k);
    load_queries<D>(args, tile, total, tiles.q);
    for (; first < end; first += KEYS) {
        load_keys<D>(args, tile, args.cache.v, first, end, tiles.v);
        copy_wait<1>();
        __syncthreads();
        float s[Tiles<D>::KEYS / 8][4] = {};
        multiply_keys<D>(tiles, s);
        __syncthreads();
        // Past the last key this loads nothing, and keeps the count of groups.
        load_keys<D>(args, tile, args.cache.k, first + KEYS, end, tiles.k);
        soften<D>(args, rows, first, s);
        copy_wait<1>();
        __syncthreads();
        multiply_values<D>(tiles, s, rows.acc);
        __syncthreads();
    }
    copy_wait<0>();
    store_rows<D>(args, tile, total, rows);
}

KERNEL(128, 1) prefill64(const PrefillArgs args) { prefill<64>(args); }
KERNEL(128, 1) prefill128(const PrefillArgs args) { prefill<128>(args); }
KERNEL(128, 1) prefill256(const PrefillArgs args) { prefill<256>(args); }
