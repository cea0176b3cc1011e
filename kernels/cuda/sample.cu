// From the last norm to tokens: gathers the wanted rows, then takes the best token of each row or scores a known one.
// Draws with a temperature are made on the host, by the definition in `sampling.rs`.

#define SKIP 0xfffffffeu  // the host draws this row
#define BEST 0xffffffffu  // take the best token

struct GatherArgs {
    const u16* x;     // [rows, stride]
    u16* out;         // [wanted, stride]
    const u32* rows;  // of x
    u32 stride;       // a multiple of 8
    u32 unused;
};

// Grid: wanted rows.
KERNEL(256, 1) gather(const GatherArgs args) {
    const uint4* from = (const uint4*)(args.x + (u64)args.rows[blockIdx.x] * args.stride);
    uint4* to = (uint4*)(args.out + (u64)blockIdx.x * args.stride);
    for (u32 i = threadIdx.x; i < args.stride / 8; i += blockDim.x) to[i] = from[i];
}

struct Picked {
    u32 token;
    float logprob;  // under the logits as they are
    u32 rank;       // tokens with a larger logit
    u32 unused;
};

struct PickArgs {
    const float* logits;  // [rows, stride]
    const u32* tasks;     // BEST, SKIP or the token to score
    Picked* out;
    u32* sampled;  // tokens for the next step
    u32 stride;
    u32 vocabulary;
};

// The larger logit, ties to the lower token. A NaN loses against everything.
DEVICE void keep_best(float& logit, u32& token, float other, u32 other_token) {
    if (other > logit || (other == logit && other_token < token)) logit = other, token = other_token;
}

// Grid: rows. The sum is of terms from 0 to 1 in a fixed order, in f32.
KERNEL(1024, 1) pick(const PickArgs args) {
    __shared__ float shared[32];
    __shared__ float best_logits[32];
    __shared__ u32 best_tokens[32];
    const u32 task = args.tasks[blockIdx.x];
    if (task == SKIP) return;
    const float* logits = args.logits + (u64)blockIdx.x * args.stride;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float best = -INFINITY_F;
    u32 token = BEST;
    for (u32 i = threadIdx.x; i < args.vocabulary; i += 1024) keep_best(best, token, logits[i], i);
    for (int offset = 16; offset > 0; offset /= 2) {
        float other = __shfl_xor_sync(FULL_WARP, best, offset);
        u32 other_token = __shfl_xor_sync(FULL_WARP, token, offset);
        keep_best(best, token, other, other_token);
    }
    if (lane == 0) best_logits[warp] = best, best_tokens[warp] = token;
    __syncthreads();
    for (u32 w = 0; w < 32; w++) keep_best(best, token, best_logits[w], best_tokens[w]);
    // Nothing but NaN.
    if (token == BEST) token = 0;
    const u32 chosen = task == BEST ? token : task;
    const float own = chosen < args.vocabulary ? logits[chosen] : -INFINITY_F;
    float sum = 0.0f, above = 0.0f;
    for (u32 i = threadIdx.x; i < args.vocabulary; i += 1024) {
        float logit = logits[i];
        // The difference of two infinities is not a number.
        if (logit == best) sum += 1.0f;
        else if (logit < best) sum += __expf(logit - best);
        if (logit > own) above += 1.0f;
    }
    sum = block_sum(sum, shared);
    above = block_sum(above, shared);
    if (threadIdx.x != 0) return;
    float distance = own == best ? 0.0f : own - best;
    bool known = own > -INFINITY_F;
    args.out[blockIdx.x] = Picked{chosen, known ? distance - logf(sum) : -INFINITY_F, (u32)above, 0};
    args.sampled[blockIdx.x] = chosen;
}
