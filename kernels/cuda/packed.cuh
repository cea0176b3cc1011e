// B of a step's adapters as tensor cores take it, where rows share them: `stack.cu` lays it out when an adapter comes to its slot.
//
// A slot has sixteen ranks of each part, zeros where the adapter has none. For each 32 columns of a part and each half j of
// those lie, lane after lane, eight elements: of columns 4 g + 2 j and the next, ranks 4 q .. 4 q + 3 (g = lane / 4,
// q = lane % 4). So a lane ends up with four neighbouring columns, in rows 2 q and 2 q + 1 of eight.
#pragma once

#define PACKED_SLOTS 64
#define PACKED_COLUMNS 32
#define PACKED_PARTS 4  // scales of a slot, the last unused

// In front of the first slot.
struct PackedScales {
    float scale[PACKED_SLOTS][PACKED_PARTS];
};

// Where a part of that width ends.
DEVICE u32 packed_columns(u32 width) { return (width + PACKED_COLUMNS - 1) / PACKED_COLUMNS * PACKED_COLUMNS; }

// B of a step's slots for eight rows and `GROUPS` times 32 columns of a warp, each group of a part of its own or (`PARTS` 1) all
// of one. `ONE`: for steps of a single slot, where B, h and scale are found without knowing anything of rows.
template <u32 GROUPS, u32 PARTS, bool ONE>
struct Packed {
    const Lora& lora;
    const u32 first_part;
    const u32 width;  // of a slot, in columns
    u32 columns[GROUPS];
    uint4 b[GROUPS][2];
    u32 held = PACKED_SLOTS;  // the slot whose B that is
    uint2 h[PARTS];
    u32 raw;             // of the tile of row + lane
    float scale[PARTS];  // of the same row

    // `columns`: where each group lies among those of a slot.
    DEVICE Packed(const Lora& lora, u32 first_part, const u32 (&columns)[GROUPS], u32 width)
        : lora(lora), first_part(first_part), width(width) {
#pragma unroll
        for (u32 n = 0; n < GROUPS; n++) this->columns[n] = columns[n];
        if (ONE) load_b(0);
    }

    DEVICE void load_b(u32 slot) {
        if (slot == held) return;
        held = slot;
        const u16* from = (const u16*)(lora.packed + sizeof(PackedScales)) + (u64)slot * width * LORA_LANES;
#pragma unroll
        for (u32 n = 0; n < GROUPS; n++)
#pragma unroll
            for (u32 j = 0; j < 2; j++)
                b[n][j] = __ldg((const uint4*)(from + columns[n] * LORA_LANES + j * 256 + threadIdx.x % 32 * 8));
    }

    // h of row + lane / 4.
    DEVICE void load_h(u32 slot, u32 row, u32 rows) {
        const u32 g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
        const u16* from = lora.h + (u64)(row + g) * lora.lane_stride + slot * lora.slot_lanes + first_part * LORA_LANES;
#pragma unroll
        for (u32 p = 0; p < PARTS; p++)
            h[p] = g < rows ? *(const uint2*)(from + p * LORA_LANES + q * 4) : make_uint2(0, 0);
    }

    DEVICE void load_scale(u32 slot) {
#pragma unroll
        for (u32 p = 0; p < PARTS; p++) scale[p] = ((const PackedScales*)lora.packed)->scale[slot][first_part + p];
    }

    // Asks for what is there before the product of eight rows, and
    DEVICE void ask(u32 row, u32 rows) {
        const u32 lane = threadIdx.x % 32;
        raw = lane < rows ? *(const u32*)&lora.tiles[row + lane].rows : 0;
        if (ONE) load_scale(0);
    }

    // for what the product made.
    DEVICE void ask_h(u32 row, u32 rows) {
        if (ONE) load_h(0, row, rows);
    }

    // delta[n][j][2 i + r] is for column 2 j + i of the lane's in group n and row 2 q + r; without the row's scale.
    DEVICE void multiply(u32 row, u32 rows, float (&delta)[GROUPS][2][4]) {
        const u32 first = raw >> 16 & 255, slots = raw >> 24;
        if (ONE) return multiply_held(__shfl_sync(FULL_WARP, slots, threadIdx.x % 32 / 4), delta);
        load_scale(first);
        const u32 end = __reduce_max_sync(FULL_WARP, slots ? first + slots : 0);
#pragma unroll 1
        for (u32 from = 0; from < end; from += 32) {
            const u32 here = bits_below(first + slots, from) & ~bits_below(first, from);
            const u32 own = __shfl_sync(FULL_WARP, here, threadIdx.x % 32 / 4);
            for (u32 left = __reduce_or_sync(FULL_WARP, here); left; left &= left - 1) {
                const u32 slot = from + __ffs(left) - 1;
                load_b(slot);
                load_h(slot, row, rows);
                multiply_held(own >> (slot - from) & 1, delta);
            }
        }
    }

    // Of 32 slots from `from` on those below `end`.
    DEVICE static u32 bits_below(u32 end, u32 from) {
        return end >= from + 32 ? 0xffffffffu : end > from ? (1u << (end - from)) - 1 : 0;
    }

    DEVICE void multiply_held(bool mine, float (&delta)[GROUPS][2][4]) const {
#pragma unroll
        for (u32 n = 0; n < GROUPS; n++) {
            const uint2 ranks = mine ? h[PARTS == 1 ? 0 : n] : make_uint2(0, 0);
#pragma unroll
            for (u32 j = 0; j < 2; j++) mma16(delta[n][j], b[n][j].x, b[n][j].y, b[n][j].z, b[n][j].w, ranks.x, ranks.y);
        }
    }

    DEVICE float scale_of(u32 row, u32 part = 0) const { return __shfl_sync(FULL_WARP, scale[part], row); }
};
