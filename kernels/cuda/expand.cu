// What LoRA adds to a product, beside the product while that is made: delta = h Bᵀ. For steps with few rows.
//
// Reading B is all the work. A warp has 64 columns of one part and goes from tile to tile; what leads to a tile's B is
// fetched a turn ahead.

#define WARP_COLUMNS 64
#define BLOCK_COLUMNS 256

struct ExpandArgs {
    Lora lora;
    u16* delta;      // [rows, stride]
    u32 stride;
    u32 tiles;       // as many as there may be
    u32 widths[3];   // of the parts; 0 past the last
    u32 unused;
};

DEVICE Tile tile_at(const ExpandArgs& args, u32 t) {
    if (t >= args.tiles) return Tile{0, 0, 0};
    return args.lora.tiles[t];
}

DEVICE LoraPart part_of(const Lora& lora, const Tile& tile, u32 part) {
    if (!tile.sites) return LoraPart{0, 0, 0, 0.0f, 0};
    return tile.sites[lora.site].parts[part];
}

// Grid: columns / 256 of each part, tiles or fewer.
KERNEL(128, 5) expand(const ExpandArgs args) {
    const Lora& lora = args.lora;
    u32 block = blockIdx.x, part = 0, start = 0, width = args.widths[0];
#pragma unroll
    for (u32 p = 0; p < 2; p++) {
        u32 blocks = (args.widths[p] + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS;
        if (part == p && block >= blocks) block -= blocks, start += width, part = p + 1, width = args.widths[p + 1];
    }
    const u32 column = block * BLOCK_COLUMNS + threadIdx.x / 32 * WARP_COLUMNS;
    const u32 g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    if (column >= width) return;
    const u32 first = column + (g / 2) * 8 + (g & 1);
    u32 t = blockIdx.y;
    Tile tile = tile_at(args, t), ahead = tile_at(args, t + gridDim.y);
    LoraPart own = part_of(lora, tile, part);
    bool waited = false;
    while (tile.rows) {
        FragmentsB b[2];
        b[0].load(own, 0, first, width);
        b[1].load(own, 0, first + 32, width);
        const LoraPart next = part_of(lora, ahead, part);
        t += gridDim.y;
        const Tile after = tile_at(args, t + gridDim.y);
        if (!waited) wait_for_primary(), waited = true;
        float delta[2][4][4] = {};
        for (u32 k = 0; k < own.rank; k += 16) {
            FragmentH h;
            if (k) b[0].load(own, k, first, width), b[1].load(own, k, first + 32, width);
            h.load(lora, own, k, tile.first_row, tile.rows);
#pragma unroll
            for (u32 i = 0; i < 2; i++)
#pragma unroll
                for (u32 j = 0; j < 4; j++)
                    mma16(delta[i][j], h.a[0], h.a[1], h.a[2], h.a[3], b[i].b[j].x, b[i].b[j].y);
        }
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                u32 r = g + 8 * half, c = column + 32 * i + 8 * q;
                if (r >= tile.rows || c >= width) continue;
                float v[8];
#pragma unroll
                for (u32 k = 0; k < 8; k++) v[k] = delta[i][k / 2][2 * half + k % 2];
                store8(args.delta + (u64)(tile.first_row + r) * args.stride + start + c, (int)(width - c), v);
            }
        }
        tile = ahead, ahead = after, own = next;
    }
}
