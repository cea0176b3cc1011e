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
    Lora lora;  // for the kernels with LoRA
    Norm norm;  // of x
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

// What was known of a row before the product.
struct Row {
    u32 row;
    u32 position;
    u32 slot;

    DEVICE Row(const QkvArgs& args, u32 row) : row(row), position(args.positions[row]), slot(args.slots[row]) {}
};

#define MOST_PAIRS 4  // of a lane, in heads of up to 256

// A lane's elements of a head's row: `lane + 32 i`, and those half a head behind them, with which they are turned.
struct Pairs {
    float low[MOST_PAIRS];
    float high[MOST_PAIRS];
    float cosine[MOST_PAIRS];
    float sine[MOST_PAIRS];

    DEVICE void load(const QkvArgs& args, const Head& head, const Row& own) {
        const u32 row = own.row, half = args.d / 2, first = blockIdx.x * args.d + threadIdx.x % 32;
        const float* angles = args.rope + (u64)own.position * args.d + threadIdx.x % 32;
        const u16* y = args.y + (u64)row * args.y_stride + first;
#pragma unroll
        for (u32 i = 0; i < MOST_PAIRS; i++) {
            low[i] = high[i] = sine[i] = 0.0f, cosine[i] = 1.0f;
            if (threadIdx.x % 32 + 32 * i >= half) continue;
            if (head.part != 2) cosine[i] = angles[32 * i], sine[i] = angles[32 * i + half];
            low[i] = to_f32(y[32 * i]), high[i] = to_f32(y[32 * i + half]);
            if (args.delta) {
                const u16* delta = args.delta + (u64)row * args.y_stride + first;
                low[i] += to_f32(delta[32 * i]), high[i] += to_f32(delta[32 * i + half]);
            }
        }
    }

    // With bias, normed, turned, and stored; `of_x`: the row's factor.
    DEVICE void finish(const QkvArgs& args, const Head& head, const Row& row, float of_x) {
        const u32 lane = threadIdx.x % 32, half = args.d / 2;
        const float* norm = head.part == 0 ? args.q_norm : head.part == 1 ? args.k_norm : 0;
        u16* out = head.place(args, row.row, row.slot);
        float factor = 1.0f;
#pragma unroll
        for (u32 i = 0; i < MOST_PAIRS; i++) {
            low[i] *= of_x, high[i] *= of_x;
            if (!args.bias || lane + 32 * i >= half) continue;
            const float* bias = args.bias + blockIdx.x * args.d + lane + 32 * i;
            low[i] += bias[0], high[i] += bias[half];
        }
        if (norm) {
            float sum = 0.0f;
#pragma unroll
            for (u32 i = 0; i < MOST_PAIRS; i++) sum += low[i] * low[i] + high[i] * high[i];
            factor = rsqrtf(__fdividef(warp_sum(sum), (float)args.d) + args.eps);
        }
        if (!out) return;
#pragma unroll
        for (u32 i = 0; i < MOST_PAIRS; i++) {
            const u32 at = lane + 32 * i;
            if (at >= half) continue;
            float a = low[i], b = high[i];
            if (norm) a *= factor * norm[at], b *= factor * norm[at + half];
            out[at] = to_bf16(a * cosine[i] - b * sine[i]);
            out[at + half] = to_bf16(b * cosine[i] + a * sine[i]);
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
    const Head head(args, blockIdx.x);
    const Row own(args, row);
    wait_for_primary();
    Pairs pairs;
    pairs.load(args, head, own);
    pairs.finish(args, head, own, factor_of_row(args.norm, row));
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
KERNEL(128, 4) qkv_stacked(const QkvArgs args) {
    let_dependents_start();
    const u32 row = blockIdx.y * 4 + threadIdx.x / 32;
    if (row >= args.rows) return;
    const Head head(args, blockIdx.x);
    const u32 half = args.d / 2, first = head.own * args.d;
    const Row own(args, row);
    const LoraPart part = part_of_row(args.lora, row, head.part);
    PairsB b;
    b.load(part, 0, 0, first, half);
    // B lay there before; y and h come from the kernel before.
    wait_for_primary();
    Pairs pairs;
    pairs.load(args, head, own);
    const u16* ranks = args.lora.h + (u64)row * args.lora.lane_stride + part.lane;
    Ranks raw;
    raw.load(ranks, part.stride());
    const float of_x = factor_of_row(args.norm, row);
    for (u32 k = 0; k < part.rank; k += 16) {
        float h[16];
        if (k > 0) raw.load(ranks + lane_of_rank(args.lora, k), part.stride() - k);
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
    pairs.finish(args, head, own, of_x);
}

// The same with B packed, for few adapters and heads whose halves are whole groups of columns. Grid: heads + 2 kv heads,
// rows / 8. A warp has 32 columns of a head and those half a head behind them, of eight rows.
template <bool ONE>
DEVICE void heads_packed(const QkvArgs& args) {
    __shared__ float sums[4][8];
    let_dependents_start();
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, g = lane / 4, q = lane % 4;
    const Head head(args, blockIdx.x);
    const u32 half = args.d / 2, in_head = warp * PACKED_COLUMNS + 4 * g, width = (args.heads + 2 * args.kv_heads) * args.d;
    const u32 first = blockIdx.x * args.d + warp * PACKED_COLUMNS, columns[2] = {first, first + half};
    const float* norm = head.part == 0 ? args.q_norm : head.part == 1 ? args.k_norm : 0;
    Packed<2, 1, ONE> packed(args.lora, head.part, columns, width);
    const u32 row = blockIdx.y * 8, rows = min(args.rows - row, 8u);
    packed.ask(row, rows);
    u32 position = 0, slot = NO_SLOT;
    if (lane < rows) position = args.positions[row + lane], slot = args.slots[row + lane];
    // What lay there before is under way; y and h come from the kernel before.
    wait_for_primary();
    packed.ask_h(row, rows);
    uint2 y[2][2];
#pragma unroll
    for (u32 r = 0; r < 2; r++)
#pragma unroll
        for (u32 n = 0; n < 2; n++) {
            const u16* at = args.y + (u64)(row + 2 * q + r) * args.y_stride + columns[n] + 4 * g;
            y[r][n] = 2 * q + r < rows ? *(const uint2*)at : make_uint2(0, 0);
        }
    FactorsOfEight factors;
    factors.load(args.norm, row, rows);
    float4 angles[2][2];
    u16* out[2];
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        const u32 at = __shfl_sync(FULL_WARP, position, 2 * q + r), to = __shfl_sync(FULL_WARP, slot, 2 * q + r);
#pragma unroll
        for (u32 n = 0; n < 2; n++)
            if (head.part != 2) angles[r][n] = *(const float4*)(args.rope + (u64)at * args.d + n * half + in_head);
        out[r] = 2 * q + r < rows ? head.place(args, row + 2 * q + r, to) : 0;
    }
    float delta[2][2][4] = {};
    packed.multiply(row, rows, delta);
    const float of_x = factors.finish(args.norm, row, rows);
    float v[2][2][4], sum[2] = {};
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        const float scale = packed.scale_of(2 * q + r), factor = __shfl_sync(FULL_WARP, of_x, 4 * (2 * q + r));
#pragma unroll
        for (u32 n = 0; n < 2; n++) {
            widen4(y[r][n], v[r][n]);
#pragma unroll
            for (u32 k = 0; k < 4; k++) {
                float& x = v[r][n][k];
                x = factor * (x + delta[n][k / 2][2 * (k % 2) + r] * scale);
                if (args.bias) x += args.bias[columns[n] + 4 * g + k];
                sum[r] += x * x;
            }
        }
    }
    if (norm) {
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
#pragma unroll
            for (u32 offset = 4; offset < 32; offset *= 2) sum[r] += __shfl_xor_sync(FULL_WARP, sum[r], offset);
            if (g == 0) sums[warp][2 * q + r] = sum[r];
        }
        __syncthreads();
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            sum[r] = 0.0f;
            for (u32 w = 0; w < warps; w++) sum[r] += sums[w][2 * q + r];
            const float divisor = rsqrtf(__fdividef(sum[r], (float)args.d) + args.eps);
#pragma unroll
            for (u32 n = 0; n < 2; n++)
#pragma unroll
                for (u32 k = 0; k < 4; k++) v[r][n][k] *= divisor * norm[n * half + in_head + k];
        }
    }
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        if (!out[r]) continue;
        float turned[2][4];
        const float4 cosines = angles[r][0], sines = angles[r][1];
        const float c[4] = {cosines.x, cosines.y, cosines.z, cosines.w}, s[4] = {sines.x, sines.y, sines.z, sines.w};
#pragma unroll
        for (u32 k = 0; k < 4; k++) {
            const float a = v[r][0][k], b = v[r][1][k];
            turned[0][k] = head.part == 2 ? a : a * c[k] - b * s[k];
            turned[1][k] = head.part == 2 ? b : b * c[k] + a * s[k];
        }
        store4(out[r] + in_head, turned[0]);
        store4(out[r] + half + in_head, turned[1]);
    }
}

KERNEL(128, 4) qkv_one(const QkvArgs args) { heads_packed<true>(args); }
KERNEL(128, 4) qkv_packed(const QkvArgs args) { heads_packed<false>(args); }

#define PROMPT_HEADS 4

// For prompts, with B packed or without adapters, and such heads. Grid: (heads + 2 kv heads) / 4, rows / 16. What has to be
// known of rows serves four heads; their angles are in the first-level cache from the second head on.
template <class Adapters>
DEVICE void turn_prompts(const QkvArgs& args) {
    __shared__ float sums[2][4][PROMPT_ROWS];
    let_dependents_start();
    const u32 warp = threadIdx.x / 32, warps = blockDim.x / 32, g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    const u32 heads = args.heads + 2 * args.kv_heads, half = args.d / 2, in_head = warp * PACKED_COLUMNS + 8 * q;
    const u32 row = blockIdx.y * PROMPT_ROWS, rows = min(args.rows - row, (u32)PROMPT_ROWS);
    Adapters adapters(args.lora, row, rows);
    const Row own[2] = {Row(args, row + min(g, rows - 1)), Row(args, row + min(g + 8, rows - 1))};
    // What lay there before is under way; y and h come from the kernel before.
    wait_for_primary();
    float factor[2];
#pragma unroll
    for (u32 r = 0; r < 2; r++) factor[r] = factor_of_quad(args.norm, own[r].row, true);
#pragma unroll 1
    for (u32 n = 0; n < PROMPT_HEADS; n++) {
        const u32 number = blockIdx.x * PROMPT_HEADS + n;
        if (number >= heads) return;
        const Head head(args, number);
        const u32 first = number * args.d + warp * PACKED_COLUMNS, columns[2] = {first, first + half};
        const float* norm = head.part == 0 ? args.q_norm : head.part == 1 ? args.k_norm : 0;
        uint4 y[2][2];
#pragma unroll
        for (u32 r = 0; r < 2; r++)
#pragma unroll
            for (u32 i = 0; i < 2; i++)
                y[r][i] = load_once(args.y + (u64)own[r].row * args.y_stride + columns[i] + 8 * q);
        float delta[2][2][8], v[2][2][8], divisor[2] = {1.0f, 1.0f};
        adapters.multiply(head.part, columns, heads * args.d, delta);
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            float sum = 0.0f;
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                widen8(y[r][i], v[r][i]);
#pragma unroll
                for (u32 k = 0; k < 8; k++) {
                    float& x = v[r][i][k];
                    x = factor[r] * (x + delta[i][r][k]);
                    if (args.bias) x += args.bias[columns[i] + 8 * q + k];
                    sum += x * x;
                }
            }
            if (!norm) continue;
            sum = sum_of_quad(sum);
            if (q == 0) sums[n % 2][warp][g + 8 * r] = sum;
        }
        if (norm) {
            __syncthreads();
#pragma unroll
            for (u32 r = 0; r < 2; r++) {
                float sum = 0.0f;
                for (u32 w = 0; w < warps; w++) sum += sums[n % 2][w][g + 8 * r];
                divisor[r] = rsqrtf(__fdividef(sum, (float)args.d) + args.eps);
            }
        }
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            u16* out = g + 8 * r < rows ? head.place(args, own[r].row, own[r].slot) : 0;
            if (!out) continue;
            const float* angles = args.rope + (u64)own[r].position * args.d + in_head;
            float low[8], high[8];
#pragma unroll
            for (u32 k = 0; k < 8; k++) {
                float a = v[r][0][k], b = v[r][1][k];
                if (norm) a *= divisor[r] * norm[in_head + k], b *= divisor[r] * norm[half + in_head + k];
                low[k] = a, high[k] = b;
            }
#pragma unroll
            for (u32 k = 0; k < 8 && head.part != 2; k += 4) {
                float cosine[4], sine[4];
                load_floats(angles + k, cosine);
                load_floats(angles + half + k, sine);
#pragma unroll
                for (u32 e = 0; e < 4; e++) {
                    const float a = low[k + e], b = high[k + e];
                    low[k + e] = a * cosine[e] - b * sine[e];
                    high[k + e] = b * cosine[e] + a * sine[e];
                }
            }
            store8(out + in_head, 8, low);
            store8(out + half + in_head, 8, high);
        }
    }
}

KERNEL(128, 5) qkv_prompts(const QkvArgs args) { turn_prompts<NoAdapters>(args); }
KERNEL(128, 4) qkv_prompts_packed(const QkvArgs args) { turn_prompts<AdaptersOfPrompts<1>>(args); }
