// A step's adapters at a site, as work in sixteens of ranks whatever their ranks.
#pragma once

// What one tile's adapter does for a part.
struct LoraTask {
    const u16* b;       // [outputs, ranks]
    u32 ranks;          // a multiple of 8
    u32 lane;           // of the first
    u32 first_row;
    u32 rows;
};

#define MOST_TILES 32  // a lane has one

// A lane's tile and what its adapter has at the site. Two loads, one behind the other: they begin long before they are used.
struct FoundTask {
    Tile tile;
    LoraTask task;

    DEVICE void begin(const Lora& lora, u32 most) {
        const u32 lane = threadIdx.x % 32;
        tile = Tile{0, 0, 0, 0};
        if (lane < most) tile = lora.tiles[lane];
    }

    DEVICE void find(const Lora& lora, u32 part) {
        task = LoraTask{0, 0, 0, tile.first_row, tile.rows};
        if (!tile.sites) return;
        const LoraPart& own = tile.sites[lora.site].parts[part];
        task.b = own.b, task.ranks = (own.rank + 7) & ~7u, task.lane = own.lane;
    }
};

// The tasks of up to 32 tiles: tile t has those from `starts[t]` on, one for each sixteen ranks.
struct LoraTasks {
    LoraTask tiles[MOST_TILES];
    u32 starts[MOST_TILES];
    u32 count;

    // By one warp.
    DEVICE void set(const FoundTask& found) {
        const u32 lane = threadIdx.x % 32, sixteens = (found.task.ranks + 15) / 16;
        u32 up_to = sixteens;
#pragma unroll
        for (u32 offset = 1; offset < 32; offset *= 2) {
            u32 other = __shfl_up_sync(FULL_WARP, up_to, offset);
            if (lane >= offset) up_to += other;
        }
        tiles[lane] = found.task;
        starts[lane] = up_to - sixteens;
        if (lane == 31) count = up_to;
    }

    // The tile of task `i`, which is below `count`: the last that starts by then.
    DEVICE u32 tile_of(u32 i) const {
        u32 t = 0;
#pragma unroll
        for (u32 step = MOST_TILES / 2; step > 0; step /= 2)
            if (starts[t + step] <= i) t += step;
        return t;
    }
};
