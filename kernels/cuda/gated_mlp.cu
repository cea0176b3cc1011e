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
    Norm norm;         // of x
    u32 row_warps;     // of a block of `gated_mlp_packed`, as a power of two
    u32 unused;
};

DEVICE float silu(float x) { return x * reciprocal_approx(1.0f + exp2_approx(x * -LOG2_E)); }

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

    // `gate_delta` and `up_delta` hold what LoRA adds; `factor` is the row's.
    DEVICE void finish(const GatedArgs& args, u32 row, u32 i, float factor, const float (&gate_delta)[8],
                       const float (&up_delta)[8], bool whole = false) const {
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
            a[k] = silu(factor * (a[k] + gate_delta[k]) + bias_gate) * (factor * (b[k] + up_delta[k]) + bias_up);
        }
        store8(args.out + (u64)row * args.out_stride + i, valid, a);
    }
};

// Grid: columns / 2048, rows.
KERNEL(256, 1) gated_mlp(const GatedArgs args) {
    let_dependents_start();
    wait_for_primary();
    const u32 i = (blockIdx.x * 256 + threadIdx.x) * 8;
    Raw raw, delta;
    raw.load(args, args.y, blockIdx.y, i, i < args.ffn);
    const float factor = factor_of_row(args.norm, blockIdx.y);
    if (i < args.ffn) {
        float gate[8] = {}, up[8] = {};
        if (args.delta) {
            delta.load(args, args.delta, blockIdx.y, i, true);
            widen8(delta.gate, gate);
            widen8(delta.up, up);
        }
        raw.finish(args, blockIdx.y, i, factor, gate, up);
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
        const float factors[2] = {factor_of_eight(args.norm, row, min(rows, 8u)),
                                  factor_of_eight(args.norm, row + 8, rows - min(rows, 8u))};
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
            if (r < rows && inside) own.finish(args, row + r, i, factors[half], gate, up);
        }
    }
}

#define GROUP_ROWS 8
#define STAGES 3

// What the adapter of a row has, as the row's lane knows it.
DEVICE LoraPart from_lane(const LoraPart& part, u32 lane) {
    LoraPart found;
    found.b = (const u16*)__shfl_sync(FULL_WARP, (u64)part.b, lane);
    found.rank = __shfl_sync(FULL_WARP, part.rank, lane);
    found.lane = __shfl_sync(FULL_WARP, part.lane, lane);
    found.scale = __shfl_sync(FULL_WARP, part.scale, lane);
    return found;
}

// The adapters of eight rows one after the other, sixteen ranks at a time. A lane knows the parts of its row.
struct Turn {
    u32 waiting;  // rows whose adapter is to come
    u32 leader;   // a row of the one whose turn it is
    u32 k;

    DEVICE static u32 rank(const LoraPart (&own)[2]) { return max(own[0].rank, own[1].rank); }

    DEVICE void begin(const LoraPart (&own)[2]) {
        waiting = __ballot_sync(FULL_WARP, rank(own) > 0);
        leader = waiting ? __ffs(waiting) - 1 : 0, k = 0;
    }

    // Tells it from others: B lies somewhere even where it has no ranks.
    DEVICE u64 key(const LoraPart (&own)[2]) const { return __shfl_sync(FULL_WARP, (u64)own[0].b, leader); }

    // Its rows.
    DEVICE u32 served(const LoraPart (&own)[2]) const {
        return __ballot_sync(FULL_WARP, (u64)own[0].b == key(own)) & waiting;
    }

    DEVICE void next(const LoraPart (&own)[2]) {
        k += 16;
        if (k < __shfl_sync(FULL_WARP, rank(own), leader)) return;
        waiting &= ~served(own);
        leader = waiting ? __ffs(waiting) - 1 : 0, k = 0;
    }
};

// Sixteen ranks of B of both parts for a warp's 64 columns, in shared memory: of column c the eights 0 and 1 at
// (c / 8) * 16 + ((c % 8 * 2 + eight) ^ (c / 8)), so that `ldmatrix` of every eighth column meets no bank twice.
struct Stage {
    uint4 b[2][128];

    DEVICE static u32 place(u32 column, u32 eight) { return column / 8 * 16 + ((column % 8 * 2 + eight) ^ (column / 8)); }

    DEVICE void fetch(const LoraPart (&own)[2], const Turn& turn, u32 column, u32 width) {
        const u32 lane = threadIdx.x % 32;
#pragma unroll
        for (u32 p = 0; p < 2; p++) {
            const LoraPart part = from_lane(own[p], turn.leader);
            const u32 stride = part.stride(), eight = lane % 2, k = turn.k + 8 * eight;
            const u16* from = part.b + (u64)(column + lane / 2) * stride + k;
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                const u32 c = lane / 2 + 16 * j;
                const bool valid = turn.waiting && k < stride && column + c < width;
                copy_async(&b[p][place(c, eight)], valid ? from + 16 * j * stride : part.b, valid);
            }
        }
    }

    // delta += B hᵀ: delta[j][2 i + r] is for column 8 g + 2 j + i and row 2 q + r.
    DEVICE void multiply(u32 p, const u32 (&h)[2], float (&delta)[4][4]) const {
        const u32 lane = threadIdx.x % 32;
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            u32 a[4];
            ldmatrix(a, &b[p][place(lane % 8 * 8 + 2 * j + lane / 8 % 2, lane / 16)]);
            mma16(delta[j], a[0], a[1], a[2], a[3], h[0], h[1]);
        }
    }
};

// Sixteen ranks of h for the lane's row g, whose own part is given.
DEVICE void load_h(u32 (&h)[2], const Lora& lora, const LoraPart& part, u32 row, u32 k) {
    const u32 stride = part.stride();
    const u16* from = lora.h + (u64)row * lora.lane_stride + part.lane + lane_of_rank(lora, k) + threadIdx.x % 4 * 2;
    h[0] = k < stride ? *(const u32*)from : 0;
    h[1] = k + 8 < stride ? *(const u32*)(from + 8) : 0;
}

// With LoRA where A lies below W; ffn is a multiple of eight. Grid: columns / 256, rows / 8. A warp has 64 columns, a lane eight
// of them in two rows; adapters are taken one after the other while B of the next is under way.
KERNEL(128, 4) gated_mlp_stacked(const GatedArgs args) {
    __shared__ Stage stages[4][STAGES];
    let_dependents_start();
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const u32 column = blockIdx.x * 256 + warp * 64, i = column + g * 8;
    if (column >= args.ffn) return;
    const u32 row = blockIdx.y * GROUP_ROWS, rows = min(args.rows - row, (u32)GROUP_ROWS);
    LoraPart own[2] = {};
    if (lane < rows)
#pragma unroll
        for (u32 p = 0; p < 2; p++) own[p] = part_of_row(args.lora, row + lane, p);
    Turn turn, ahead;
    turn.begin(own);
    ahead = turn;
#pragma unroll
    for (u32 s = 0; s < STAGES - 1; s++) {
        if (ahead.waiting) stages[warp][s].fetch(own, ahead, column, args.ffn);
        copy_commit();
        if (ahead.waiting) ahead.next(own);
    }
    // B lay there before; y and h come from the kernel before.
    wait_for_primary();
    Raw raw[2];
#pragma unroll
    for (u32 r = 0; r < 2; r++) raw[r].load_whole(args, row + 2 * q + r, i, i < args.ffn && 2 * q + r < rows);
    FactorsOfEight factors;
    factors.load(args.norm, row, rows);
    u32 first[2][2];
#pragma unroll
    for (u32 p = 0; p < 2; p++) load_h(first[p], args.lora, from_lane(own[p], g), row + g, 0);
    float delta[2][4][4] = {};
    for (u32 stage = 0; turn.waiting; stage = (stage + 1) % STAGES) {
        // Nobody still reads the stage that is filled next.
        __syncwarp();
        if (ahead.waiting) {
            stages[warp][(stage + STAGES - 1) % STAGES].fetch(own, ahead, column, args.ffn);
            ahead.next(own);
        }
        copy_commit();
        copy_wait<STAGES - 1>();
        __syncwarp();
        const bool there = turn.served(own) >> g & 1;
#pragma unroll
        for (u32 p = 0; p < 2; p++) {
            u32 h[2] = {first[p][0], first[p][1]};
            if (turn.k > 0) load_h(h, args.lora, from_lane(own[p], g), row + g, turn.k);
            if (!there) h[0] = h[1] = 0;
            stages[warp][stage].multiply(p, h, delta[p]);
        }
        turn.next(own);
    }
    const float of_x = factors.finish(args.norm, row, rows);
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        const float gate_scale = __shfl_sync(FULL_WARP, own[0].scale, 2 * q + r);
        const float up_scale = __shfl_sync(FULL_WARP, own[1].scale, 2 * q + r);
        const float factor = __shfl_sync(FULL_WARP, of_x, 4 * (2 * q + r));
        float gate[8], up[8];
#pragma unroll
        for (u32 k = 0; k < 8; k++) {
            gate[k] = delta[0][k / 2][2 * (k % 2) + r] * gate_scale;
            up[k] = delta[1][k / 2][2 * (k % 2) + r] * up_scale;
        }
        if (2 * q + r < rows && i < args.ffn) raw[r].finish(args, row + 2 * q + r, i, factor, gate, up, true);
    }
}

// The same with B packed, for few adapters. Grid: columns, rows. Of a block's warps 2^`row_warps` have the same 32 columns of
// groups of eight rows, so that what one reads of B the others find in the first-level cache.
template <bool ONE>
DEVICE void gate_packed(const GatedArgs& args) {
    let_dependents_start();
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const u32 column = (blockIdx.x * (4 >> args.row_warps) + (warp >> args.row_warps)) * PACKED_COLUMNS, i = column + 4 * g;
    const u32 part = packed_columns(args.ffn), columns[2] = {column, part + column};
    if (column >= args.ffn) return;
    const bool inside = i < args.ffn;
    Packed<2, 2, ONE> packed(args.lora, 0, columns, 2 * part);
    const u32 of_block = warp & ((1 << args.row_warps) - 1), row = ((blockIdx.y << args.row_warps) + of_block) * 8;
    if (row >= args.rows) return;
    const u32 rows = min(args.rows - row, 8u);
    packed.ask(row, rows);
    // What lay there before is under way; y and h come from the kernel before.
    wait_for_primary();
    packed.ask_h(row, rows);
    uint2 y[2][2];
#pragma unroll
    for (u32 r = 0; r < 2; r++)
#pragma unroll
        for (u32 p = 0; p < 2; p++) {
            const u16* at = args.y + (u64)(row + 2 * q + r) * args.y_stride + p * args.ffn + i;
            y[r][p] = inside && 2 * q + r < rows ? *(const uint2*)at : make_uint2(0, 0);
        }
    FactorsOfEight factors;
    factors.load(args.norm, row, rows);
    float delta[2][2][4] = {};
    packed.multiply(row, rows, delta);
    const float of_x = factors.finish(args.norm, row, rows);
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        const float factor = __shfl_sync(FULL_WARP, of_x, 4 * (2 * q + r));
        float v[2][4];
#pragma unroll
        for (u32 p = 0; p < 2; p++) {
            const float scale = packed.scale_of(2 * q + r, p);
            widen4(y[r][p], v[p]);
#pragma unroll
            for (u32 k = 0; k < 4; k++) {
                v[p][k] = factor * (v[p][k] + delta[p][k / 2][2 * (k % 2) + r] * scale);
                if (args.bias && inside) v[p][k] += args.bias[p * args.ffn + i + k];
            }
        }
        if (!inside || 2 * q + r >= rows) continue;
#pragma unroll
        for (u32 k = 0; k < 4; k++) v[0][k] = silu(v[0][k]) * v[1][k];
        store4(args.out + (u64)(row + 2 * q + r) * args.out_stride + i, v[0]);
    }
}

KERNEL(128, 6) gated_mlp_one(const GatedArgs args) { gate_packed<true>(args); }
KERNEL(128, 6) gated_mlp_packed(const GatedArgs args) { gate_packed<false>(args); }

#define PROMPT_STAGES 3
#define PROMPT_GROUPS 8  // of 32 columns, of a block

// For prompts, with B packed. Grid: columns / 256, rows / 64. A warp has sixteen rows; what a thread needs of y for the next two
// groups of columns is under way to places of its own.
KERNEL(128, 4) gated_mlp_prompts(const GatedArgs args) {
    __shared__ uint4 ahead[PROMPT_STAGES][2][2][128];
    let_dependents_start();
    const u32 g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    const u32 row = (blockIdx.y * 4 + threadIdx.x / 32) * PROMPT_ROWS, part = packed_columns(args.ffn);
    if (row >= args.rows) return;
    const u32 rows = min(args.rows - row, (u32)PROMPT_ROWS), first = blockIdx.x * PROMPT_GROUPS * PACKED_COLUMNS;
    AdaptersOfPrompts<2> adapters(args.lora, row, rows);
    auto ask = [&](u32 n) {
        const u32 i = first + n * PACKED_COLUMNS + 8 * q;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const bool there = n < PROMPT_GROUPS && i < args.ffn && g + 8 * half < rows;
            const u16* y = args.y + (there ? (u64)(row + g + 8 * half) * args.y_stride + i : 0);
            copy_async(&ahead[n % PROMPT_STAGES][half][0][threadIdx.x], y, there);
            copy_async(&ahead[n % PROMPT_STAGES][half][1][threadIdx.x], y + args.ffn, there);
        }
        copy_commit();
    };
    // What lay there before is under way; y and h come from the kernel before.
    wait_for_primary();
#pragma unroll
    for (u32 n = 0; n + 1 < PROMPT_STAGES; n++) ask(n);
    float factor[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) factor[half] = factor_of_quad(args.norm, row + g + 8 * half, g + 8 * half < rows);
#pragma unroll 1
    for (u32 n = 0; n < PROMPT_GROUPS; n++) {
        const u32 column = first + n * PACKED_COLUMNS, columns[2] = {column, part + column}, i = column + 8 * q;
        if (column >= args.ffn) break;
        ask(n + PROMPT_STAGES - 1);
        float delta[2][2][8];
        adapters.multiply(0, columns, 2 * part, delta);
        copy_wait<PROMPT_STAGES - 1>();
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            if (g + 8 * half >= rows || i >= args.ffn) continue;
            const uint4(&own)[2][128] = ahead[n % PROMPT_STAGES][half];
            const Raw raw{own[0][threadIdx.x], own[1][threadIdx.x]};
            raw.finish(args, row + g + 8 * half, i, factor[half], delta[0][half], delta[1][half], true);
        }
    }
    copy_wait<0>();
}
