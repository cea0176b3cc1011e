// Finishes the product [q, k, v]: bias, LoRA, norm over heads, rotation; q goes on, k and v go to the cache.

#define NO_SLOT 0xffffffffu

struct QkvArgs {
    const u16* y;         // [rows, y_stride]
    const u16* delta;     // like y: what LoRA adds, or null
    const float* bias;    // [(heads + 2 kv_heads) * d] or null
    const float* q_norm;  // [d] or null
    const float* k_norm;  // [d] or null
    const float* rope;    // [positions, d]: d/2 cosines, d/2 sines
    const u32* positions;
    const u32* slots;
    u16* q;        // [rows, q_stride]
    u16* k_cache;  // [blocks, kv_heads, block_size, d_padded]
    u16* v_cache;
    u32 y_stride;
    u32 q_stride;
    u32 heads;
    u32 kv_heads;
    u32 d;
    u32 d_padded;
    u32 block_size;
    float eps;
    u32 rows;
    u32 unused;
    Lora lora;  // for `qkv_stacked`
};

// Which head of which part a block or warp makes.
struct Head {
    u32 part;  // q, k, v
    u32 own;   // number among the part's heads

    DEVICE Head(const QkvArgs& args, u32 head) {
        part = head < args.heads ? 0 : head < args.heads + args.kv_heads ? 1 : 2;
        own = part == 0 ? head : part == 1 ? head - args.heads : head - args.heads - args.kv_heads;
    }

    // Where a row of it goes; null where nothing is kept.
    DEVICE u16* place(const QkvArgs& args, u32 row, u32 slot) const {
        if (part == 0) return args.q + (u64)row * args.q_stride + own * args.d;
        if (slot == NO_SLOT) return 0;
        u64 block = slot / args.block_size, offset = slot % args.block_size;
        u64 at = ((block * args.kv_heads + own) * args.block_size + offset) * args.d_padded;
        return (part == 1 ? args.k_cache : args.v_cache) + at;
    }
};

#define MOST_PAIRS 4  // of a lane, in heads of up to 256

// A lane's elements of a head's row: `lane + 32 i`, and those half a head behind them, with which they are turned.
struct Pairs {
    float low[MOST_PAIRS];
    float high[MOST_PAIRS];

    DEVICE void load(const QkvArgs& args, u32 row) {
        const u32 half = args.d / 2, first = blockIdx.x * args.d + threadIdx.x % 32;
        const u16* y = args.y + (u64)row * args.y_stride + first;
#pragma unroll
        for (u32 i = 0; i < MOST_PAIRS; i++) {
            low[i] = high[i] = 0.0f;
            if (threadIdx.x % 32 + 32 * i >= half) continue;
            low[i] = to_f32(y[32 * i]), high[i] = to_f32(y[32 * i + half]);
            if (args.bias) low[i] += args.bias[first + 32 * i], high[i] += args.bias[first + 32 * i + half];
            if (args.delta) {
                const u16* delta = args.delta + (u64)row * args.y_stride + first;
                low[i] += to_f32(delta[32 * i]), high[i] += to_f32(delta[32 * i + half]);
            }
        }
    }

    // Normed, turned, and stored.
    DEVICE void finish(const QkvArgs& args, const Head& head, u32 row) const {
        const u32 lane = threadIdx.x % 32, half = args.d / 2;
        const float* norm = head.part == 0 ? args.q_norm : head.part == 1 ? args.k_norm : 0;
        const float* angles = args.rope + (u64)args.positions[row] * args.d;
        u16* out = head.place(args, row, args.slots[row]);
        float factor = 1.0f;
        if (norm) {
            float sum = 0.0f;
#pragma unroll
            for (u32 i = 0; i < MOST_PAIRS; i++) sum += low[i] * low[i] + high[i] * high[i];
            factor = 1.0f / sqrtf(warp_sum(sum) / (float)args.d + args.eps);
        }
        if (!out) return;
#pragma unroll
        for (u32 i = 0; i < MOST_PAIRS; i++) {
            const u32 at = lane + 32 * i;
            if (at >= half) continue;
            float a = low[i], b = high[i], c = 1.0f, s = 0.0f;
            if (head.part != 2) c = angles[at], s = angles[at + half];
            if (norm) a *= factor * norm[at], b *= factor * norm[at + half];
            out[at] = to_bf16(a * c - b * s);
            out[at + half] = to_bf16(b * c + a * s);
        }
        // Attention reads whole groups of eight.
        if (head.part != 0 && args.d + lane < args.d_padded) out[args.d + lane] = 0;
    }
};

// Grid: heads + 2 kv heads, rows / 4. A warp makes a row of a head.
KERNEL(128, 1) qkv(const QkvArgs args) {
    let_dependents_start();
    const u32 row = blockIdx.y * 4 + threadIdx.x / 32;
    if (row >= args.rows) return;
    wait_for_primary();
    Pairs pairs;
    pairs.load(args, row);
    pairs.finish(args, Head(args, blockIdx.x), row);
}

// Sixteen ranks of h, or the last eight and zeros, and of B for one column.
struct Ranks {
    uint4 first;
    uint4 last;

    DEVICE void load(const u16* from, u32 left) {
        first = last = make_uint4(0, 0, 0, 0);
        if (left > 0) first = *(const uint4*)from;
        if (left > 8) last = *(const uint4*)(from + 8);
    }

    DEVICE void widen(float (&v)[16]) const {
        float low[8], high[8];
        widen8(first, low);
        widen8(last, high);
#pragma unroll
        for (u32 i = 0; i < 8; i++) v[i] = low[i], v[8 + i] = high[i];
    }

    DEVICE float dot(const float (&h)[16]) const {
        float b[16], sum = 0.0f;
        widen(b);
#pragma unroll
        for (u32 i = 0; i < 16; i++) sum += b[i] * h[i];
        return sum;
    }
};

// B of a part for two of a lane's pairs.
struct PairsB {
    Ranks low[2];
    Ranks high[2];

    // `pair`: the first; `first`: the head's first column.
    DEVICE void load(const LoraPart& part, u32 k, u32 pair, u32 first, u32 half) {
        const u32 stride = part.stride();
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const u32 at = threadIdx.x % 32 + 32 * (pair + i), left = at < half && k < stride ? stride - k : 0;
            const u16* b = part.b + (u64)(first + at) * stride + k;
            low[i].load(b, left);
            high[i].load(b + (u64)half * stride, left);
        }
    }
};

// The same with LoRA where A lies below W. Rows of an adapter find its B in the second-level cache.
KERNEL(128, 5) qkv_stacked(const QkvArgs args) {
    let_dependents_start();
    const u32 row = blockIdx.y * 4 + threadIdx.x / 32;
    if (row >= args.rows) return;
    const Head head(args, blockIdx.x);
    const u32 half = args.d / 2, first = head.own * args.d;
    const LoraPart part = part_of_row(args.lora, row, head.part);
    PairsB b;
    b.load(part, 0, 0, first, half);
    // B lay there before; y and h come from the kernel before.
    wait_for_primary();
    Pairs pairs;
    pairs.load(args, row);
    for (u32 k = 0; k < part.rank; k += 16) {
        Ranks raw;
        float h[16];
        raw.load(args.lora.h + (u64)row * args.lora.lane_stride + part.lane + k, part.stride() - k);
        raw.widen(h);
#pragma unroll
        for (u32 pair = 0; pair < MOST_PAIRS; pair += 2) {
            if (32 * pair >= half) continue;
            if (k + pair > 0) b.load(part, k, pair, first, half);
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                pairs.low[pair + i] += part.scale * b.low[i].dot(h);
                pairs.high[pair + i] += part.scale * b.high[i].dot(h);
            }
        }
    }
    pairs.finish(args, head, row);
}

// Sixteen ranks (or the last eight, then zeros) of B for the lane's eight columns from `first` on.
struct EightColumns {
    uint2 b[8];

    DEVICE void load(const LoraPart& part, u32 k, u32 first) {
        const u32 q = threadIdx.x % 4, stride = part.stride();
        const bool there = k < stride, whole = k + 8 < stride;
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

// For heads of 128 and many rows of few adapters: a warp makes eight rows of a head, which share what it reads of B. A lane
// has columns 8 g .. 8 g + 7 and those half a head behind them, of rows 2 q and 2 q + 1. Grid: heads + 2 kv heads, rows / 32.
KERNEL(128, 3) qkv_stacked_many(const QkvArgs args) {
    let_dependents_start();
    const u32 lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const u32 row = (blockIdx.y * 4 + threadIdx.x / 32) * 8, rows = min(args.rows - row, 8u);
    if (row >= args.rows) return;
    const Head head(args, blockIdx.x);
    const u32 column = head.own * 128 + 8 * g;
    LoraPart own[1] = {};
    if (lane < rows) own[0] = part_of_row(args.lora, row + lane, head.part);
    Turn<1> turn;
    turn.begin(own);
    EightColumns b[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) b[half].load(from_lane(own[0], turn.leader), 0, column + 64 * half);
    // B lay there before; y and h come from the kernel before.
    wait_for_primary();
    uint4 y[2][2];
#pragma unroll
    for (u32 r = 0; r < 2; r++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u16* at = args.y + (u64)(row + 2 * q + r) * args.y_stride + blockIdx.x * 128 + 64 * half + 8 * g;
            y[r][half] = 2 * q + r < rows ? *(const uint4*)at : make_uint4(0, 0, 0, 0);
        }
    float delta[2][4][4] = {};
    while (turn.waiting) {
        const LoraPart part = from_lane(own[0], turn.leader), of_row = from_lane(own[0], g);
        const u32 k = turn.k + q * (turn.k + 8 < part.rank ? 4 : 2);
        const u16* at = args.lora.h + (u64)(row + g) * args.lora.lane_stride + of_row.lane + k;
        uint2 h = make_uint2(0, 0);
        if (turn.served(own) >> g & 1) {
            if (turn.k + 8 < part.rank)
                h = *(const uint2*)at;
            else
                h.x = *(const u32*)at;
        }
#pragma unroll
        for (u32 half = 0; half < 2; half++) b[half].multiply(h, delta[half]);
        turn.next(own);
        if (turn.waiting)
#pragma unroll
            for (u32 half = 0; half < 2; half++) b[half].load(from_lane(own[0], turn.leader), turn.k, column + 64 * half);
    }
    const float* norm = head.part == 0 ? args.q_norm : head.part == 1 ? args.k_norm : 0;
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        const float scale = __shfl_sync(FULL_WARP, own[0].scale, 2 * q + r);
        float low[8], high[8], sum = 0.0f;
        widen8(y[r][0], low);
        widen8(y[r][1], high);
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            if (args.bias) {
                const float* bias = args.bias + blockIdx.x * 128 + 8 * g + i;
                low[i] += bias[0], high[i] += bias[64];
            }
            low[i] += delta[0][i / 2][2 * (i % 2) + r] * scale;
            high[i] += delta[1][i / 2][2 * (i % 2) + r] * scale;
            sum += low[i] * low[i] + high[i] * high[i];
        }
        if (norm) {
#pragma unroll
            for (u32 offset = 4; offset < 32; offset *= 2) sum += __shfl_xor_sync(FULL_WARP, sum, offset);
            const float factor = 1.0f / sqrtf(sum / 128.0f + args.eps);
#pragma unroll
            for (u32 i = 0; i < 8; i++) low[i] *= factor * norm[8 * g + i], high[i] *= factor * norm[64 + 8 * g + i];
        }
        if (2 * q + r >= rows) continue;
        const u32 own_row = row + 2 * q + r;
        u16* out = head.place(args, own_row, args.slots[own_row]);
        if (!out) continue;
        const float* angles = args.rope + (u64)args.positions[own_row] * 128 + 8 * g;
        float turned[2][8];
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            const float c = head.part == 2 ? 1.0f : angles[i], s = head.part == 2 ? 0.0f : angles[64 + i];
            turned[0][i] = low[i] * c - high[i] * s, turned[1][i] = high[i] * c + low[i] * s;
        }
        store8(out + 8 * g, 8, turned[0]);
        store8(out + 64 + 8 * g, 8, turned[1]);
    }
}
