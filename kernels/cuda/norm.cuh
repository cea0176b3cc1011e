// An RMS norm in two halves. Who adds to the residual multiplies with the norm's weight and sums up squares; the division is
// left to whoever reads what follows, since all of that is linear: products, and what LoRA adds to them. So no block waits
// for the others of its row.
#pragma once

struct Norm {
    float* squares;  // [rows, pieces]: what each block that shared a row found; null: x is divided already
    u32 pieces;
    u32 width;
    float eps;
    u32 unused;

    DEVICE float factor(float sum) const { return 1.0f / sqrtf(sum / (float)width + eps); }
};

// What a row of x has to be multiplied with.
DEVICE float factor_of_row(const Norm& norm, u32 row) {
    if (!norm.squares) return 1.0f;
    float sum = 0.0f;
#pragma unroll 4
    for (u32 i = 0; i < norm.pieces; i++) sum += norm.squares[(u64)row * norm.pieces + i];
    return norm.factor(sum);
}

// The same of eight rows, of which a warp has some: a lane finds out that of row + lane / 4.
DEVICE float factor_of_eight(const Norm& norm, u32 row, u32 rows) {
    if (!norm.squares) return 1.0f;
    const u32 lane = threadIdx.x % 32;
    float sum = 0.0f;
    if (lane / 4 < rows)
        for (u32 i = lane % 4; i < norm.pieces; i += 4) sum += norm.squares[(u64)(row + lane / 4) * norm.pieces + i];
    sum += __shfl_xor_sync(FULL_WARP, sum, 1);
    sum += __shfl_xor_sync(FULL_WARP, sum, 2);
    return norm.factor(sum);
}
