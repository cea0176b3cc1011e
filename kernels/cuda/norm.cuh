// An RMS norm in two halves. Who adds to the residual multiplies with the norm's weight and sums up squares; the division is
// left to whoever reads what follows, since all of that is linear: products, and what LoRA adds to them. So no block waits
// for the others of its row.
#pragma once

struct Norm {
    float* squares;  // [rows, pieces]: what each block that shared a row found; null: x is divided already
    u32 pieces;
    u32 width;
    float eps;
    float of_width;  // 1 / width

    DEVICE float factor(float sum) const { return rsqrtf(sum * of_width + eps); }
};

// What a row of x has to be multiplied with.
DEVICE float factor_of_row(const Norm& norm, u32 row) {
    if (!norm.squares) return 1.0f;
    float sum = 0.0f;
#pragma unroll 8
    for (u32 i = 0; i < norm.pieces; i++) sum += norm.squares[(u64)row * norm.pieces + i];
    return norm.factor(sum);
}

// The same of eight rows that a warp has. Loads come apart from sums, so that others are issued before anyone waits.
struct FactorsOfEight {
    float first[4];

    DEVICE static const float* of_lane(const Norm& norm, u32 row) {
        const u32 lane = threadIdx.x % 32;
        return norm.squares + (u64)(row + lane / 4) * norm.pieces + lane % 4;
    }

    DEVICE void load(const Norm& norm, u32 row, u32 rows) {
        const bool there = norm.squares && threadIdx.x % 32 / 4 < rows;
        const float* from = of_lane(norm, row);
#pragma unroll
        for (u32 i = 0; i < 4; i++) first[i] = there && threadIdx.x % 4 + 4 * i < norm.pieces ? from[4 * i] : 0.0f;
    }

    // A lane has that of row + lane / 4.
    DEVICE float finish(const Norm& norm, u32 row, u32 rows) const {
        if (!norm.squares) return 1.0f;
        float sum = 0.0f;
#pragma unroll
        for (u32 i = 0; i < 4; i++) sum += first[i];
        if (threadIdx.x % 32 / 4 < rows)
#pragma unroll 4
            for (u32 i = 16; threadIdx.x % 4 + i < norm.pieces; i += 4) sum += of_lane(norm, row)[i];
        sum += __shfl_xor_sync(FULL_WARP, sum, 1);
        sum += __shfl_xor_sync(FULL_WARP, sum, 2);
        return norm.factor(sum);
    }
};

DEVICE float factor_of_eight(const Norm& norm, u32 row, u32 rows) {
    FactorsOfEight factors;
    factors.load(norm, row, rows);
    return factors.finish(norm, row, rows);
}
