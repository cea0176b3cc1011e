// Steps of prompts: a warp takes sixteen rows, a lane eight neighbouring columns (8 q ..) of rows g and g + 8 (g = lane / 4,
// q = lane % 4) of each 32. `packed.cuh`'s layout of B serves here, too: what is a fragment of 16 columns there is two of eight
// columns here, and rows are the 16 of the product. What has to be known of rows serves several times 32 columns.
#pragma once

#define PROMPT_ROWS 16

// What a step's adapters add to sixteen rows, B packed; at most 32 slots (`MOST_OF_PROMPTS` in `stack.rs`). `PARTS`: of a site, at once.
template <u32 PARTS>
struct AdaptersOfPrompts {
    const Lora& lora;
    const u32 row;
    u32 first[2];  // slot of rows g and g + 8
    u32 here[2];   // all slots of them,
    u32 slots;     // and of any of the sixteen
    uint2 h[PARTS][2];
    u32 held = ~0u;  // which h that is

    // Before the product: asks who is there.
    DEVICE AdaptersOfPrompts(const Lora& lora, u32 row, u32 rows) : lora(lora), row(row) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 r = threadIdx.x % 32 / 4 + 8 * half, raw = r < rows ? *(const u32*)&lora.tiles[row + r].rows : 0;
            first[half] = raw >> 16 & 31;
            here[half] = (u32)((1ull << (raw >> 24)) - 1) << first[half];
        }
        slots = __reduce_or_sync(FULL_WARP, here[0] | here[1]);
    }

    DEVICE void load_h(u32 slot, u32 first_part) {
        const u32 wanted = slot * PACKED_PARTS + first_part, lane = threadIdx.x % 32;
        if (wanted == held) return;
        held = wanted;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u16* from = lora.h + (u64)(row + lane / 4 + 8 * half) * lora.lane_stride + slot * lora.slot_lanes;
            const bool mine = here[half] >> slot & 1;
#pragma unroll
            for (u32 p = 0; p < PARTS; p++)
                h[p][half] = mine ? *(const uint2*)(from + (first_part + p) * LORA_LANES + lane % 4 * 4) : make_uint2(0, 0);
        }
    }

    // For `GROUPS` times 32 columns that lie in a slot of `width` columns from `columns` on: one group of each part from
    // `first_part` on, or, with one part, all of that.
    template <u32 GROUPS>
    DEVICE void multiply(u32 first_part, const u32 (&columns)[GROUPS], u32 width, float (&delta)[GROUPS][2][8]) {
        float acc[GROUPS][2][2][4] = {};
        for (u32 left = slots; left; left &= left - 1) {
            const u32 slot = __ffs(left) - 1;
            const u16* from = (const u16*)(lora.packed + sizeof(PackedScales)) + (u64)slot * width * LORA_LANES;
            load_h(slot, first_part);
#pragma unroll
            for (u32 n = 0; n < GROUPS; n++) {
                const uint2 low = h[PARTS == 1 ? 0 : n][0], high = h[PARTS == 1 ? 0 : n][1];
#pragma unroll
                for (u32 j = 0; j < 2; j++) {
                    const uint4 b = __ldg((const uint4*)(from + columns[n] * LORA_LANES + j * 256 + threadIdx.x % 32 * 8));
                    mma16(acc[n][j][0], low.x, high.x, low.y, high.y, b.x, b.z);
                    mma16(acc[n][j][1], low.x, high.x, low.y, high.y, b.y, b.w);
                }
            }
        }
#pragma unroll
        for (u32 n = 0; n < GROUPS; n++)
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                const u32 part = first_part + (PARTS == 1 ? 0 : n);
                const float scale = ((const PackedScales*)lora.packed)->scale[first[half]][part];
#pragma unroll
                for (u32 k = 0; k < 8; k++) delta[n][half][k] = acc[n][k / 2 % 2][k % 2][2 * half + k / 4] * scale;
            }
    }
};

// In its place where a step has no adapters.
struct NoAdapters {
    DEVICE NoAdapters(const Lora&, u32, u32) {}

    template <u32 GROUPS>
    DEVICE void multiply(u32, const u32 (&)[GROUPS], u32, float (&delta)[GROUPS][2][8]) {
#pragma unroll
        for (u32 e = 0; e < GROUPS * 16; e++) delta[e / 16][e / 8 % 2][e % 8] = 0.0f;
    }
};

// What a row of x has to be multiplied with, if it is there; four lanes ask for the same.
DEVICE float factor_of_quad(const Norm& norm, u32 row, bool there) {
    if (!norm.squares) return 1.0f;
    const float* from = norm.squares + (u64)row * norm.pieces;
    const u32 q = threadIdx.x % 4, end = there ? norm.pieces : 0;
    float sum = 0.0f;
    if (norm.pieces % 4 == 0)
        for (u32 i = 4 * q; i < end; i += 16) {
            float v[4];
            load_floats(from + i, v);
            sum += (v[0] + v[1]) + (v[2] + v[3]);
        }
    else
        for (u32 i = q; i < end; i += 4) sum += from[i];
    return norm.factor(sum_of_quad(sum));
}
