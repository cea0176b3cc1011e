// B of a step's adapters as tensor cores take it, where they are few: `stack.cu` lays it out when an adapter comes to its slot.
//
// A slot has sixteen ranks of each part, zeros where the adapter has none. For each 32 columns of a part and each half j of
// those lie, lane after lane, eight elements: of columns 4 g + 2 j and the next, ranks 4 q .. 4 q + 3 (g = lane / 4,
// q = lane % 4). So a lane ends up with four neighbouring columns, in rows 2 q and 2 q + 1 of eight.
#pragma once

#define PACKED_SLOTS 8
#define PACKED_COLUMNS 32
#define PACKED_PARTS 4  // scales of a slot, the last unused

// In front of the first slot.
struct PackedScales {
    float scale[PACKED_SLOTS][PACKED_PARTS];
};

// Where a part of that width ends.
DEVICE u32 packed_columns(u32 width) { return (width + PACKED_COLUMNS - 1) / PACKED_COLUMNS * PACKED_COLUMNS; }

// Which slots eight rows have, and what their LoRA is scaled with. A lane below eight knows its row.
template <u32 PARTS>
struct SlotsOfRows {
    u32 own;
    float scale[PARTS];

    DEVICE void load(const Lora& lora, u32 row, u32 rows, u32 first_part) {
        const u32 lane = threadIdx.x % 32;
        const Tile tile = lane < rows ? lora.tiles[row + lane] : Tile{};
        own = ((1u << tile.slots) - 1) << tile.slot;
        // With a single slot it is known before the row is.
        const u32 slot = lora.slots == 1 ? 0 : tile.slot;
#pragma unroll
        for (u32 p = 0; p < PARTS; p++) scale[p] = ((const PackedScales*)lora.packed)->scale[slot][first_part + p];
    }

    DEVICE u32 all(const Lora& lora) const { return lora.slots == 1 ? 1 : __reduce_or_sync(FULL_WARP, own); }
    DEVICE float of_row(u32 row, u32 part = 0) const { return __shfl_sync(FULL_WARP, scale[part], row); }
};

// h Bᵀ for eight rows and `GROUPS` times 32 columns of a warp, each of a part of its own or (`PARTS` 1) all of one.
// B of `AT_ONCE` slots is under way at once.
template <u32 GROUPS, u32 PARTS, u32 AT_ONCE>
struct PackedTurns {
    uint4 b[AT_ONCE][GROUPS][2];
    u32 held = 0;  // the slots whose B that is

    // `columns`: where each group lies among the columns of a slot, of which there are `width`.
    DEVICE void load(const Lora& lora, u32 slots, const u32 (&columns)[GROUPS], u32 width) {
        if (slots == held) return;
        held = slots;
        const u16* from = (const u16*)(lora.packed + sizeof(PackedScales)) + threadIdx.x % 32 * 8;
#pragma unroll
        for (u32 t = 0; t < AT_ONCE; t++) {
            if (!slots) break;
            const u32 slot = __ffs(slots) - 1;
            slots &= slots - 1;
#pragma unroll
            for (u32 n = 0; n < GROUPS; n++)
#pragma unroll
                for (u32 j = 0; j < 2; j++)
                    b[t][n][j] = __ldg((const uint4*)(from + ((u64)slot * width + columns[n]) * LORA_LANES + j * 256));
        }
    }

    // The first few of `slots`.
    DEVICE static u32 batch(u32 slots) {
        u32 rest = slots;
#pragma unroll
        for (u32 t = 0; t < AT_ONCE; t++) rest &= rest - 1;
        return slots & ~rest;
    }

    // delta[n][j][2 i + r] is for column 2 j + i of the lane's in group n and row 2 q + r. `slots` are held; `own` are those of
    // row g, if it is `there`.
    DEVICE void multiply(const Lora& lora, u32 slots, u32 own, u32 first_part, u32 row, bool there, float (&delta)[GROUPS][2][4]) {
        const u32 g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
        const u16* from = lora.h + (u64)(row + g) * lora.lane_stride + first_part * LORA_LANES + q * 4;
        uint2 h[AT_ONCE][PARTS];
        u32 left = slots;
#pragma unroll
        for (u32 t = 0; t < AT_ONCE; t++) {
            const u32 slot = left ? __ffs(left) - 1 : 0;
#pragma unroll
            for (u32 p = 0; p < PARTS; p++) {
                h[t][p] = make_uint2(0, 0);
                if (left && there) h[t][p] = *(const uint2*)(from + slot * lora.slot_lanes + p * LORA_LANES);
            }
            left &= left - 1;
        }
#pragma unroll
        for (u32 t = 0; t < AT_ONCE; t++) {
            if (!slots) break;
            const bool mine = own & slots & (0 - slots);
            slots &= slots - 1;
#pragma unroll
            for (u32 n = 0; n < GROUPS; n++) {
                const uint2 ranks = mine ? h[t][PARTS == 1 ? 0 : n] : make_uint2(0, 0);
#pragma unroll
                for (u32 j = 0; j < 2; j++)
                    mma16(delta[n][j], b[t][n][j].x, b[t][n][j].y, b[t][n][j].z, b[t][n][j].w, ranks.x, ranks.y);
            }
        }
    }
};

// Four elements of a row.
DEVICE void widen4(uint2 raw, float (&v)[4]) {
    v[0] = low_f32(raw.x), v[1] = high_f32(raw.x), v[2] = low_f32(raw.y), v[3] = high_f32(raw.y);
}

DEVICE void store4(u16* p, const float (&v)[4]) { *(uint2*)p = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])); }
