// Segmented LoRA: who computes what for whom, and the expand that consumers of a product fold in.
//
// A step's rows are cut into tiles of up to 16 (or 64) neighbouring rows with the same adapter, or with none. An adapter is
// one block of device memory whose table of sites holds plain addresses, so a captured graph serves any adapters.
#pragma once

#define LORA_LANES 16

struct LoraPart {
    const u16* b;  // [outputs, rank rounded up to 8]
    u32 rank;      // 0: the adapter leaves the part alone
    u32 lane;      // its first lane among the site's
    float scale;
    u32 unused;
};

struct LoraSite {
    const u16* a;  // [lanes, inputs rounded up to 8]
    u32 lanes;     // 0: the adapter leaves the site alone
    u32 unused;
    LoraPart parts[3];
};

struct Tile {
    const LoraSite* sites;  // null: no adapter
    u32 first_row;
    u32 rows;
};

struct Lora {
    const Tile* tiles;
    const u32* tile_count;
    float* h;          // [splits, rows, lane_stride]: what the shrink found, scaled
    u64 split_stride;  // elements from split to split
    u32 lane_stride;
    u32 splits;
    u32 site;  // layer * 4 + site
    u32 rows;  // of the step, in a launch without tiles
};

// The tile of this block. Without adapters in the step tiles are 16 rows each. Zero rows: nothing to do.
template <bool LORA>
DEVICE Tile tile_at(const Lora& lora, u32 index) {
    if (LORA) {
        if (index < *lora.tile_count) return lora.tiles[index];
        return Tile{0, 0, 0};
    }
    u32 first = index * 16;
    return Tile{0, first, first < lora.rows ? min(lora.rows - first, 16u) : 0};
}

// What the tile's adapter does at this site, if anything.
DEVICE const LoraSite* site_of(const Lora& lora, const Tile& tile) {
    if (!tile.sites) return 0;
    const LoraSite* site = tile.sites + lora.site;
    return site->lanes ? site : 0;
}

// Four lanes of h of one row, summed over the splits.
DEVICE float4 h4(const Lora& lora, u32 row, u32 lane, bool valid) {
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (valid) {
        const float* h = lora.h + (u64)row * lora.lane_stride + lane;
        for (u32 split = 0; split < lora.splits; split++, h += lora.split_stride) {
            float4 part = *(const float4*)h;
            sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
        }
    }
    return sum;
}

DEVICE float2 h2(const Lora& lora, u32 row, u32 lane, bool valid) {
    float2 sum = make_float2(0.0f, 0.0f);
    if (valid) {
        const float* h = lora.h + (u64)row * lora.lane_stride + lane;
        for (u32 split = 0; split < lora.splits; split++, h += lora.split_stride) {
            float2 part = *(const float2*)h;
            sum.x += part.x, sum.y += part.y;
        }
    }
    return sum;
}

// Adds h Bᵀ of one part for `rows` (up to 16) rows from `row` and the warp's 32 columns from `column` of `width`.
//
// delta[j][e] of a lane belongs to row g and column 8 q + 2 j + e, delta[j][2 + e] to row g + 8: each lane holds eight
// neighbouring columns of two rows.
DEVICE void expand(const Lora& lora, const LoraPart& part, u32 row, u32 rows, u32 column, u32 width,
                   float (&delta)[4][4]) {
    if (part.rank == 0) return;
    const u32 lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const u32 stride = (part.rank + 7) & ~7u;
    const u32 first = column + (g / 2) * 8 + (g & 1);
    for (u32 k = 0; k < stride; k += 16) {
        if (k + 8 < stride) {
            u32 from = part.lane + k + q * 4;
            float4 up = h4(lora, row + g, from, g < rows);
            float4 down = h4(lora, row + g + 8, from, g + 8 < rows);
            u32 a0 = pack_bf16(up.x, up.y), a1 = pack_bf16(down.x, down.y);
            u32 a2 = pack_bf16(up.z, up.w), a3 = pack_bf16(down.z, down.w);
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                u32 c = first + 2 * j;
                uint2 b = make_uint2(0, 0);
                if (c < width) b = __ldg((const uint2*)(part.b + (u64)c * stride + k + q * 4));
                mma16(delta[j], a0, a1, a2, a3, b.x, b.y);
            }
        } else {
            u32 from = part.lane + k + q * 2;
            float2 up = h2(lora, row + g, from, g < rows);
            float2 down = h2(lora, row + g + 8, from, g + 8 < rows);
            u32 a0 = pack_bf16(up.x, up.y), a1 = pack_bf16(down.x, down.y);
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                u32 c = first + 2 * j;
                u32 b = 0;
                if (c < width) b = __ldg((const u32*)(part.b + (u64)c * stride + k + q * 2));
                mma8(delta[j], a0, a1, b);
            }
        }
    }
}
