// From the last norm to tokens: gathers the wanted rows and divides them, then takes the best token of each row or scores one.
// What needs more than the best token is drawn by `draw.cu`.

#define DRAWN 0xfffffffdu  // score the token that was drawn
#define SKIP 0xfffffffeu   // nothing is left to do
#define BEST 0xffffffffu   // take the best token

struct GatherArgs {
    const u16* x;     // [rows, stride]
    u16* out;         // [wanted, stride]
    const u32* rows;  // of x
    Norm norm;        // of x
    u32 stride;       // a multiple of 8
    u32 unused;
};

// Grid: wanted rows.
KERNEL(256, 1) gather(const GatherArgs args) {
    let_dependents_start();
    wait_for_primary();
    const u32 row = args.rows[blockIdx.x];
    const float factor = factor_of_row(args.norm, row);
    for (u32 i = threadIdx.x * 8; i < args.stride; i += blockDim.x * 8) {
        float v[8];
        load8(args.x + (u64)row * args.stride + i, 8, v);
#pragma unroll
        for (u32 k = 0; k < 8; k++) v[k] *= factor;
        store8(args.out + (u64)blockIdx.x * args.stride + i, 8, v);
    }
}

struct Picked {
    u32 token;
    float logprob;  // under the logits as they are
    u32 rank;       // tokens with a larger logit
    float log_sum;  // of e^(logit - best)
};

// What is known of some of a row's logits.
struct Part {
    float best;  // the largest logit, ties to the lower token; a NaN loses against everything
    u32 token;
    float sum;    // of e^(logit - best)
    float above;  // logits over the one to score

    DEVICE void clear() { best = -INFINITY_F, token = BEST, sum = 0.0f, above = 0.0f; }

    DEVICE void add(const Part& other) {
        float top = fmaxf(best, other.best);
        sum = sum * decay(best, top) + other.sum * decay(other.best, top);
        above += other.above;
        if (other.best > best || (other.best == best && other.token < token)) token = other.token;
        best = top;
    }

    // The difference of two infinities is not a number.
    DEVICE static float decay(float from, float to) { return from == to ? 1.0f : __expf(from - to); }

    DEVICE Part of_lane(u32 mask) const {
        Part part;
        part.best = __shfl_xor_sync(FULL_WARP, best, mask);
        part.token = __shfl_xor_sync(FULL_WARP, token, mask);
        part.sum = __shfl_xor_sync(FULL_WARP, sum, mask);
        part.above = __shfl_xor_sync(FULL_WARP, above, mask);
        return part;
    }
};

struct PickArgs {
    const float* logits;  // [rows, stride]
    const u32* tasks;     // BEST, DRAWN, SKIP or the token to score
    Picked* out;
    u32* sampled;  // tokens for the next step, the drawn ones among them
    Part* parts;   // [rows, gridDim.x]
    u32* arrived;  // [rows], zero between launches
    u32 stride;
    u32 vocabulary;
};

// Grid: parts of the vocabulary, rows. The last block of a row to finish puts the parts together, in their order.
KERNEL(256, 1) pick(const PickArgs args) {
    __shared__ Part warps[8];
    __shared__ u32 last;
    let_dependents_start();
    wait_for_primary();
    const u32 row = blockIdx.y;
    u32 task = args.tasks[row];
    if (task == SKIP) return;
    if (task == DRAWN) task = args.sampled[row];
    const float* logits = args.logits + (u64)row * args.stride;
    const float own = task < args.vocabulary ? logits[task] : -INFINITY_F;
    const u32 share = (args.vocabulary + gridDim.x - 1) / gridDim.x;
    const u32 end = min((blockIdx.x + 1) * share, args.vocabulary);
    Part part;
    part.clear();
#pragma unroll 4
    for (u32 i = blockIdx.x * share + threadIdx.x; i < end; i += 256) {
        float logit = logits[i];
        if (!(logit > -INFINITY_F)) logit = -INFINITY_F;
        Part one{logit, i, logit > -INFINITY_F ? 1.0f : 0.0f, task != BEST && logit > own ? 1.0f : 0.0f};
        part.add(one);
    }
    for (int mask = 16; mask > 0; mask /= 2) part.add(part.of_lane(mask));
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = part;
    __syncthreads();
    if (threadIdx.x == 0) {
        part.clear();
        for (u32 w = 0; w < 8; w++) part.add(warps[w]);
        args.parts[(u64)row * gridDim.x + blockIdx.x] = part;
        __threadfence();
        last = atomicAdd(args.arrived + row, 1u) + 1 == gridDim.x;
    }
    __syncthreads();
    if (!last || threadIdx.x != 0) return;
    args.arrived[row] = 0;
    __threadfence();
    part.clear();
    for (u32 i = 0; i < gridDim.x; i++) {
        const float4 raw = __ldcg((const float4*)(args.parts + (u64)row * gridDim.x + i));
        part.add(Part{raw.x, __float_as_uint(raw.y), raw.z, raw.w});
    }
    const u32 chosen = task == BEST ? part.token : task;
    const float logit = task == BEST ? part.best : own;
    const float distance = logit == part.best ? 0.0f : logit - part.best;
    const float log_sum = logf(part.sum);
    const float logprob = logit > -INFINITY_F ? distance - log_sum : -INFINITY_F;
    // Where nothing is above minus infinity the token is 0.
    const u32 token = task == BEST && part.best == -INFINITY_F ? 0 : chosen;
    args.out[row] = Picked{token, logprob, (u32)part.above, log_sum};
    args.sampled[row] = token;
}
