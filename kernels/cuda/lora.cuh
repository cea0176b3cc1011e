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
    u32 unused;

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
    u16 slot;  // of the adapter among those below W
};

struct Lora {
    const Tile* tiles;  // those past the last have no rows
    u16* h;             // x Aᵀ, scaled if a shrink made it: [rows, lane_stride]
    u32 lane_stride;
    u32 site;        // layer * 4 + site
    u32 slot_lanes;  // of a slot below W; 0: a shrink made h
    u32 unused;
};

// What the tile's adapter does at this site, if anything.
DEVICE const LoraSite* site_of(const Lora& lora, const Tile& tile) {
    if (!tile.sites) return 0;
    const LoraSite* site = tile.sites + lora.site;
    return site->lanes ? site : 0;
}

// What a row's adapter has for a part, with its lanes among all of h, where A lies below W; of rank 0 where it has nothing.
DEVICE LoraPart part_of_row(const Lora& lora, u32 row, u32 index) {
    const Tile tile = lora.tiles[row];
    if (!tile.sites) return LoraPart{0, 0, 0, 0.0f, 0};
    LoraPart part = tile.sites[lora.site].parts[index];
    part.lane += tile.slot * lora.slot_lanes;
    return part;
}

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

// What the adapter of a row has, as the row's lane knows it.
DEVICE LoraPart from_lane(const LoraPart& part, u32 lane) {
    LoraPart found;
    found.b = (const u16*)__shfl_sync(FULL_WARP, (u64)part.b, lane);
    found.rank = __shfl_sync(FULL_WARP, part.rank, lane);
    found.lane = __shfl_sync(FULL_WARP, part.lane, lane);
    found.scale = __shfl_sync(FULL_WARP, part.scale, lane);
    return found;
}

// The adapters of eight rows one after the other, sixteen ranks at a time. A lane knows the parts of its row.
template <u32 PARTS>
struct Turn {
    u32 waiting;  // rows whose adapter is to come
    u32 leader;   // a row of the one whose turn it is
    u32 k;

    DEVICE static u32 rank(const LoraPart (&own)[PARTS]) {
        u32 most = own[0].rank;
#pragma unroll
        for (u32 p = 1; p < PARTS; p++) most = max(most, own[p].rank);
        return most;
    }

    DEVICE void begin(const LoraPart (&own)[PARTS]) {
        waiting = __ballot_sync(FULL_WARP, rank(own) > 0);
        leader = waiting ? __ffs(waiting) - 1 : 0, k = 0;
    }

    // Tells it from others: B lies somewhere even where it has no ranks.
    DEVICE u64 key(const LoraPart (&own)[PARTS]) const { return __shfl_sync(FULL_WARP, (u64)own[0].b, leader); }

    // Its rows.
    DEVICE u32 served(const LoraPart (&own)[PARTS]) const {
        return __ballot_sync(FULL_WARP, (u64)own[0].b == key(own)) & waiting;
    }

    DEVICE void next(const LoraPart (&own)[PARTS]) {
        k += 16;
        if (k < __shfl_sync(FULL_WARP, rank(own), leader)) return;
        waiting &= ~served(own);
        leader = waiting ? __ffs(waiting) - 1 : 0, k = 0;
    }
};

// Sixteen ranks (or the last eight, then zeros) of B for the lane's eight columns from `first` on.
struct EightColumns {
    uint2 b[8];

    DEVICE void load(const LoraPart& part, u32 k, u32 first, u32 width) {
        const u32 q = threadIdx.x % 4, stride = part.stride();
        const bool there = k < stride && first < width, whole = k + 8 < stride;
        const u16* at = part.b + (u64)first * stride + k + q * (whole ? 4 : 2);
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            b[i] = make_uint2(0, 0);
            if (there && whole) b[i] = __ldg((const uint2*)(at + i * stride));
            if (there && !whole) b[i].x = __ldg((const u32*)(at + i * stride));
        }
    }

    // The same ranks of h for a row whose own part is given.
    DEVICE static uint2 ranks(const Lora& lora, const LoraPart& part, u32 k, u32 row) {
        const u32 q = threadIdx.x % 4, stride = part.stride();
        const u16* at = lora.h + (u64)row * lora.lane_stride + part.lane + k;
        if (k + 8 < stride) return *(const uint2*)(at + q * 4);
        return make_uint2(k < stride ? *(const u32*)(at + q * 2) : 0, 0);
    }

    // delta += B hᵀ: delta[j][2 i + r] is for column 2 j + i of the lane's and row 2 q + r.
    DEVICE void multiply(uint2 h, float (&delta)[4][4]) const {
#pragma unroll
        for (u32 j = 0; j < 4; j++) mma16(delta[j], b[2 * j].x, b[2 * j + 1].x, b[2 * j].y, b[2 * j + 1].y, h.x, h.y);
    }
};

// Takes the adapters of eight rows in turns while B of the next is on its way: eight of the lane's columns, and as many in each
// further half 64 behind.
template <u32 HALVES>
struct InTurn {
    Turn<1> turn;
    Turn<1> ahead;
    u64 held = 0;  // whose first ranks `now` holds
    EightColumns now[HALVES];
    EightColumns next[HALVES];

    DEVICE static void load(EightColumns (&b)[HALVES], const LoraPart (&own)[1], const Turn<1>& turn, u32 first, u32 width) {
        const LoraPart part = from_lane(own[0], turn.leader);
#pragma unroll
        for (u32 half = 0; half < HALVES; half++) b[half].load(part, turn.k, first + 64 * half, width);
    }

    DEVICE void begin(const LoraPart (&own)[1], u32 first, u32 width) {
        turn.begin(own);
        const u64 key = turn.key(own);
        if (turn.waiting && key != held) load(now, own, turn, first, width), held = key;
        ahead = turn;
        load_ahead(own, first, width);
    }

    DEVICE void load_ahead(const LoraPart (&own)[1], u32 first, u32 width) {
        if (ahead.waiting) ahead.next(own);
        if (ahead.waiting) load(next, own, ahead, first, width);
    }

    // `first` holds the first ranks of the lane's row, row + lane / 4.
    DEVICE void multiply(const LoraPart (&own)[1], const Lora& lora, u32 row, uint2 first, float (&delta)[HALVES][4][4]) const {
        const u32 g = threadIdx.x % 32 / 4;
        uint2 h = first;
        if (turn.k) h = EightColumns::ranks(lora, from_lane(own[0], g), turn.k, row + g);
        if (!(turn.served(own) >> g & 1)) h = make_uint2(0, 0);
#pragma unroll
        for (u32 half = 0; half < HALVES; half++) now[half].multiply(h, delta[half]);
    }

    DEVICE void advance(const LoraPart (&own)[1], u32 first, u32 width) {
        turn = ahead;
        if (!turn.waiting) return;
        held = 0;
#pragma unroll
        for (u32 half = 0; half < HALVES; half++) now[half] = next[half];
        load_ahead(own, first, width);
    }
};
