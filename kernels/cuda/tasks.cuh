// A step's adapters as work in sixteens of ranks, whatever their ranks.
#pragma once

#define MOST_TILES 32  // a lane has one

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
        Tile tile = {0, 0, 0};
        if (lane < most) tile = lora.tiles[lane];
        LoraPart own = {0, 0, 0, 0.0f, 0};
        if (tile.sites) own = tile.sites[lora.site].parts[part];
        const u32 stride = (own.rank + 7) & ~7u, sixteens = (stride + 15) / 16;
        tiles[lane] = LoraTask{own.b, stride, own.lane, tile.first_row, tile.rows};
        u32 up_to = sixteens;
#pragma unroll
        for (u32 offset = 1; offset < 32; offset *= 2) {
            u32 other = __shfl_up_sync(FULL_WARP, up_to, offset);
            if (lane >= offset) up_to += other;
        }
        if (lane == 31) count = up_to;
        starts[lane] = up_to - sixteens;
    }

    // Task `i`, by a whole warp; `k` is its first rank.
    DEVICE const LoraTask& get(u32 i, u32& k) const {
        const u32 t = __popc(__ballot_sync(FULL_WARP, starts[threadIdx.x % 32] <= i)) - 1;
        k = (i - starts[t]) * 16;
        return tiles[t];
    }
};
