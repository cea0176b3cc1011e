// Segmented LoRA: who computes what for whom, and the pieces of the expand.
//
// A step's rows are cut into tiles of up to 16 (or 64) neighbouring rows with the same adapter, or with none. An adapter is
// one block of device memory whose table of sites holds plain addresses, so a captured graph serves any adapters.
//
// h comes from a shrink of its own, or from the product itself, where A lies below W (`stack.cu`). Then each row is a tile.
#pragma once

#define LORA_LANES 16

struct LoraPart {
    const u16* b;  // [outputs, stride()]
    u32 rank;      // 0: the adapter leaves the part alone
    u32 lane;      // its first lane among the site's
    float scale;
    u32 slot;  // of a row's adapter below W, in `Lora::parts` alone

    // Elements from one row of B to the next.
    DEVICE u32 stride() const { return (rank + 7) & ~7u; }
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
    u16 rows;
    u8 slot;  // the first of the adapter's below W
    u8 slots;
};

struct Lora {
    const Tile* tiles;  // those past the last have no rows
    u16* h;             // x Aᵀ, scaled if a shrink made it: [rows, lane_stride]
    u32 lane_stride;
    u32 site;        // layer * 4 + site
    u32 slot_lanes;  // of a slot below W: sixteen a part; 0: a shrink made h
    u32 rows;        // of `parts`
    const u8* packed;       // B of the first slots (`packed.cuh`)
    const LoraPart* parts;  // what rows have at the site, [3, rows] (`spread.cu`)
};

// What the tile's adapter does at this site, if anything.
DEVICE const LoraSite* site_of(const Lora& lora, const Tile& tile) {
    if (!tile.sites) return 0;
    const LoraSite* site = tile.sites + lora.site;
    return site->lanes ? site : 0;
}

// What a row's adapter has for a part, with its lanes among all of h, where A lies below W; of rank 0 where it has nothing.
DEVICE LoraPart part_of_row(const Lora& lora, u32 row, u32 index) {
    LoraPart part = lora.parts[index * lora.rows + row];
    part.lane = part.slot * lora.slot_lanes + index * LORA_LANES;
    return part;
}

// From a rank `k` of a part, at a multiple of sixteen, to the same in h: each slot has its lanes of all parts.
DEVICE u32 lane_of_rank(const Lora& lora, u32 k) { return k / LORA_LANES * lora.slot_lanes; }

// Sixteen ranks (or the last eight, then zeros) of B for a warp's 32 columns.
struct FragmentsB {
    uint2 b[4];

    DEVICE void load(const LoraPart& part, u32 k, u32 first, u32 width) {
        const u32 q = threadIdx.x % 4, stride = part.stride();
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            u32 column = first + 2 * j;
            const u16* row = part.b + (u64)column * stride + k;
            b[j] = make_uint2(0, 0);
            if (column >= width || k >= stride) continue;
            if (k + 8 < stride)
                b[j] = __ldg((const uint2*)(row + q * 4));
            else
                b[j].x = __ldg((const u32*)(row + q * 2));
        }
    }
};

// The same ranks of h for up to 16 rows.
struct FragmentH {
    u32 a[4];

    DEVICE void load(const Lora& lora, const LoraPart& part, u32 k, u32 row, u32 rows) {
        const u32 g = threadIdx.x % 32 / 4, q = threadIdx.x % 4, stride = part.stride();
        a[0] = a[1] = a[2] = a[3] = 0;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 r = g + 8 * half;
            const u16* h = lora.h + (u64)(row + r) * lora.lane_stride + part.lane + k;
            if (r >= rows || k >= stride) continue;
            if (k + 8 < stride) {
                uint2 ranks = *(const uint2*)(h + q * 4);
                a[half] = ranks.x, a[2 + half] = ranks.y;
            } else {
                a[half] = *(const u32*)(h + q * 2);
            }
        }
    }
};

// delta += h Bᵀ for up to 16 rows and the 32 columns of `b`: delta[j][e] of a lane belongs to row g and column
// 8 q + 2 j + e, delta[j][2 + e] to row g + 8, so each lane holds eight neighbouring columns of two rows.
DEVICE void multiply(const FragmentH& h, const FragmentsB& b, float (&delta)[4][4]) {
#pragma unroll
    for (u32 j = 0; j < 4; j++) mma16(delta[j], h.a[0], h.a[1], h.a[2], h.a[3], b.b[j].x, b.b[j].y);
}

// The lane's first column among 32 from `column` that `FragmentsB::load` takes.
DEVICE u32 first_column(u32 column) {
    const u32 g = threadIdx.x % 32 / 4;
    return column + (g / 2) * 8 + (g & 1);
}
