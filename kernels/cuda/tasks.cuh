// A step's adapters as work in sixteens of ranks, whatever their ranks.
#pragma once

#define MOST_TILES 64

// Sixteen ranks of one tile's adapter.
struct LoraTask {
    const u16* b;  // [outputs, stride]
    u32 stride;
    u32 lane;
    u32 first_row;
    u32 rows;
};

// The block's tasks: tile t has those from `starts[t]` on, one for each sixteen ranks.
struct LoraTasks {
    LoraTask tiles[MOST_TILES];
    u32 starts[MOST_TILES];
    u32 count;

    // By the first warp.
    DEVICE void find(const Lora& lora, u32 most, u32 part) {
        const u32 lane = threadIdx.x;
        u32 own[2], sum = 0;
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const u32 t = 2 * lane + i;
            Tile tile = {0, 0, 0};
            if (t < most) tile = lora.tiles[t];
            LoraPart own_part = {0, 0, 0, 0.0f, 0};
            if (tile.sites) own_part = tile.sites[lora.site].parts[part];
            const u32 stride = (own_part.rank + 7) & ~7u;
            tiles[t] = LoraTask{own_part.b, stride, own_part.lane, tile.first_row, tile.rows};
            own[i] = (stride + 15) / 16;
            sum += own[i];
        }
        u32 before = sum;
#pragma unroll
        for (u32 offset = 1; offset < 32; offset *= 2) {
            u32 other = __shfl_up_sync(FULL_WARP, before, offset);
            if (lane >= offset) before += other;
        }
        if (lane == 31) count = before;
        before -= sum;
        starts[2 * lane] = before, starts[2 * lane + 1] = before + own[0];
    }

    // Task `i`, by a whole warp; `k` is its first rank.
    DEVICE const LoraTask& get(u32 i, u32& k) const {
        const u32 lane = threadIdx.x % 32;
        const u32 low = __ballot_sync(FULL_WARP, starts[lane] <= i);
        const u32 high = __ballot_sync(FULL_WARP, starts[lane + 32] <= i);
        const u32 t = __popc(low) + __popc(high) - 1;
        k = (i - starts[t]) * 16;
        return tiles[t];
    }
};
