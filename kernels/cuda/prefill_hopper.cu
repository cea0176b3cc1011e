// `prefill.cuh` for heads of 128 by Hopper's products of four warps: two such groups, each with 64 rows, take 128 keys at a time.
// While a group's weights are worked out from the scores of one block of keys, its tensor cores multiply those of the block
// before with V (the order of work of FlashAttention-3, Shah et al. 2024).

#ifdef HAS_GROUP_PRODUCTS

#define BLOCK_THREADS 256
#define BLOCK_KEYS 128
#define BLOCK_ROWS 128
#define GROUP_ROWS 64
#define TILE (128 * 128)  // elements of Q, or of K or V of a block of keys

// A tile lies as two halves of 64 columns, so of 128 bytes a row, whose eights of elements change places with the row: as the
// products want it.
DEVICE u16* place_in_tile(u16* tile, u32 row, u32 chunk) {
    return tile + chunk / 8 * (TILE / 2) + row * 64 + ((chunk ^ row) % 8) * 8;
}

// Bytes from the first columns of a tile to others.
DEVICE u32 bytes_to_column(u32 column) { return (column / 64 * (TILE / 2) + column % 64) * 2; }

typedef KeyPlaces<128, BLOCK_KEYS, BLOCK_THREADS> Places;

// Two blocks of K and of V, and where the keys of four lie.
struct Ring {
    u16* const q;
    u16* const k;
    u16* const v;
    u32* const places;
    u32* const positions;

    DEVICE Ring(u8* memory)
        : q((u16*)memory), k(q + TILE), v(k + 2 * TILE), places((u32*)(v + 2 * TILE)), positions(places + 4 * BLOCK_KEYS) {}

    DEVICE u32* places_of(u32 block) const { return places + block % 4 * BLOCK_KEYS; }

    // `keys`: how many there are from the first block's first on.
    DEVICE void load(const PrefillArgs& args, u32 block, u32 keys, const u16* cache, u16* tiles) const {
        const u32 before = block * BLOCK_KEYS, key = threadIdx.x / Places::CHUNKS, chunk = threadIdx.x % Places::CHUNKS;
        u16* to = place_in_tile(tiles + block % 2 * TILE, key, chunk);
        Places::load(args, places_of(block), max(keys, before) - before, cache, to, Places::STEP * 64);
    }

    // Queues s = q Kᵀ of a group's rows.
    DEVICE void multiply_keys(u32 block, Scores<BLOCK_KEYS>& s) const {
        // The same in all of a warp, which the compiler cannot know.
        const u32 group = __shfl_sync(FULL_WARP, threadIdx.x / 128, 0);
        const SharedOperand of_q(q + group * GROUP_ROWS * 64, 16, 1024), of_block(k + block % 2 * TILE, 16, 1024);
#pragma unroll
        for (u32 i = 0; i < 128; i += 16)
            multiply_group(s, of_q.behind(bytes_to_column(i)), of_block.behind(bytes_to_column(i)), i > 0);
        group_commit();
    }

    // Queues acc += weights V.
    DEVICE void add_values(u32 block, const u32 (&weights)[BLOCK_KEYS / 16][4], float (&acc)[16][4]) const {
        const SharedOperand of_block(v + block % 2 * TILE, TILE, 1024);
#pragma unroll
        for (u32 n = 0; n < BLOCK_KEYS / 16; n++) multiply_group_transposed(acc, weights[n], of_block.behind(16 * n * 128));
        group_commit();
    }
};

KERNEL(BLOCK_THREADS, 1) prefill_hopper128(const PrefillArgs args) {
    DYNAMIC_SHARED(memory);
    const Ring ring(memory + (1024 - shared_address(memory) % 1024) % 1024);
    const u32* table = args.cache.block_tables + args.tiles[blockIdx.y].first_block;
    u32 first, end;
    {
        const PrefillTile tile = args.tiles[blockIdx.y];
        const Span<BLOCK_ROWS, BLOCK_KEYS> span(args, tile, ring.positions);
        first = span.first, end = span.end;
#pragma unroll
        for (u32 block = 0; block < 3; block++)
            Places::note(ring.places_of(block), Places::find(args, table, first + block * BLOCK_KEYS, end));
        __syncthreads();
        auto place = [&](u32 r, u32 chunk) { return place_in_tile(ring.q, r, chunk); };
        load_queries<128, BLOCK_ROWS, BLOCK_THREADS>(args, tile, ring.positions, place);
        ring.load(args, 0, end - first, args.cache.k, ring.k);
        copy_commit();
        ring.load(args, 0, end - first, args.cache.v, ring.v);
        ring.load(args, 1, end - first, args.cache.k, ring.k);
        copy_commit();
    }
    const u32 of_warp = threadIdx.x / 32 * 16;
    const float scale = args.scale * LOG2_E;
    SixteenRows<128> rows;
    u32 weights[BLOCK_KEYS / 16][4];
    float factor[2];
    Scores<BLOCK_KEYS> s;
    copy_wait<1>();
    publish_to_products();
    __syncthreads();
    group_fence();
    ring.multiply_keys(0, s);
    group_wait<0>();
    hold(s);
    mask<BLOCK_KEYS>(args.window, ring.positions + of_warp, first, s);
    rows.soften(scale, s, factor);
    for (u32 block = 0;; block++) {
        // The products before have ended: they read these.
#pragma unroll
        for (u32 n = 0; n < BLOCK_KEYS / 16; n++) pack_weights(s, n, weights[n]);
        copy_wait<0>();
        publish_to_products();
        // All have what was copied, and are through with the block before.
        __syncthreads();
        const u32 next = first + (block + 1) * BLOCK_KEYS;
        group_fence();
        if (next >= end) {
            ring.add_values(block, weights, rows.acc);
            group_wait<0>();
            break;
        }
        ring.multiply_keys(block + 1, s);
        ring.add_values(block, weights, rows.acc);
        ring.load(args, block + 2, end - first, args.cache.k, ring.k);
        ring.load(args, block + 1, end - first, args.cache.v, ring.v);
        copy_commit();
        const u32 found = Places::find(args, table, first + (block + 3) * BLOCK_KEYS, end);
        group_wait<1>();
        hold(s);
        mask<BLOCK_KEYS>(args.window, ring.positions + of_warp, next, s);
        const bool grows = rows.soften(scale, s, factor);
        Places::note(ring.places_of(block + 3), found);
        group_wait<0>();
        hold(rows.acc);
        if (grows) rows.rescale(factor);
    }
    hold(rows.acc);
    const PrefillTile tile = args.tiles[blockIdx.y];
    rows.store(args, tile, of_warp, ring.positions + of_warp);
}

#endif
