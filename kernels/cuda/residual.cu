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

// The same with LoRA of its own: a cluster makes eight rows of a tile, so that a load of B serves them all.
struct ResidualLoraArgs {
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
    u32 columns;  // of a block, a multiple of 64
    u32 groups;   // of eight rows in a tile
};

#define GROUP_ROWS 8

// Sixteen ranks (or the last eight, then zeros) of B for the lane's eight columns: of a warp's 64 those from 8 g on.
struct EightColumns {
    uint2 b[8];

    DEVICE void load(const LoraPart& part, u32 k, u32 first, u32 width) {
        const u32 q = threadIdx.x % 4, stride = (part.rank + 7) & ~7u;
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            const u16* row = part.b + (u64)(first + i) * stride + k;
            b[i] = make_uint2(0, 0);
            if (first + i >= width || k >= stride) continue;
            if (k + 8 < stride)
                b[i] = __ldg((const uint2*)(row + q * 4));
            else
                b[i].x = __ldg((const u32*)(row + q * 2));
        }
    }
};

// The same ranks of h for the lane's row g.
DEVICE uint2 load_h(const Lora& lora, const LoraPart& part, u32 k, u32 row, bool there) {
    const u32 q = threadIdx.x % 4, stride = (part.rank + 7) & ~7u;
    const u16* h = lora.h + (u64)row * lora.lane_stride + part.lane + k;
    if (!there || k >= stride) return make_uint2(0, 0);
    if (k + 8 < stride) return *(const uint2*)(h + q * 4);
    return make_uint2(*(const u32*)(h + q * 2), 0);
}

// Eight columns of a row.
DEVICE void load8_f32(const float* p, float (&v)[8]) {
    const float4 low = *(const float4*)p, high = *(const float4*)(p + 4);
    v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
    v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
}

DEVICE void store8_f32(float* p, const float (&v)[8]) {
    *(float4*)p = make_float4(v[0], v[1], v[2], v[3]);
    *(float4*)(p + 4) = make_float4(v[4], v[5], v[6], v[7]);
}

// Grid: the blocks of a cluster, which share a row's columns, then tiles * groups. A lane makes rows 2q and 2q + 1 of eight
// columns, a warp 64 columns at a time.
KERNEL(256, 2) residual_norm_lora(const ResidualLoraArgs args) {
    __shared__ float squares[8][GROUP_ROWS];
    __shared__ float own[GROUP_ROWS];
    __shared__ float totals[GROUP_ROWS];
    let_dependents_start();
    const Lora& lora = args.lora;
    const Tile tile = lora.tiles[blockIdx.y / args.groups];
    const u32 from = blockIdx.y % args.groups * GROUP_ROWS;
    // So do the others of the cluster.
    if (from >= tile.rows) return;
    const u32 row = tile.first_row + from, rows = min(tile.rows - from, (u32)GROUP_ROWS);
    const u32 warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const u32 lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const u32 start = blockIdx.x * args.columns, end = min(start + args.columns, args.stride);
    const bool one_turn = args.columns <= warps * 64;
    const LoraPart part = part_of(lora, tile, 0);
    float x[2][8], sums[2] = {};
    bool waited = false;
    for (u32 first = start + warp * 64; first < end; first += warps * 64) {
        const u32 c = first + g * 8;
        const bool inside = c < end;
        EightColumns b;
        b.load(part, 0, c, inside ? args.width : 0);
        // B lay there before; y and h come from the kernel before.
        if (!waited) wait_for_primary();
        waited = true;
        uint4 y[2];
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            const bool there = inside && 2 * q + r < rows;
            const u64 at = (u64)(row + 2 * q + r);
            y[r] = make_uint4(0, 0, 0, 0);
#pragma unroll
            for (u32 i = 0; i < 8; i++) x[r][i] = 0.0f;
            if (!there) continue;
            y[r] = *(const uint4*)(args.y + at * args.y_stride + c);
            load8_f32(args.residual + at * args.stride + c, x[r]);
        }
        float delta[4][4] = {};
        for (u32 k = 0; k < part.rank; k += 16) {
            if (k > 0) b.load(part, k, c, inside ? args.width : 0);
            const uint2 h = load_h(lora, part, k, row + g, g < rows);
#pragma unroll
            for (u32 j = 0; j < 4; j++)
                mma16(delta[j], b.b[2 * j].x, b.b[2 * j + 1].x, b.b[2 * j].y, b.b[2 * j + 1].y, h.x, h.y);
        }
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            float v[8];
            widen8(y[r], v);
            if (args.bias && inside) {
                float bias[8];
                load8_f32(args.bias + c, bias);
#pragma unroll
                for (u32 i = 0; i < 8; i++) v[i] += bias[i];
            }
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                x[r][i] += v[i] + delta[i / 2][2 * (i % 2) + r] * part.scale;
                sums[r] += x[r][i] * x[r][i];
            }
            if (inside && 2 * q + r < rows) store8_f32(args.residual + (u64)(row + 2 * q + r) * args.stride + c, x[r]);
        }
    }
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
#pragma unroll
        for (u32 offset = 4; offset < 32; offset *= 2) sums[r] += __shfl_xor_sync(FULL_WARP, sums[r], offset);
        if (g == 0) squares[warp][2 * q + r] = sums[r];
    }
    __syncthreads();
    if (threadIdx.x < GROUP_ROWS) {
        float sum = 0.0f;
        for (u32 w = 0; w < warps; w++) sum += squares[w][threadIdx.x];
        own[threadIdx.x] = sum;
    }
    sync_cluster();
    if (threadIdx.x < GROUP_ROWS) {
        float sum = 0.0f;
        for (u32 peer = 0; peer < gridDim.x; peer++) sum += *of_peer(&own[threadIdx.x], peer);
        totals[threadIdx.x] = sum;
    }
    __syncthreads();
    for (u32 first = start + warp * 64; first < end; first += warps * 64) {
        const u32 c = first + g * 8;
        if (c >= end) continue;
        float weight[8];
        load8_f32(args.weight + c, weight);
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            if (2 * q + r >= rows) continue;
            const u64 at = (u64)(row + 2 * q + r) * args.stride + c;
            const float factor = 1.0f / sqrtf(totals[2 * q + r] / (float)args.width + args.eps);
            // What the lane has stored itself.
            if (!one_turn) load8_f32(args.residual + at, x[r]);
            float v[8];
#pragma unroll
            for (u32 i = 0; i < 8; i++) v[i] = x[r][i] * (factor * weight[i]);
            store8(args.normed + at, 8, v);
        }
    }
    // Nobody leaves while another reads its sums.
    sync_cluster();
}
