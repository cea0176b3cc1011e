// out = silu(gate) * up over y = [gate, up], each [rows, ffn], with bias and LoRA.

struct GatedArgs {
    Lora lora;
    const u16* y;       // [rows, y_stride]
    const float* bias;  // [2 ffn] or null
    u16* out;           // [rows, out_stride]
    u32 y_stride;
    u32 out_stride;
    u32 ffn;
    u32 unused;
};

DEVICE float silu(float x) { return x / (1.0f + __expf(-x)); }

// Eight columns of one row. `delta` may be zeros.
DEVICE void gate8(const GatedArgs& args, u32 row, u32 i, float (&gate)[8], float (&up)[8]) {
    int valid = (int)(args.ffn - i);
    const u16* y = args.y + (u64)row * args.y_stride + i;
    float a[8], b[8];
    load8(y, valid, a);
    load8(y + args.ffn, valid, b);
#pragma unroll
    for (int k = 0; k < 8; k++) {
        float bias_gate = 0.0f, bias_up = 0.0f;
        if (args.bias && k < valid) {
            bias_gate = args.bias[i + k];
            bias_up = args.bias[args.ffn + i + k];
        }
        gate[k] = silu(a[k] + bias_gate + gate[k]) * (b[k] + bias_up + up[k]);
    }
    store8(args.out + (u64)row * args.out_stride + i, valid, gate);
}

// Grid: columns / 2048, rows.
KERNEL(256, 1) gated_mlp(const GatedArgs args) {
    u32 i = (blockIdx.x * 256 + threadIdx.x) * 8;
    if (i >= args.ffn) return;
    float gate[8] = {}, up[8] = {};
    gate8(args, blockIdx.y, i, gate, up);
}

// Grid: columns / 128, tiles. A warp has 32 columns.
KERNEL(128, 1) gated_mlp_expand(const GatedArgs args) {
    const Tile tile = tile_at<true>(args.lora, blockIdx.y);
    const LoraSite* site = site_of(args.lora, tile);
    const u32 lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const u32 column = blockIdx.x * 128 + threadIdx.x / 32 * 32;
    const u32 i = column + q * 8;
    if (column >= args.ffn) return;
    for (u32 from = 0; from < tile.rows; from += 16) {
        u32 row = tile.first_row + from, rows = min(tile.rows - from, 16u);
        float dg[4][4] = {}, du[4][4] = {};
        if (site) {
            expand(args.lora, site->parts[0], row, rows, column, args.ffn, dg);
            expand(args.lora, site->parts[1], row, rows, column, args.ffn, du);
        }
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 r = g + 8 * half;
            if (r >= rows || i >= args.ffn) continue;
            float gate[8], up[8];
#pragma unroll
            for (u32 k = 0; k < 8; k++) {
                gate[k] = dg[k / 2][2 * half + k % 2];
                up[k] = du[k / 2][2 * half + k % 2];
            }
            gate8(args, row + r, i, gate, up);
        }
    }
}
