// out = silu(gate) * up over y = [gate, up], each [rows, ffn], with bias and LoRA.

struct GatedArgs {
    Lora lora;
    const u16* y;       // [rows, y_stride]
    const float* bias;  // [2 ffn] or null
    u16* out;           // [rows, out_stride]
    u32 y_stride;
    u32 out_stride;
    u32 ffn;
    u32 rows;
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

    // The same where the widths are multiples of eight.
    DEVICE void load_whole(const GatedArgs& args, u32 row, u32 i, bool there) {
        gate = up = make_uint4(0, 0, 0, 0);
        if (!there) return;
        const u16* y = args.y + (u64)row * args.y_stride + i;
        gate = *(const uint4*)y, up = *(const uint4*)(y + args.ffn);
    }

    // `gate_delta` and `up_delta` hold what LoRA adds.
    DEVICE void finish(const GatedArgs& args, u32 row, u32 i, float (&gate_delta)[8], float (&up_delta)[8],
                       bool whole = false) const {
        int valid = whole ? 8 : (int)(args.ffn - i);
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

// For many rows. Grid: columns / 128, tiles. A warp has 32 columns.
KERNEL(128, 4) gated_mlp_expand(const GatedArgs args) {
    const Tile tile = args.lora.tiles[blockIdx.y];
    const LoraSite* site = site_of(args.lora, tile);
    const u32 lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const u32 column = blockIdx.x * 128 + threadIdx.x / 32 * 32;
    const u32 i = column + q * 8;
    if (column >= args.ffn) return;
    const bool inside = i < args.ffn;
    Raw raw[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 r = g + 8 * half;
        raw[half].load(args, args.y, tile.first_row + r, i, inside && r < tile.rows);
    }
    LoraPart parts[2] = {};
    if (site) parts[0] = site->parts[0], parts[1] = site->parts[1];
    // Most adapters have no further ranks.
    FragmentsB b[2];
#pragma unroll
    for (u32 p = 0; p < 2; p++) b[p].load(parts[p], 0, first_column(column), args.ffn);
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
                more.load(site->parts[p], k, first_column(column), args.ffn);
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
                gate[k] = delta[0][k / 2][2 * half + k % 2];
                up[k] = delta[1][k / 2][2 * half + k % 2];
            }
            const Raw own = raw[half];
            // The next rows come while these are finished.
            raw[half].load(args, args.y, row + r + 16, i, inside && from + r + 16 < tile.rows);
            if (r < rows && inside) own.finish(args, row + r, i, gate, up);
        }
    }
}

#define GROUP_ROWS 8

// Sixteen ranks (or the last eight, then zeros) of B for the lane's eight columns: of a warp's 64 those from 8 g on.
struct EightColumns {
    uint2 b[8];

    DEVICE void load(const LoraPart& part, u32 k, u32 first, u32 width) {
        const u32 q = threadIdx.x % 4, stride = (part.rank + 7) & ~7u;
        const bool there = first < width && k < stride, whole = k + 8 < stride;
        const u16* at = part.b + (u64)first * stride + k + q * (whole ? 4 : 2);
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            b[i] = make_uint2(0, 0);
            if (there && whole) b[i] = __ldg((const uint2*)(at + i * stride));
            if (there && !whole) b[i].x = __ldg((const u32*)(at + i * stride));
        }
    }

    // delta += B hᵀ: delta[j][2 i + r] is for column 2 j + i of the lane's and row 2 q + r.
    DEVICE void multiply(uint2 h, float (&delta)[4][4]) const {
#pragma unroll
        for (u32 j = 0; j < 4; j++) mma16(delta[j], b[2 * j].x, b[2 * j + 1].x, b[2 * j].y, b[2 * j + 1].y, h.x, h.y);
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

DEVICE const u16* from_lane(const u16* p, u32 lane) { return (const u16*)__shfl_sync(FULL_WARP, (u64)p, lane); }

// What the adapter of a row has, as the row's lane knows it.
DEVICE LoraPart from_lane(const LoraPart& part, u32 lane) {
    LoraPart found;
    found.b = from_lane(part.b, lane);
    found.rank = __shfl_sync(FULL_WARP, part.rank, lane);
    found.lane = __shfl_sync(FULL_WARP, part.lane, lane);
    found.scale = __shfl_sync(FULL_WARP, part.scale, lane);
    return found;
}

// Has B of all adapters but the leader's brought near: 64 columns of each.
DEVICE void fetch_others(const LoraPart& own, u32 leader, u32 rows, u32 column, u32 width) {
    const u16* first = from_lane(own.b, leader);
    for (u32 r = 0; r < rows; r++) {
        const LoraPart part = from_lane(own, r);
        const u32 stride = (part.rank + 7) & ~7u, columns = min(width - column, 64u);
        if (part.b == first) continue;
        for (u32 at = threadIdx.x % 32 * 64; at < columns * stride; at += 32 * 64)
            prefetch_l2(part.b + (u64)column * stride + at);
    }
}

// With LoRA where A lies below W; ffn is a multiple of eight. Grid: columns / 256, eights of rows or fewer. A warp has 64 columns, a lane eight of them in
// two rows of an eight; adapters are taken one after the other, and B stays where the next rows have the same.
KERNEL(128, 4) gated_mlp_stacked(const GatedArgs args) {
    let_dependents_start();
    const u32 lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const u32 column = blockIdx.x * 256 + threadIdx.x / 32 * 64, i = column + g * 8;
    if (column >= args.ffn) return;
    EightColumns b[2];
    // Whose it is.
    const u16* held = 0;
    for (u32 row = blockIdx.y * GROUP_ROWS; row < args.rows; row += gridDim.y * GROUP_ROWS) {
        const u32 rows = min(args.rows - row, (u32)GROUP_ROWS);
        LoraPart own[2] = {};
        if (lane < rows)
#pragma unroll
            for (u32 p = 0; p < 2; p++) own[p] = part_of_row(args.lora, row + lane, p);
        // Tells adapters apart.
        const u16* key = own[0].b ? own[0].b : own[1].b;
        u32 waiting = __ballot_sync(FULL_WARP, key != 0);
        u32 leader = waiting ? __ffs(waiting) - 1 : 0;
        if (waiting && held != from_lane(key, leader)) {
            held = from_lane(key, leader);
#pragma unroll
            for (u32 p = 0; p < 2; p++) b[p].load(from_lane(own[p], leader), 0, i, args.ffn);
        }
#pragma unroll
        for (u32 p = 0; p < 2; p++) fetch_others(own[p], leader, rows, column, args.ffn);
        // B lay there before; y and h come from the kernel before.
        wait_for_primary();
        Raw raw[2];
#pragma unroll
        for (u32 r = 0; r < 2; r++) raw[r].load_whole(args, row + 2 * q + r, i, i < args.ffn && 2 * q + r < rows);
        float delta[2][4][4] = {};
        while (waiting) {
            LoraPart parts[2];
#pragma unroll
            for (u32 p = 0; p < 2; p++) parts[p] = from_lane(own[p], leader);
            const u32 served = __ballot_sync(FULL_WARP, key == from_lane(key, leader)) & waiting;
            const bool there = served >> g & 1;
            waiting &= ~served;
            leader = waiting ? __ffs(waiting) - 1 : leader;
#pragma unroll
            for (u32 p = 0; p < 2; p++) {
                for (u32 k = 0; k < parts[p].rank; k += 16) {
                    if (k > 0) b[p].load(parts[p], k, i, args.ffn), held = 0;
                    b[p].multiply(load_h(args.lora, parts[p], k, row + g, there), delta[p]);
                }
                // The next adapter's is under way while this one's other part is multiplied.
                if (waiting) b[p].load(from_lane(own[p], leader), 0, i, args.ffn);
            }
            if (waiting) held = from_lane(key, leader);
        }
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            const float gate_scale = __shfl_sync(FULL_WARP, own[0].scale, 2 * q + r);
            const float up_scale = __shfl_sync(FULL_WARP, own[1].scale, 2 * q + r);
            float gate[8], up[8];
#pragma unroll
            for (u32 k = 0; k < 8; k++) {
                gate[k] = delta[0][k / 2][2 * (k % 2) + r] * gate_scale;
                up[k] = delta[1][k / 2][2 * (k % 2) + r] * up_scale;
            }
            if (2 * q + r < rows && i < args.ffn) raw[r].finish(args, row + 2 * q + r, i, gate, up, true);
        }
    }
}
