// residual += y + bias + LoRA; normed = rms_norm(residual). Strides are multiples of 8; what lies past the width is zero.

#define KEPT 4  // float4 values that a thread keeps between the passes: widths up to 16 x 1024

struct ResidualArgs {
    Lora lora;
    const u16* y;       // [rows, stride]: the product; null: the norm alone
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

// Grid: rows; a block holds a row in registers. Block: at least width / 16 threads.
template <bool ADD>
DEVICE void norm_row(const ResidualArgs& args) {
    __shared__ float sums[32];
    u64 row = (u64)blockIdx.x * args.stride;
    float4 kept[KEPT];
    float sum = 0.0f;
#pragma unroll
    for (u32 k = 0; k < KEPT; k++) {
        u32 i = (k * blockDim.x + threadIdx.x) * 4;
        if (i < args.stride) {
            float4 x = *(const float4*)(args.residual + row + i);
            if (ADD) {
                add4(x, widen4(*(const uint2*)(args.y + row + i)));
                if (args.bias) add4(x, *(const float4*)(args.bias + i));
                *(float4*)(args.residual + row + i) = x;
            }
            kept[k] = x;
            sum += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
        }
    }
    float factor = 1.0f / sqrtf(block_sum(sum, sums) / (float)args.width + args.eps);
#pragma unroll
    for (u32 k = 0; k < KEPT; k++) {
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

// The sum with LoRA; `rms_norm` follows. Grid: columns / 128, tiles. A warp has 32 columns.
KERNEL(128, 4) residual_expand(const ResidualArgs args) {
    const Tile tile = args.lora.tiles[blockIdx.y];
    const LoraSite* site = site_of(args.lora, tile);
    const u32 lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const u32 column = blockIdx.x * 128 + threadIdx.x / 32 * 32;
    const u32 i = column + q * 8;
    if (column >= args.width) return;
    for (u32 from = 0; from < tile.rows; from += 16) {
        u32 row = tile.first_row + from, rows = min(tile.rows - from, 16u);
        uint4 y[2];
        float4 x[2][2];
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 r = g + 8 * half;
            if (r >= rows || i >= args.width) continue;
            u64 at = (u64)(row + r) * args.stride + i;
            y[half] = *(const uint4*)(args.y + at);
            x[half][0] = *(const float4*)(args.residual + at);
            x[half][1] = *(const float4*)(args.residual + at + 4);
        }
        float delta[1][4][4] = {};
        if (site) expand<1>(args.lora, site->parts, row, rows, column, args.width, delta);
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 r = g + 8 * half;
            if (r >= rows || i >= args.width) continue;
            u64 at = (u64)(row + r) * args.stride + i;
            const float(&d)[4][4] = delta[0];
#pragma unroll
            for (u32 part = 0; part < 2; part++) {
                u32 j = 2 * part;
                float4 sum = x[half][part];
                add4(sum, widen4(part ? make_uint2(y[half].z, y[half].w) : make_uint2(y[half].x, y[half].y)));
                if (args.bias) add4(sum, *(const float4*)(args.bias + i + 4 * part));
                add4(sum, make_float4(d[j][2 * half], d[j][2 * half + 1], d[j + 1][2 * half], d[j + 1][2 * half + 1]));
                *(float4*)(args.residual + at + 4 * part) = sum;
            }
        }
    }
}
