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
    u32* made;  // counts blocks, or null
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
    tell_made(args.made);
}

KERNEL(1024, 1) rms_norm(const ResidualArgs args) { norm_row<false>(args); }

KERNEL(1024, 1) residual_norm(const ResidualArgs args) { norm_row<true>(args); }
