// residual += y + bias + LoRA; x = residual * weight, and sums of squares (`norm.cuh`). Strides are multiples of 8; what lies
// past the width is zero.

struct ResidualArgs {
    Lora lora;          // for the kernels with LoRA
    const u16* y;       // [rows, y_stride]: the product; null: the norm alone
    const u16* delta;   // like y: what LoRA adds, or null
    const float* bias;  // [width] or null
    float* residual;    // [rows, stride]
    const float* weight;
    u16* x;  // [rows, stride]
    Norm norm;
    u32 y_stride;
    u32 stride;
    u32 rows;
    u32 columns;  // of a block of `residual`
};

// Four columns of a row of y.
struct Product {
    uint2 raw;

    DEVICE void load(const u16* from) { raw = *(const uint2*)from; }

    DEVICE void add_to(float (&v)[4]) const {
        float own[4];
        widen4(raw, own);
#pragma unroll
        for (u32 k = 0; k < 4; k++) v[k] += own[k];
    }
};

// What columns have from the start: before the kernel before has ended.
struct Constants {
    float weight[4];
    float bias[4];

    DEVICE void load(const ResidualArgs& args, u32 i) {
#pragma unroll
        for (u32 k = 0; k < 4; k++) weight[k] = bias[k] = 0.0f;
        if (i >= args.stride) return;
        load_floats(args.weight + i, weight);
        if (args.bias) load_floats(args.bias + i, bias);
    }
};

// Ends four columns of a row whose residual, y and LoRA `v` holds. Returns their sum of squares.
DEVICE float finish(const ResidualArgs& args, const Constants& constants, u32 row, u32 i, float (&v)[4]) {
    const u64 at = (u64)row * args.stride + i;
    float sum = 0.0f, x[4];
#pragma unroll
    for (u32 k = 0; k < 4; k++) {
        v[k] += constants.bias[k];
        sum += v[k] * v[k];
    }
    if (args.y) *(float4*)(args.residual + at) = make_float4(v[0], v[1], v[2], v[3]);
#pragma unroll
    for (u32 k = 0; k < 4; k++) x[k] = v[k] * constants.weight[k];
    store4(args.x + at, x);
    return sum;
}

// The sum over a block of so many warps, in its first thread.
template <u32 WARPS>
DEVICE float sum_of_block(float x, float (&shared)[WARPS]) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0.0f;
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) x += shared[w];
    return x;
}

// Grid: pieces, rows. A thread has four columns at a time, so that a warp takes whole lines of the residual.
KERNEL(256, 1) residual(const ResidualArgs args) {
    __shared__ float sums[8];
    let_dependents_start();
    const u32 row = blockIdx.y, end = min((blockIdx.x + 1) * args.columns, args.stride);
    u32 i = blockIdx.x * args.columns + threadIdx.x * 4;
    Constants constants;
    constants.load(args, i);
    wait_for_primary();
    float sum = 0.0f;
    while (i < end) {
        const u64 at = (u64)row * args.y_stride + i;
        Product y = {}, delta = {};
        float v[4];
        if (args.y) y.load(args.y + at);
        if (args.delta) delta.load(args.delta + at);
        load_floats(args.residual + (u64)row * args.stride + i, v);
        y.add_to(v);
        delta.add_to(v);
        sum += finish(args, constants, row, i, v);
        i += 1024;
        if (i < end) constants.load(args, i);
    }
    sum = sum_of_block(sum, sums);
    if (threadIdx.x == 0) args.norm.squares[(u64)row * args.norm.pieces + blockIdx.x] = sum;
}

DEVICE float dot8(uint4 b, const float (&h)[8]) {
    float v[8], sum = 0.0f;
    widen8(b, v);
#pragma unroll
    for (u32 i = 0; i < 8; i++) sum += v[i] * h[i];
    return sum;
}

// B for a warp's 128 columns: two neighbouring lanes have the two halves of sixteen ranks of a column, so that a load takes
// whole lines. Load `j` is for column 16 j + lane / 2.
struct Columns {
    uint4 b[8];

    DEVICE void load(const LoraPart& part, u32 first, u32 width, u32 k) {
        const u32 stride = part.stride(), column = first + threadIdx.x % 32 / 2;
        const u16* from = part.b + (u64)column * stride + k;
#pragma unroll
        for (u32 j = 0; j < 8; j++) {
            b[j] = make_uint4(0, 0, 0, 0);
            if (column + 16 * j < width && k < stride) b[j] = __ldg((const uint4*)(from + (u64)(16 * j) * stride));
        }
    }
};

// Adds up halves of ranks, and gives each lane four neighbouring columns.
DEVICE void own_columns(const float (&sums)[8], float* turned, float (&own)[4]) {
    const u32 lane = threadIdx.x % 32, odd = lane % 2;
    float half[4];
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        const float other = __shfl_xor_sync(FULL_WARP, odd ? sums[j] : sums[j + 4], 1);
        half[j] = (odd ? sums[j + 4] : sums[j]) + other;
    }
    // Odd lanes go another way round, so that all go to banks of their own.
#pragma unroll
    for (u32 j = 0; j < 4; j++) turned[16 * ((odd ? j ^ 1 : j) + 4 * odd) + lane / 2] = odd ? half[j ^ 1] : half[j];
    __syncwarp();
    load_floats(turned + 4 * lane, own);
}

// With LoRA where A lies below W, for any adapters. Grid: columns / 512, rows. A warp has 128 columns.
KERNEL(128, 5) residual_stacked(const ResidualArgs args) {
    __shared__ __align__(16) float turned[4][128];
    __shared__ float sums[4];
    let_dependents_start();
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = blockIdx.y, half = lane % 2 * 8;
    const u32 first = (blockIdx.x * 4 + warp) * 128, i = first + 4 * lane;
    const LoraPart part = part_of_row(args.lora, row, 0);
    Columns b;
    b.load(part, first, args.norm.width, half);
    Constants constants;
    constants.load(args, i);
    // B lay there before; y and h come from the kernel before.
    wait_for_primary();
    Product y = {};
    float v[4] = {}, delta[8] = {};
    if (i < args.stride) {
        y.load(args.y + (u64)row * args.y_stride + i);
        load_floats(args.residual + (u64)row * args.stride + i, v);
    }
    const u16* ranks = args.lora.h + (u64)row * args.lora.lane_stride + part.lane + half;
    for (u32 k = 0; k < part.rank; k += 16) {
        if (k > 0) b.load(part, first, args.norm.width, k + half);
        float h[8];
        widen8(k + half < part.rank ? *(const uint4*)(ranks + lane_of_rank(args.lora, k)) : make_uint4(0, 0, 0, 0), h);
#pragma unroll
        for (u32 j = 0; j < 8; j++) delta[j] += dot8(b.b[j], h);
    }
    float own[4], sum = 0.0f;
    own_columns(delta, turned[warp], own);
    if (i < args.stride) {
        y.add_to(v);
#pragma unroll
        for (u32 k = 0; k < 4; k++) v[k] += own[k] * part.scale;
        sum = finish(args, constants, row, i, v);
    }
    sum = sum_of_block(sum, sums);
    if (threadIdx.x == 0) args.norm.squares[(u64)row * args.norm.pieces + blockIdx.x] = sum;
}

// The same with B packed, for few adapters. Grid: columns / 256, rows / 8. A warp has 32 columns of eight rows.
template <bool ONE>
DEVICE void add_packed(const ResidualArgs& args) {
    __shared__ float sums[8][8];
    let_dependents_start();
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
    const u32 first = blockIdx.x * 256 + warp * PACKED_COLUMNS, i = first + 4 * g, width = packed_columns(args.norm.width);
    const u32 row = blockIdx.y * 8, rows = min(args.rows - row, 8u);
    const bool inside = i < args.stride;
    // What lies past the last group is not used.
    const u32 columns[1] = {min(first, width - PACKED_COLUMNS)};
    Packed<1, 1, ONE> packed(args.lora, 0, columns, width);
    Constants constants;
    constants.load(args, i);
    packed.ask(row, rows);
    // What lay there before is under way; y and h come from the kernel before.
    wait_for_primary();
    packed.ask_h(row, rows);
    Product y[2];
    float v[2][4];
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        if (!inside || 2 * q + r >= rows) continue;
        const u32 at = row + 2 * q + r;
        y[r].load(args.y + (u64)at * args.y_stride + i);
        load_floats(args.residual + (u64)at * args.stride + i, v[r]);
    }
    float delta[1][2][4] = {};
    packed.multiply(row, rows, delta);
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        const float scale = packed.scale_of(2 * q + r);
        float sum = 0.0f;
        if (inside && 2 * q + r < rows) {
            y[r].add_to(v[r]);
#pragma unroll
            for (u32 k = 0; k < 4; k++) v[r][k] += delta[0][k / 2][2 * (k % 2) + r] * scale;
            sum = finish(args, constants, row + 2 * q + r, i, v[r]);
        }
#pragma unroll
        for (u32 offset = 4; offset < 32; offset *= 2) sum += __shfl_xor_sync(FULL_WARP, sum, offset);
        if (g == 0) sums[warp][2 * q + r] = sum;
    }
    __syncthreads();
    if (threadIdx.x >= rows) return;
    float sum = 0.0f;
#pragma unroll
    for (u32 w = 0; w < 8; w++) sum += sums[w][threadIdx.x];
    args.norm.squares[(u64)(row + threadIdx.x) * args.norm.pieces + blockIdx.x] = sum;
}

KERNEL(256, 4) residual_one(const ResidualArgs args) { add_packed<true>(args); }
KERNEL(256, 3) residual_packed(const ResidualArgs args) { add_packed<false>(args); }

// Stores a lane's eight neighbours. If two lanes have sixteen, each takes half of both's, so that they store 32 bytes at a time: as
// much as memory takes at once. `to`: the lane's own.
DEVICE void store_of_pair(float* to, const float (&v)[8], bool there, bool paired) {
    const bool odd = threadIdx.x % 2;
    float other[4];
#pragma unroll
    for (u32 k = 0; k < 4; k++) other[k] = __shfl_xor_sync(FULL_WARP, odd ? v[k] : v[4 + k], 1);
    if (!there) return;
    if (!paired) {
        *(float4*)to = make_float4(v[0], v[1], v[2], v[3]), *(float4*)(to + 4) = make_float4(v[4], v[5], v[6], v[7]);
        return;
    }
    float* first = odd ? to - 4 : to;
    *(float4*)first = odd ? make_float4(other[0], other[1], other[2], other[3]) : make_float4(v[0], v[1], v[2], v[3]);
    *(float4*)(first + 8) = odd ? make_float4(v[4], v[5], v[6], v[7]) : make_float4(other[0], other[1], other[2], other[3]);
}

// For prompts, with B packed. Grid: columns / 256, rows / 64. A warp has 128 columns of sixteen rows.
KERNEL(256, 2) residual_prompts(const ResidualArgs args) {
    __shared__ float sums[8][PROMPT_ROWS];
    let_dependents_start();
    const u32 warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    const u32 row = blockIdx.y * 64 + warp / 2 * PROMPT_ROWS, width = packed_columns(args.norm.width);
    const u32 rows = row < args.rows ? min(args.rows - row, (u32)PROMPT_ROWS) : 0;
    AdaptersOfPrompts<1> adapters(args.lora, row, rows);
    // What lay there before is under way; y and h come from the kernel before.
    wait_for_primary();
    float sum[2] = {};
#pragma unroll 1
    for (u32 n = 0; n < 4; n++) {
        const u32 column = blockIdx.x * 256 + (warp % 2 * 4 + n) * PACKED_COLUMNS, i = column + 8 * q;
        if (column >= args.stride) break;
        const bool inside = i < args.stride;
        const u32 columns[1] = {column};
        Constants constants[2];
        constants[0].load(args, i), constants[1].load(args, i + 4);
        uint4 y[2] = {};
        float before[2][2][4] = {}, delta[1][2][8];
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            if (!inside || g + 8 * half >= rows) continue;
            const u32 at = row + g + 8 * half;
            const float* residual = args.residual + (u64)at * args.stride + i;
            y[half] = load_once(args.y + (u64)at * args.y_stride + i);
            load_floats(residual, before[half][0]), load_floats(residual + 4, before[half][1]);
        }
        adapters.multiply(0, columns, width, delta);
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            float v[8], x[8];
            widen8(y[half], v);
#pragma unroll
            for (u32 k = 0; k < 8; k++) {
                v[k] += before[half][k / 4][k % 4] + delta[0][half][k] + constants[k / 4].bias[k % 4];
                x[k] = v[k] * constants[k / 4].weight[k % 4];
            }
            const bool there = inside && g + 8 * half < rows;
            const u64 at = (u64)(row + g + 8 * half) * args.stride + i;
            if (there) {
#pragma unroll
                for (u32 k = 0; k < 8; k++) sum[half] += v[k] * v[k];
                store8(args.x + at, 8, x);
            }
            store_of_pair(args.residual + at, v, there, column + 8 * (q | 1) < args.stride);
        }
    }
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        sum[half] = sum_of_quad(sum[half]);
        if (q == 0) sums[warp][g + 8 * half] = sum[half];
    }
    __syncthreads();
    const u32 own = blockIdx.y * 64 + threadIdx.x;
    if (threadIdx.x >= 64 || own >= args.rows) return;
    const u32 of_warps = threadIdx.x / PROMPT_ROWS * 2, r = threadIdx.x % PROMPT_ROWS;
    args.norm.squares[(u64)own * args.norm.pieces + blockIdx.x] = sums[of_warps][r] + sums[of_warps + 1][r];
}
