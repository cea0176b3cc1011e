// residual += y + bias + LoRA; normed = rms_norm(residual). Strides are multiples of 8; what lies past the width is zero.

#define MAX_KEPT 4  // times four columns a thread

struct ResidualArgs {
    const u16* y;       // [rows, stride]: the product; null: the norm alone
    const u16* delta;   // like y: what LoRA adds, or null
    const float* bias;  // [width] or null
    float* residual;    // [rows, stride]
    const float* weight;
    u16* normed;  // [rows, stride]
    u32 stride;
    u32 width;
    float eps;
    u32 unused;
};

DEVICE void add4(float4& x, const float4& y) { x.x += y.x, x.y += y.y, x.z += y.z, x.w += y.w; }

DEVICE float4 widen4(uint2 raw) {
    return make_float4(low_f32(raw.x), high_f32(raw.x), low_f32(raw.y), high_f32(raw.y));
}

// Grid: rows. A block holds its row in registers: at least width / 16 threads.
template <bool ADD>
DEVICE void norm_row(const ResidualArgs& args) {
    __shared__ float sums[32];
    let_dependents_start();
    wait_for_primary();
    const u64 row = (u64)blockIdx.x * args.stride;
    float4 kept[MAX_KEPT];
    float sum = 0.0f;
#pragma unroll
    for (u32 k = 0; k < MAX_KEPT; k++) {
        u32 i = (k * blockDim.x + threadIdx.x) * 4;
        if (i < args.stride) {
            float4 x = *(const float4*)(args.residual + row + i);
            if (ADD) {
                add4(x, widen4(*(const uint2*)(args.y + row + i)));
                if (args.bias) add4(x, *(const float4*)(args.bias + i));
                if (args.delta) add4(x, widen4(*(const uint2*)(args.delta + row + i)));
                *(float4*)(args.residual + row + i) = x;
            }
            kept[k] = x;
            sum += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
        }
    }
    sum = block_sum(sum, sums);
    float factor = 1.0f / sqrtf(sum / (float)args.width + args.eps);
#pragma unroll
    for (u32 k = 0; k < MAX_KEPT; k++) {
        u32 i = (k * blockDim.x + threadIdx.x) * 4;
        if (i < args.stride) {
            float4 x = kept[k], w = *(const float4*)(args.weight + i);
            *(uint2*)(args.normed + row + i) =
                make_uint2(pack_bf16(x.x * (factor * w.x), x.y * (factor * w.y)),
                           pack_bf16(x.z * (factor * w.z), x.w * (factor * w.w)));
        }
    }
}

KERNEL(1024, 1) rms_norm(const ResidualArgs args) { norm_row<false>(args); }

KERNEL(1024, 1) residual_norm(const ResidualArgs args) { norm_row<true>(args); }

// The same with LoRA where A lies below W: rows of a block that share an adapter share what it reads of B.
struct ResidualStackedArgs {
    Lora lora;
    const u16* y;  // [rows, y_stride]
    const float* bias;
    float* residual;
    const float* weight;
    u16* normed;
    u32 y_stride;
    u32 stride;
    u32 width;
    float eps;
    u32 rows;
    u32 columns;  // of a block, a multiple of 128
};

#define MOST_SHARES 4
#define WARP_COLUMNS 128

DEVICE float dot8(uint4 b, const float (&h)[8]) {
    float v[8], sum = 0.0f;
    widen8(b, v);
#pragma unroll
    for (u32 i = 0; i < 8; i++) sum += v[i] * h[i];
    return sum;
}

// B of one part for a warp's columns: two neighbouring lanes have the two halves of sixteen ranks of a column, so that a load
// takes whole lines. Load `j` is for column 16 j + lane / 2.
struct Columns {
    const u16* from;
    u32 stride;
    u32 left;  // columns from the lane's first on

    DEVICE Columns(const LoraPart& part, u32 first, u32 width) {
        const u32 column = first + threadIdx.x % 32 / 2;
        stride = part.stride();
        from = part.b + (u64)column * stride;
        left = column < width ? width - column : 0;
    }

    // Those of loads from `j` on, `k` being the lane's first rank.
    template <u32 LOADS>
    DEVICE void load(uint4 (&b)[LOADS], u32 j, u32 k) const {
#pragma unroll
        for (u32 i = 0; i < LOADS; i++) {
            b[i] = make_uint4(0, 0, 0, 0);
            if (16 * (j + i) < left && k < stride) b[i] = __ldg((const uint4*)(from + (u64)(16 * (j + i)) * stride + k));
        }
    }
};

// Adds up halves of ranks, and gives each lane four neighbouring columns.
DEVICE float4 own_columns(const float (&sums)[8], float* turned) {
    const u32 lane = threadIdx.x % 32, odd = lane % 2;
    float own[4];
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        const float other = __shfl_xor_sync(FULL_WARP, odd ? sums[j] : sums[j + 4], 1);
        own[j] = (odd ? sums[j + 4] : sums[j]) + other;
    }
    __syncwarp();
    // Odd lanes go another way round, so that all go to banks of their own.
#pragma unroll
    for (u32 j = 0; j < 4; j++) turned[16 * ((odd ? j ^ 1 : j) + 4 * odd) + lane / 2] = odd ? own[j ^ 1] : own[j];
    __syncwarp();
    return *(const float4*)(turned + 4 * lane);
}

template <u32 ROWS>
DEVICE void norm_rows_with_lora(const ResidualStackedArgs& args) {
    constexpr u32 LOADS = 4 / ROWS;
    __shared__ float sums[32];
    __shared__ float of_peers[MOST_SHARES][ROWS];
    __shared__ __align__(16) float turned[32][WARP_COLUMNS];
    let_dependents_start();
    const Lora& lora = args.lora;
    const u32 row = blockIdx.y * ROWS, rows = min(args.rows - row, ROWS), shares = gridDim.x;
    const u32 start = blockIdx.x * args.columns, end = min(start + args.columns, args.stride);
    if (shares > 1) say_begun();
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, step = blockDim.x * 4, half = lane % 2 * 8;
    LoraPart parts[ROWS];
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) parts[r] = part_of_row(lora, row + min(r, rows - 1), 0);
    float total[ROWS] = {};
    float4 kept[ROWS];
    bool waited = false;
    for (u32 first = start + warp * WARP_COLUMNS; first < end; first += step) {
        const u32 i = first + lane * 4;
        uint2 y[ROWS];
        float delta[ROWS][8];
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            kept[r] = make_float4(0.0f, 0.0f, 0.0f, 0.0f), y[r] = make_uint2(0, 0);
#pragma unroll
            for (u32 j = 0; j < 8; j++) delta[r][j] = 0.0f;
        }
        uint4 b[LOADS];
        Columns(parts[0], first, args.width).load(b, 0, half);
        // B lay there before; y and h come from the kernel before.
        if (!waited) wait_for_primary();
        waited = true;
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            if (i >= end || r >= rows) continue;
            y[r] = *(const uint2*)(args.y + (u64)(row + r) * args.y_stride + i);
            kept[r] = *(const float4*)(args.residual + (u64)(row + r) * args.stride + i);
        }
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            const LoraPart& part = parts[r];
            if (r > 0 && part.b == parts[r - 1].b) continue;
            const Columns columns(part, first, args.width);
            for (u32 k = 0; k < columns.stride; k += 16) {
                float h[ROWS][8];
#pragma unroll
                for (u32 other = r; other < ROWS; other++) {
                    const u16* at = lora.h + (u64)(row + min(other, rows - 1)) * lora.lane_stride + part.lane;
                    uint4 raw = make_uint4(0, 0, 0, 0);
                    if (parts[other].b == part.b && k + half < columns.stride) raw = *(const uint4*)(at + k + half);
                    widen8(raw, h[other]);
                }
#pragma unroll
                for (u32 j = 0; j < 8; j += LOADS) {
                    if (r + k + j > 0) columns.load(b, j, k + half);
#pragma unroll
                    for (u32 n = 0; n < LOADS; n++)
#pragma unroll
                        for (u32 other = r; other < ROWS; other++) delta[other][j + n] += dot8(b[n], h[other]);
                }
            }
        }
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            const float4 own = own_columns(delta[r], turned[warp]);
            if (i >= end || r >= rows) continue;
            float4& x = kept[r];
            add4(x, widen4(y[r]));
            if (args.bias) add4(x, *(const float4*)(args.bias + i));
            const float scale = parts[r].scale;
            add4(x, make_float4(own.x * scale, own.y * scale, own.z * scale, own.w * scale));
            *(float4*)(args.residual + (u64)(row + r) * args.stride + i) = x;
            total[r] += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
        }
    }
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) total[r] = block_sum(total[r], sums);
    if (shares > 1) {
        wait_for_begun();
#pragma unroll
        for (u32 r = 0; r < ROWS; r++)
            if (threadIdx.x < shares) store_to_peer(&of_peers[blockIdx.x][r], threadIdx.x, total[r]);
        sync_cluster();
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            total[r] = 0.0f;
#pragma unroll
            for (u32 peer = 0; peer < MOST_SHARES; peer++)
                if (peer < shares) total[r] += of_peers[peer][r];
        }
    }
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) {
        const float factor = 1.0f / sqrtf(total[r] / (float)args.width + args.eps);
        if (r >= rows) continue;
        for (u32 i = start + threadIdx.x * 4; i < end; i += step) {
            const u64 at = (u64)(row + r) * args.stride + i;
            // What the thread has stored itself, where its columns take more than one turn.
            const float4 x = step < args.columns ? *(const float4*)(args.residual + at) : kept[r];
            const float4 w = *(const float4*)(args.weight + i);
            *(uint2*)(args.normed + at) = make_uint2(pack_bf16(x.x * (factor * w.x), x.y * (factor * w.y)),
                                                     pack_bf16(x.z * (factor * w.z), x.w * (factor * w.w)));
        }
    }
}

// Grid: blocks that share a row's columns, a cluster; rows, or rows / 2.
KERNEL(1024, 1) residual_norm_stacked1(const ResidualStackedArgs args) { norm_rows_with_lora<1>(args); }
KERNEL(128, 4) residual_norm_stacked2(const ResidualStackedArgs args) { norm_rows_with_lora<2>(args); }
