// out = silu(gate) * up over y = [gate, up], each [rows, ffn], with bias and LoRA.

struct GatedArgs {
    Lora lora;
    const u16* y;       // [rows, y_stride]
    const float* bias;  // [2 ffn] or null
    u16* out;           // [rows, out_stride]
    u32 y_stride;
    u32 out_stride;
    u32 ffn;
    u32 tiles;  // for `gated_mlp_lora`: as many as there may be
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

// A warp makes its columns of a tile; `b` holds the first ranks of both parts. Most adapters have no further ranks.
DEVICE void gated_tile(const GatedArgs& args, const TilePart& tile, const LoraPart& up_part, const FragmentsB (&b)[2],
                       u32 column) {
    const u32 lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, i = column + q * 8;
    const bool inside = i < args.ffn;
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
            const LoraPart& part = p == 0 ? tile.part : up_part;
            if (!part.rank) continue;
            FragmentH h;
            h.load(args.lora, part, 0, row, rows);
            multiply(h, b[p], delta[p]);
            for (u32 k = 16; k < part.rank; k += 16) {
                FragmentsB more;
                more.load(part, k, first_column(column), args.ffn);
                h.load(args.lora, part, k, row, rows);
                multiply(h, more, delta[p]);
            }
        }
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 r = g + 8 * half;
            float gate[8], up[8];
#pragma unroll
            for (u32 k = 0; k < 8; k++) {
                gate[k] = delta[0][k / 2][2 * half + k % 2] * tile.part.scale;
                up[k] = delta[1][k / 2][2 * half + k % 2] * up_part.scale;
            }
            const Raw own = raw[half];
            // The next rows come while these are finished.
            raw[half].load(args, args.y, row + r + 16, i, inside && from + r + 16 < tile.rows);
            if (r < rows && inside) own.finish(args, row + r, i, gate, up);
        }
    }
}

// The same with LoRA of its own. Grid: columns / 128, tiles or fewer. A warp has 32 columns and goes from tile to tile; B of
// the next is under way while it works on one.
KERNEL(128, 3) gated_mlp_lora(const GatedArgs args) {
    __shared__ TilePart listed[2][LISTED_TILES];
    let_dependents_start();
    const u32 column = blockIdx.x * 128 + threadIdx.x / 32 * 32;
    for (u32 t = blockIdx.y; t < args.tiles; t += LISTED_TILES * gridDim.y) {
        const u32 place = threadIdx.x % LISTED_TILES, index = threadIdx.x / LISTED_TILES;
        __syncthreads();
        listed[index][place].find(args.lora, args.tiles, t + place * gridDim.y, index);
        __syncthreads();
        if (column >= args.ffn) continue;
        FragmentsB b[2];
#pragma unroll
        for (u32 p = 0; p < 2; p++) b[p].load(listed[p][0].part, 0, first_column(column), args.ffn);
        // B lay there before; y and h come from the kernel before.
        wait_for_primary();
        for (u32 i = 0; i < LISTED_TILES && listed[0][i].rows; i++) {
            FragmentsB next[2];
#pragma unroll
            for (u32 p = 0; p < 2; p++)
                next[p].load(listed[p][min(i + 1, LISTED_TILES - 1u)].part, 0, first_column(column), args.ffn);
            gated_tile(args, listed[0][i], listed[1][i].part, b, column);
            b[0] = next[0], b[1] = next[1];
        }
    }
}
