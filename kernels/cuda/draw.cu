// Draws as `sampling.rs` defines them, and the best tokens of a row.
//
// A row is read by a cluster of blocks, each its own range of the vocabulary, a few times from L2: once for the largest
// logit, once for the sum of the weights, and once more, by one block of the cluster, for the token. A top-k or a top-p
// adds four reads each, the last three of which compute little: see `select`.
//
// Logits change by the host's own operations, and weights are its very bits. Sums are of integers: weights in units of
// 2^-44, rounded down. So no sum depends on an order, on how many blocks share a row, or on other rows, and a token is one
// of the host's wherever u is further than 2^-44 times the vocabulary from a boundary.

#define THREADS 512
#define WARPS (THREADS / 32)
#define BINS 2048        // of a histogram: what 11 bits number
#define ONE_SHIFT 44     // the weight 1 is 2^44
#define UNIFORM_BITS 53  // of a number in [0, 1)
#define MOST_TOP 64      // best tokens of a row
#define SHORT 512        // tokens that a warp looks through
#define NO_TOKEN 0xffffffffu
// Of Draw::task; another one is to draw, and no more.
#define NO_DRAW 0u
#define DRAW_AND_RESTORE 2u

// What happens to one logit before the draw; each token once.
struct Change {
    u32 token;
    float bias;
    u32 kind;   // 1: banned; 2: seen, for the penalties; then 4 for each time in the output
    float old;  // the logit before
};

struct Draw {
    u64 uniform;  // in units of 2^-53
    float temperature;
    float log_min_p;
    u32 top_k;  // 0 keeps all
    float top_p;
    u32 first_change;
    u32 changes;
    float repetition;
    float presence;
    float frequency;
    u32 task;
    u32 top;  // best tokens wanted
    u32 own;  // 1 + the row whose own token counts as one more of the output, or 0; then there is room for one more change
};

// This block's part of a row.
struct Row {
    float* logits;
    u32 begin;  // a multiple of 4, unless it is the end
    u32 end;

    DEVICE Row(float* logits, u32 vocabulary) : logits(logits) {
        const u32 share = ((vocabulary + gridDim.x - 1) / gridDim.x + 3) & ~3u;
        begin = min(blockIdx.x * share, vocabulary);
        end = min(begin + share, vocabulary);
    }

    DEVICE bool has(u32 token) const { return token >= begin && token < end; }
};

// The largest of some logits, ties to the lower token; a NaN loses against everything.
struct Best {
    float logit;
    u32 token;

    DEVICE void add(float other, u32 other_token) {
        if (other > logit || (other == logit && other_token < token)) logit = other, token = other_token;
    }
};

static_assert(BINS == 4 * THREADS, "a thread has four bins");

struct Shared {
    // A histogram's numbers, or the low and high words of its weights.
    u32 low[BINS];
    u32 high[BINS];
    u64 sums[WARPS];
    // For the cluster.
    u64 total;
    u64 list[MOST_TOP];
    Best best;
    u32 found;
    u32 listed;
    // What `select` found in a histogram.
    u32 bin;
    u64 before;
    u64 size;
    Best bests[WARPS];
};

// Calls `f` with the tokens of a range and their logits; thread `index` of `count` takes its share. Rows are padded to
// eight logits, so that the last four can be loaded.
template <typename F>
DEVICE void each(const float* logits, u32 begin, u32 end, u32 index, u32 count, F f) {
#pragma unroll 2
    for (u32 i = begin + 4 * index; i < end; i += 4 * count) {
        const float4 four = *(const float4*)(logits + i);
        f(i, four.x);
        if (i + 1 < end) f(i + 1, four.y);
        if (i + 2 < end) f(i + 2, four.z);
        if (i + 3 < end) f(i + 3, four.w);
    }
}

// e^x for x <= 0: what `softmax.rs` computes, bit by bit.
DEVICE float exp_of_negative(float x) {
    const float least = -87.33654f, round = 12582912.0f;
    const float bounded = fmaxf(x, least);
    const float shifted = __fadd_rn(__fmul_rn(bounded, 1.44269504088896340736f), round);
    const float n = __fsub_rn(shifted, round);
    const float r = __fsub_rn(__fsub_rn(bounded, __fmul_rn(n, 0.693359375f)), __fmul_rn(n, -2.12194440e-4f));
    float sum = 1.9875691500e-4f;
    sum = __fadd_rn(__fmul_rn(sum, r), 1.3981999507e-3f);
    sum = __fadd_rn(__fmul_rn(sum, r), 8.3334519073e-3f);
    sum = __fadd_rn(__fmul_rn(sum, r), 4.1665795894e-2f);
    sum = __fadd_rn(__fmul_rn(sum, r), 1.6666665459e-1f);
    sum = __fadd_rn(__fmul_rn(sum, r), 0.5f);
    const float exp_r = __fadd_rn(__fadd_rn(__fmul_rn(__fmul_rn(sum, r), r), r), 1.0f);
    const float power = __uint_as_float((__float_as_uint(shifted) << 23) + 0x3f800000u);
    return x >= least ? __fmul_rn(exp_r, power) : 0.0f;
}

struct Softmax {
    float max;
    float temperature;
    float least;  // the smallest logit that has a weight

    DEVICE Softmax(float max, float temperature, float log_min_p)
        : max(max), temperature(temperature),
          least(fmaxf(__fadd_rn(max, __fmul_rn(temperature, log_min_p)), -3.40282347e38f)) {}

    // Its difference to the largest, which may be infinite, in temperatures.
    DEVICE float distance(float logit) const {
        const float difference = logit == max ? 0.0f : __fsub_rn(logit, max);
        return temperature == 1.0f ? difference : __fdiv_rn(difference, temperature);
    }

    // The weight of a logit in units of 2^-ONE_SHIFT, rounded down.
    DEVICE u64 weight(float logit) const {
        if (logit == max) return 1ull << ONE_SHIFT;
        if (!(logit >= least)) return 0;
        const u32 bits = __float_as_uint(exp_of_negative(distance(logit)));
        if (bits == 0) return 0;
        const u32 significand = (bits & 0x7fffffu) | 0x800000u;
        const int shift = (int)(bits >> 23) - 127 - 23 + ONE_SHIFT;
        return shift >= 0 ? (u64)significand << shift : significand >> min(-shift, 31);
    }

    // Which of the first histogram's bins a logit falls into: never a later one than a smaller logit. The last takes what
    // is e^-33 of the best or less, which weighs next to nothing.
    DEVICE u32 bin(float logit) const { return min(__float2uint_rz(distance(logit) * -62.0f), BINS - 1u); }
};

// Numbers in the order of logits; -0 is 0, and a NaN minus infinity.
DEVICE u32 key_of(float logit) {
    const float ordered = !(logit > -INFINITY_F) ? -INFINITY_F : logit == 0.0f ? 0.0f : logit;
    const u32 bits = __float_as_uint(ordered);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

DEVICE float logit_of(u32 key) { return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key); }

// The best tokens down to one of them.
struct Kept {
    u32 key;   // of the last one
    u32 last;  // token, among those with that key

    DEVICE bool has(u32 token, u32 other) const { return other > key || (other == key && token <= last); }

    // No logit's key is 0.
    DEVICE bool has_all() const { return key == 0; }
};

DEVICE u64 warp_sum(u64 x) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(FULL_WARP, x, mask);
    return x;
}

// The sum of this value in this and the lanes before.
DEVICE u64 warp_scan(u64 x) {
    const u32 lane = threadIdx.x % 32;
#pragma unroll
    for (u32 offset = 1; offset < 32; offset *= 2) {
        const u64 other = __shfl_up_sync(FULL_WARP, x, offset);
        if (lane >= offset) x += other;
    }
    return x;
}

// Narrows a range to what is the share of a warp.
DEVICE void narrow(u32& begin, u32& end, u32 warp) {
    const u32 share = ((end - begin + WARPS - 1) / WARPS + 3) & ~3u;
    begin = min(begin + warp * share, end);
    end = min(begin + share, end);
}

// Each warp's sum over its share of a range, in `shared.sums`.
template <typename W>
DEVICE void sum_shares(Shared& shared, const float* logits, u32 begin, u32 end, W weigh) {
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u64 sum = 0;
    narrow(begin, end, warp);
    each(logits, begin, end, lane, 32, [&](u32 token, float logit) { sum += weigh(token, logit); });
    sum = warp_sum(sum);
    if (lane == 0) shared.sums[warp] = sum;
    __syncthreads();
}

// The first token of a range at which the running sum exceeds the target; for one warp.
template <typename W>
DEVICE u32 look_through(const float* logits, u32 begin, u32 end, u64 target, W weigh) {
    const u32 lane = threadIdx.x % 32;
    u64 sum = 0;
    for (u32 from = begin; from < end; from += 128) {
        const u32 token = from + 4 * lane;
        u64 own = 0;
        each(logits, token, min(token + 4, end), 0, 1, [&](u32 token, float logit) { own += weigh(token, logit); });
        const u64 upto = sum + warp_scan(own);
        const u32 over = __ballot_sync(FULL_WARP, upto > target);
        if (over) {
            const u32 first = __ffs(over) - 1;
            u64 running = upto - own;
            u32 found = NO_TOKEN;
            each(logits, token, min(token + 4, end), 0, 1, [&](u32 token, float logit) {
                running += weigh(token, logit);
                if (running > target && found == NO_TOKEN) found = token;
            });
            return __shfl_sync(FULL_WARP, found, first);
        }
        sum = __shfl_sync(FULL_WARP, upto, 31);
    }
    return begin;
}

// The first token of the row at which the running sum of `weigh` exceeds what `target_of` makes of the whole sum, which is
// less than the sum. The same in all threads of the cluster.
template <typename W, typename T>
DEVICE u32 find(Shared& shared, const Row& row, W weigh, T target_of) {
    const u32 warp = threadIdx.x / 32;
    u32 begin = row.begin, end = row.end;
    sum_shares(shared, row.logits, begin, end, weigh);
    if (threadIdx.x == 0) {
        u64 total = 0;
        for (u32 w = 0; w < WARPS; w++) total += shared.sums[w];
        shared.total = total;
    }
    sync_cluster();
    u64 total = 0;
    for (u32 peer = 0; peer < gridDim.x; peer++) total += *of_peer(&shared.total, peer);
    u64 target = target_of(total);
    u32 owner = 0;
    for (; owner + 1 < gridDim.x; owner++) {
        const u64 part = *of_peer(&shared.total, owner);
        if (target < part) break;
        target -= part;
    }
    if (owner == blockIdx.x) {
        while (true) {
            u32 share = 0;
            while (share + 1 < WARPS && target >= shared.sums[share]) target -= shared.sums[share++];
            narrow(begin, end, share);
            if (end - begin <= SHORT) break;
            __syncthreads();
            sum_shares(shared, row.logits, begin, end, weigh);
        }
        if (warp == 0) {
            const u32 found = look_through(row.logits, begin, end, target, weigh);
            if (threadIdx.x == 0) shared.found = found;
        }
    }
    sync_cluster();
    return *of_peer(&shared.found, owner);
}

// The largest logit of the row.
DEVICE Best best_of(Shared& shared, const Row& row) {
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Best best{-INFINITY_F, NO_TOKEN};
    each(row.logits, row.begin, row.end, threadIdx.x, THREADS, [&](u32 token, float logit) {
        if (logit > best.logit) best.logit = logit, best.token = token;
    });
    for (int mask = 16; mask > 0; mask /= 2) {
        const float other = __shfl_xor_sync(FULL_WARP, best.logit, mask);
        best.add(other, __shfl_xor_sync(FULL_WARP, best.token, mask));
    }
    if (lane == 0) shared.bests[warp] = best;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (u32 w = 1; w < WARPS; w++) best.add(shared.bests[w].logit, shared.bests[w].token);
        shared.best = best;
    }
    sync_cluster();
    best = Best{-INFINITY_F, NO_TOKEN};
    for (u32 peer = 0; peer < gridDim.x; peer++) {
        const Best* other = of_peer(&shared.best, peer);
        best.add(other->logit, other->token);
    }
    return best;
}

// Adds to a number whose words lie apart: shared memory adds words faster.
DEVICE void add_words(u32* low, u32* high, u64 x) {
    const u32 low_part = (u32)x, before = atomicAdd(low, low_part);
    const u32 high_part = (u32)(x >> 32) + (before + low_part < before ? 1 : 0);
    if (high_part) atomicAdd(high, high_part);
}

// Of those `among`, the fewest of the best whose number reaches `wanted`, or, with `WEIGHTS`, whose weights reach `top_p` of
// all; those `among` where nothing reaches it.
//
// Four histograms, each of one bin of the one before: of the distance to the best, which spreads logits evenly, then of
// three digits of the key, which tell any two logits apart. Each time the bin in which the running sum reaches what is
// wanted is the next to look into.
template <bool WEIGHTS>
DEVICE Kept select(Shared& shared, const Row& row, const Softmax& softmax, Kept among, u64 wanted, float top_p) {
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 first = 0, key = 0, known = 0;  // the first bin, and the bits of the key that are known
#pragma unroll 1
    for (u32 level = 0; level < 4; level++) {
        const u32 shift = level == 1 ? 21 : level == 2 ? 10 : 0, digits = level == 3 ? 1023 : BINS - 1;
        for (u32 i = threadIdx.x; i < BINS; i += THREADS) shared.low[i] = 0, shared.high[i] = 0;
        __syncthreads();
        each(row.logits, row.begin, row.end, threadIdx.x, THREADS, [&](u32 token, float logit) {
            const u32 own = key_of(logit);
            if (!(logit > -INFINITY_F) || ((own ^ key) & known) != 0 || !among.has(token, own)) return;
            u32 bin = softmax.bin(logit);
            if (level > 0) {
                if (bin != first) return;
                bin = ~(own >> shift) & digits;
            }
            if (WEIGHTS) {
                add_words(shared.low + bin, shared.high + bin, softmax.weight(logit));
            } else {
                atomicAdd(shared.low + bin, 1u);
            }
        });
        sync_cluster();
        u64 bins[4] = {0, 0, 0, 0};
#pragma unroll 1
        for (u32 peer = 0; peer < gridDim.x; peer++) {
            const uint4 low = *of_peer((const uint4*)shared.low + threadIdx.x, peer);
            bins[0] += low.x, bins[1] += low.y, bins[2] += low.z, bins[3] += low.w;
            if (WEIGHTS) {
                const uint4 high = *of_peer((const uint4*)shared.high + threadIdx.x, peer);
                bins[0] += (u64)high.x << 32, bins[1] += (u64)high.y << 32;
                bins[2] += (u64)high.z << 32, bins[3] += (u64)high.w << 32;
            }
        }
        const u64 four = bins[0] + bins[1] + bins[2] + bins[3], scanned = warp_scan(four);
        if (lane == 31) shared.sums[warp] = scanned;
        __syncthreads();
        u64 before = scanned - four, total = 0;
        for (u32 w = 0; w < WARPS; w++) {
            if (w < warp) before += shared.sums[w];
            total += shared.sums[w];
        }
        // The best is always kept.
        if (WEIGHTS && level == 0) wanted = max((u64)ceil((double)top_p * (double)total), 1ull);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            if (before < wanted && wanted <= before + bins[i]) {
                shared.bin = 4 * threadIdx.x + i, shared.before = before, shared.size = bins[i];
            }
            before += bins[i];
        }
        // From here on nobody reads this histogram.
        sync_cluster();
        if (total < wanted) return among;
        wanted -= shared.before;
        if (level == 0) {
            first = shared.bin;
        } else {
            key |= (~shared.bin & digits) << shift;
            known |= digits << shift;
        }
    }
    // All with this key have the same weight.
    const u64 weight = WEIGHTS ? softmax.weight(logit_of(key)) : 1;
    const u64 ties = (wanted + weight - 1) / weight;
    if (ties * weight >= shared.size) return Kept{key, key == among.key ? among.last : NO_TOKEN};
    const auto is_tie = [&](u32 token, float logit) -> u64 {
        const u32 own = key_of(logit);
        return own == key && among.has(token, own) ? 1 : 0;
    };
    return Kept{key, find(shared, row, is_tie, [&](u64) { return ties - 1; })};
}

struct DrawArgs {
    float* logits;  // [rows, stride]
    const Draw* draws;
    Change* changes;  // of all rows
    uint4* out;       // `Picked` of `sample.cu`
    u32* sampled;     // tokens for the next step
    const u32* tokens;  // of the step's rows
    u32 stride;
    u32 vocabulary;  // 2^19 at most, so that sums of weights fit
};

// Makes a change and keeps what was there before.
DEVICE void apply_one(const Row& row, const Draw& draw, Change& kept, const Change& change) {
    if (!row.has(change.token)) return;
    float logit = row.logits[change.token];
    kept.old = logit;
    if (change.kind & 1) logit = -INFINITY_F;
    logit = __fadd_rn(logit, change.bias);
    if (change.kind & 2) {
        logit = logit > 0.0f ? __fdiv_rn(logit, draw.repetition) : __fmul_rn(logit, draw.repetition);
    }
    const u32 count = change.kind >> 2;
    if (count) logit = __fsub_rn(logit, __fadd_rn(draw.presence, __fmul_rn(draw.frequency, (float)count)));
    row.logits[change.token] = logit;
}

// `own` is the token that counts as one more of the output, or none.
DEVICE void apply(const Row& row, const Draw& draw, Change* changes, u32 own) {
    bool found = false;
    for (u32 i = threadIdx.x; i < draw.changes; i += THREADS) {
        Change change = changes[i];
        if (change.token == own) change.kind = (change.kind + 4) | 2, found = true;
        apply_one(row, draw, changes[i], change);
    }
    found = __syncthreads_or(found);
    if (!found && threadIdx.x == 0 && row.has(own)) {
        Change& more = changes[draw.changes];
        more.token = own;
        apply_one(row, draw, more, Change{own, 0.0f, 6, 0.0f});
    }
    __syncthreads();
}

DEVICE u32 choose(Shared& shared, const Row& row, const Draw& draw, float max, u32 vocabulary) {
    const Softmax softmax(max, draw.temperature, draw.log_min_p);
    Kept kept{0, NO_TOKEN};
    if (draw.top_k != 0 && draw.top_k < vocabulary) {
        kept = select<false>(shared, row, softmax, kept, draw.top_k, 0.0f);
    }
    if (draw.top_p < 1.0f) kept = select<true>(shared, row, softmax, kept, 0, draw.top_p);
    const auto weigh = [&](u32 token, float logit) -> u64 {
        return kept.has_all() || kept.has(token, key_of(logit)) ? softmax.weight(logit) : 0;
    };
    const u64 uniform = draw.uniform;
    return find(shared, row, weigh, [&](u64 total) {
        return (__umul64hi(uniform, total) << (64 - UNIFORM_BITS)) | ((uniform * total) >> UNIFORM_BITS);
    });
}

// Grid: blocks of a cluster, rows.
KERNEL(THREADS, 2) draw(const DrawArgs args) {
    __shared__ __align__(16) Shared shared;
    let_dependents_start();
    wait_for_primary();
    const Draw& params = args.draws[blockIdx.y];
    if (params.task == NO_DRAW) return;
    const Row row(args.logits + (u64)blockIdx.y * args.stride, args.vocabulary);
    Change* changes = args.changes + params.first_change;
    apply(row, params, changes, params.own ? args.tokens[params.own - 1] : NO_TOKEN);
    const Best best = best_of(shared, row);
    // Where nothing is above minus infinity the token is 0.
    u32 token = best.logit > -INFINITY_F ? best.token : 0;
    if (params.temperature > 0.0f && best.logit > -INFINITY_F) {
        token = choose(shared, row, params, best.logit, args.vocabulary);
    }
    // Nobody leaves while others read its shared memory.
    sync_cluster();
    if (params.task == DRAW_AND_RESTORE) {
        for (u32 i = threadIdx.x; i < params.changes + (params.own != 0); i += THREADS) {
            if (row.has(changes[i].token)) row.logits[changes[i].token] = changes[i].old;
        }
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        args.sampled[blockIdx.y] = token;
        args.out[blockIdx.y] = make_uint4(token, 0, 0, 0);
    }
}

struct TopArgs {
    float* logits;  // [rows, stride]
    const Draw* draws;
    uint2* out;  // [rows, most]: tokens and logits, best first; those past the last are NO_TOKEN
    u32 stride;
    u32 vocabulary;
    u32 most;
    u32 unused;
};

// Grid: blocks of a cluster, rows.
KERNEL(THREADS, 1) top(const TopArgs args) {
    __shared__ __align__(16) Shared shared;
    let_dependents_start();
    wait_for_primary();
    const u32 wanted = args.draws[blockIdx.y].top;
    if (wanted == 0) return;
    const Row row(args.logits + (u64)blockIdx.y * args.stride, args.vocabulary);
    if (threadIdx.x == 0) shared.listed = 0;
    const Softmax softmax(best_of(shared, row).logit, 1.0f, 0.0f);
    const Kept kept = select<false>(shared, row, softmax, Kept{0, NO_TOKEN}, wanted, 0.0f);
    each(row.logits, row.begin, row.end, threadIdx.x, THREADS, [&](u32 token, float logit) {
        const u32 key = key_of(logit);
        if (!(logit > -INFINITY_F) || !kept.has(token, key)) return;
        // In the order of these numbers they are sorted.
        const u32 place = atomicAdd(&shared.listed, 1u);
        if (place < MOST_TOP) shared.list[place] = (u64)~key << 32 | token;
    });
    sync_cluster();
    if (blockIdx.x == 0 && threadIdx.x < wanted) {
        u32 total = 0, rank = 0;
        u64 own = 0;
        for (u32 peer = 0; peer < gridDim.x; peer++) {
            const u32 listed = *of_peer(&shared.listed, peer);
            if (threadIdx.x - total < listed) own = of_peer(shared.list, peer)[threadIdx.x - total];
            total += listed;
        }
        for (u32 peer = 0; peer < gridDim.x; peer++) {
            const u32 listed = *of_peer(&shared.listed, peer);
            const u64* list = of_peer(shared.list, peer);
            for (u32 i = 0; i < listed; i++) rank += list[i] < own ? 1 : 0;
        }
        uint2* out = args.out + (u64)blockIdx.y * args.most;
        if (threadIdx.x < total) {
            out[rank] = make_uint2((u32)own, __float_as_uint(logit_of(~(u32)(own >> 32))));
        } else {
            out[threadIdx.x] = make_uint2(NO_TOKEN, 0);
        }
    }
    sync_cluster();
}
