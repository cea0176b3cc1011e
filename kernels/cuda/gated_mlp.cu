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
    const u16* delta;  // like y, or null
};

DEVICE float silu(float x) { return x / (1.0f + __expf(-x)); }

// Eight columns of a row of y, gate and up.
struct Raw {
    uint4 gate;
    uint4 up;

    DEVICE void load(const GatedArgs& args, const u16* from, u32 row, u32 i, bool there) {
        int valid = there ? (int)(args.ffn - i) : 0;
        const u16* y = from + (u64)row * args.y_stride + i;
        gate = load8_raw(y, valid);
        up = load8_raw(y + args.ffn, valid);
    }

    // `gate_delta` and `up_delta` hold what LoRA adds.
    DEVICE void finish(const GatedArgs& args, u32 row, u32 i, float (&gate_delta)[8], float (&up_delta)[8]) const {
        int valid = (int)(args.ffn - i);
        float a[8], b[8];
        widen8(gate, a);
        widen8(up, b);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            float bias_gate = 0.0f, bias_up = 0.0f;
            if (args.bias && k < valid) {
                bias_gate = args.bias[i + k];
                bias_up = args.bias[args.ffn + i + k];
            }
            a[k] = silu(a[k] + bias_gate + gate_delta[k]) * (b[k] + bias_up + up_delta[k]);
        }
        store8(args.out + (u64)row * args.out_stride + i, valid, a);
    }
};

// Grid: columns / 2048, rows.
KERNEL(256, 1) gated_mlp(const GatedArgs args) {
    let_dependents_start();
    wait_for_primary();
    const u32 i = (blockIdx.x * 256 + threadIdx.x) * 8;
    if (i < args.ffn) {
        float gate[8] = {}, up[8] = {};
        Raw raw, delta;
        raw.load(args, args.y, blockIdx.y, i, true);
        if (args.delta) {
            delta.load(args, args.delta, blockIdx.y, i, true);
            widen8(delta.gate, gate);
            widen8(delta.up, up);
        }
        raw.finish(args, blockIdx.y, i, gate, up);
    }
}

// The same with LoRA of its own. Grid: columns / 128, tiles. A warp has 32 columns.
KERNEL(128, 4) gated_mlp_lora(const GatedArgs args) {
    let_dependents_start();
    const Tile tile = args.lora.tiles[blockIdx.y];
    const u32 lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const u32 column = blockIdx.x * 128 + threadIdx.x / 32 * 32;
    const u32 i = column + q * 8;
    if (column >= args.ffn || !tile.rows) return;
    const bool inside = i < args.ffn;
    LoraPart parts[2];
    // Most adapters have no further ranks.
    FragmentsB b[2];
#pragma unroll
    for (u32 p = 0; p < 2; p++) {
        parts[p] = part_of(args.lora, tile, p);
        b[p].load(parts[p], 0, first_column(column), args.ffn);
    }
    // B lay there before; y and h come from the kernel before.
    wait_for_primary();
    Raw raw[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 r = g + 8 * half;
        raw[half].load(args, args.y, tile.first_row + r, i, inside && r < tile.rows);
    }
    for (u32 from = 0; from < tile.rows; from += 16) {
        const u32 row = tile.first_row + from, rows = min(tile.rows - from, 16u);
        float delta[2][4][4] = {};
#pragma unroll
        for (u32 p = 0; p < 2; p++) {
            if (!parts[p].rank) continue;
            FragmentH h;
            h.load(args.lora, parts[p], 0, row, rows);
            multiply(h, b[p], delta[p]);
            for (u32 k = 16; k < parts[p].rank; k += 16) {
                FragmentsB more;
                more.load(parts[p], k, first_column(column), args.ffn);
                h.load(args.lora, parts[p], k, row, rows);
                multiply(h, more, delta[p]);
            }
        }
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 r = g + 8 * half;
            float gate[8], up[8];
#pragma unroll
            for (u32 k = 0; k < 8; k++) {
                gate[k] = delta[0][k / 2][2 * half + k % 2] * parts[0].scale;
                up[k] = delta[1][k / 2][2 * half + k % 2] * parts[1].scale;
            }
            const Raw own = raw[half];
            // The next rows come while these are finished.
            raw[half].load(args, args.y, row + r + 16, i, inside && from + r + 16 < tile.rows);
            if (r < rows && inside) own.finish(args, row + r, i, gate, up);
        }
    }
}
