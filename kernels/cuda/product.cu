// y = x Wᵀ for few rows: W streams once from memory to the tensor cores.
//
// A block has so many outputs and a share of K; the blocks of a cluster have the other shares and add up through each other's
// shared memory. Its stages are a ring of copies of W and x. W lay there before the step, so its copies begin while the
// kernels before still run.
// Grid: outputs / OUTPUTS, times the cluster's blocks.

#define WARPS 8
#define PRODUCT_THREADS (WARPS * 32)
#define STAGES 3
#define MOST_SHARES 4

struct ProductArgs {
    const u16* x;  // [rows, inputs]
    const u16* w;  // [outputs, inputs]
    void* y;       // [rows, outputs]: bf16, or f32 if `wide`
    u32 rows;
    u32 inputs;  // a multiple of 8
    u32 outputs;  // a multiple of 8
    u32 shares;   // of K: the cluster's blocks
    u32 wide;
    u32 unused;
};

// `CHUNK`: of K a stage. 256 or 512 bytes of a row are near each other in memory.
template <u32 ROWS, u32 OUTPUTS, u32 CHUNK>
struct Product {
    struct Stage {
        u16 w[OUTPUTS * CHUNK];
        u16 x[ROWS * CHUNK];
    };
    static constexpr u32 ACROSS = OUTPUTS % 32 == 0 ? OUTPUTS / 32 : 1;  // warps that have outputs of their own
    static constexpr u32 PARTS = WARPS / ACROSS;                         // of a chunk's K, for the others
    static constexpr u32 M = OUTPUTS / ACROSS / 16;                      // of sixteen outputs of a warp
    static constexpr u32 N = ROWS / 8;                                   // of eight rows
    static constexpr u32 EIGHTS = CHUNK / 8;
    static constexpr u32 PITCH = OUTPUTS + 4;  // of a row of sums: no two lanes of a store share a bank

    const ProductArgs& args;
    Stage* const ring;
    const u32 first;  // output
    const u32 share;
    const u32 first_k;
    u32 chunks;
    float acc[M][N][4] = {};

    DEVICE Product(const ProductArgs& args, u8* shared)
        : args(args), ring((Stage*)shared), first(blockIdx.x / args.shares * OUTPUTS), share(blockIdx.x % args.shares),
          first_k(share * each(args) * CHUNK) {
        const u32 all = (args.inputs + CHUNK - 1) / CHUNK, before = share * each(args);
        chunks = all > before ? min(all - before, each(args)) : 0;
    }

    DEVICE static u32 each(const ProductArgs& args) {
        return ((args.inputs + CHUNK - 1) / CHUNK + args.shares - 1) / args.shares;
    }

    // Where eight elements lie: neighbouring rows begin at different banks.
    DEVICE static u32 place(u32 row, u32 eight) { return row * CHUNK + ((eight ^ (row % 8)) * 8); }

    template <u32 COUNT>
    DEVICE void copy(u16* to, const u16* from, u32 rows, u32 stage) const {
        const u32 row = threadIdx.x / EIGHTS, eight = threadIdx.x % EIGHTS;
        constexpr u32 STEP = PRODUCT_THREADS / EIGHTS;
        const u32 k = first_k + stage * CHUNK + eight * 8;
        from += (u64)row * args.inputs + k;
#pragma unroll
        for (u32 i = 0; i < COUNT; i += STEP) {
            if (COUNT - i < STEP && row >= COUNT - i) break;
            const bool valid = row + i < rows && k < args.inputs;
            copy_async(to + place(row + i, eight), valid ? from + (u64)i * args.inputs : args.w, valid);
        }
    }

    DEVICE void copy_w(u32 stage) const {
        copy<OUTPUTS>(ring[stage % STAGES].w, args.w + (u64)first * args.inputs, args.outputs - first, stage);
    }

    DEVICE void copy_x(u32 stage) const { copy<ROWS>(ring[stage % STAGES].x, args.x, args.rows, stage); }

    // x comes later than W.
    DEVICE void begin() {
#pragma unroll
        for (u32 i = 0; i < STAGES - 1; i++)
            if (i < chunks) copy_w(i);
        wait_for_primary();
#pragma unroll
        for (u32 i = 0; i < STAGES - 1; i++) {
            if (i < chunks) copy_x(i);
            copy_commit();
        }
    }

    DEVICE void multiply_chunk(const Stage& stage) {
        const u32 warp = threadIdx.x / 32, first = warp / ACROSS * (EIGHTS / PARTS);
#pragma unroll
        for (u32 k = 0; k < EIGHTS / PARTS; k += 4) multiply_32(stage, warp % ACROSS * M * 16, first + k);
    }

    // The outputs from `m` on, 32 of K from 8 `k` on.
    DEVICE void multiply_32(const Stage& stage, u32 m, u32 k) {
        const u32 lane = threadIdx.x % 32;
        // For each sixteen of K a pair of registers for each eight rows.
        u32 b[2][N][2];
#pragma unroll
        for (u32 n = 0; n < N; n += 2)
#pragma unroll
            for (u32 step = 0; step < 2; step++) {
                u32 r[4];
                if (N == 1) {
                    if (step == 1) break;
                    ldmatrix(r, stage.x + place(lane % 8, k + lane / 8));
                    b[0][0][0] = r[0], b[0][0][1] = r[1], b[1][0][0] = r[2], b[1][0][1] = r[3];
                } else {
                    ldmatrix(r, stage.x + place(n * 8 + lane % 8 + lane / 16 * 8, k + step * 2 + lane / 8 % 2));
                    b[step][n][0] = r[0], b[step][n][1] = r[1];
                    b[step][(n + 1) % N][0] = r[2], b[step][(n + 1) % N][1] = r[3];
                }
            }
#pragma unroll
        for (u32 step = 0; step < 2; step++)
#pragma unroll
            for (u32 i = 0; i < M; i++) {
                u32 a[4];
                ldmatrix(a, stage.w + place(m + i * 16 + lane % 16, k + step * 2 + lane / 16));
#pragma unroll
                for (u32 n = 0; n < N; n++)
                    mma16(acc[i][n], a[0], a[1], a[2], a[3], b[step][n][0], b[step][n][1]);
            }
    }

    DEVICE void run() {
        begin();
        for (u32 stage = 0; stage < chunks; stage++) {
            copy_wait<STAGES - 2>();
            __syncthreads();
            // Not sooner: blocks of the next product would lie where those of this one leave room, and so unevenly.
            if (stage == (ROWS == 8 ? chunks * 3 / 4 : chunks / 2)) let_dependents_start();
            const u32 next = stage + STAGES - 1;
            if (next < chunks) copy_w(next), copy_x(next);
            copy_commit();
            multiply_chunk(ring[stage % STAGES]);
        }
        copy_wait<0>();
        __syncthreads();
        finish((float*)ring);
    }

    // Adds up what the warps and the cluster's blocks have, and stores it.
    DEVICE void finish(float* sums) {
        constexpr u32 FOURS = OUTPUTS / 4;
        put(sums);
        __syncthreads();
        for (u32 at = threadIdx.x; at < args.rows * FOURS; at += PRODUCT_THREADS) {
            float* to = sums + at / FOURS * PITCH + at % FOURS * 4;
            float4 sum = *(float4*)to;
#pragma unroll
            for (u32 part = 1; part < PARTS; part++) sum = add(sum, *(float4*)(to + part * ROWS * PITCH));
            *(float4*)to = sum;
        }
        sync_cluster();
        const u32 own = FOURS / args.shares;
        for (u32 at = threadIdx.x; at < args.rows * own; at += PRODUCT_THREADS) {
            const u32 row = at / own, column = (share * own + at % own) * 4;
            // All loads are under way before the first sum.
            float4 parts[MOST_SHARES], sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
            for (u32 peer = 0; peer < MOST_SHARES; peer++)
                parts[peer] = load_of_peer(sums + row * PITCH + column, peer < args.shares ? peer : share);
#pragma unroll
            for (u32 peer = 0; peer < MOST_SHARES; peer++)
                if (peer < args.shares) sum = add(sum, parts[peer]);
            store(row, first + column, sum);
        }
        // Nobody leaves while another reads its sums.
        if (args.shares > 1) sync_cluster();
    }

    DEVICE static float4 add(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

    // A warp's sums, in the place of its part of K.
    DEVICE void put(float* sums) const {
        const u32 warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
        float* to = sums + (warp / ACROSS * ROWS + 2 * q) * PITCH + warp % ACROSS * M * 16 + g;
#pragma unroll
        for (u32 i = 0; i < M; i++)
#pragma unroll
            for (u32 n = 0; n < N; n++)
#pragma unroll
                for (u32 e = 0; e < 4; e++) to[(n * 8 + e % 2) * PITCH + i * 16 + e / 2 * 8] = acc[i][n][e];
    }

    DEVICE void store(u32 row, u32 column, float4 sum) const {
        const u64 at = (u64)row * args.outputs + column;
        const float v[4] = {sum.x, sum.y, sum.z, sum.w};
        const bool whole = column + 4 <= args.outputs && at % 4 == 0;
        if (args.wide) {
            float* y = (float*)args.y + at;
            if (whole) *(float4*)y = sum;
#pragma unroll
            for (u32 i = 0; i < 4; i++)
                if (!whole && column + i < args.outputs) y[i] = v[i];
        } else {
            u16* y = (u16*)args.y + at;
            if (whole) *(uint2*)y = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
#pragma unroll
            for (u32 i = 0; i < 4; i++)
                if (!whole && column + i < args.outputs) y[i] = to_bf16(v[i]);
        }
    }
};

template <u32 ROWS, u32 OUTPUTS, u32 CHUNK>
DEVICE void product(const ProductArgs& args) {
    DYNAMIC_SHARED(shared);
    Product<ROWS, OUTPUTS, CHUNK>(args, shared).run();
}

// By rows and outputs. Two blocks of these share a multiprocessor,
KERNEL(PRODUCT_THREADS, 2) product8_128(const ProductArgs args) { product<8, 128, 128>(args); }
KERNEL(PRODUCT_THREADS, 2) product16_128(const ProductArgs args) { product<16, 128, 128>(args); }
// and a block of these has one for itself.
KERNEL(PRODUCT_THREADS, 1) product8_64(const ProductArgs args) { product<8, 64, 256>(args); }
KERNEL(PRODUCT_THREADS, 1) product16_64(const ProductArgs args) { product<16, 64, 256>(args); }
KERNEL(PRODUCT_THREADS, 1) product32_64(const ProductArgs args) { product<32, 64, 256>(args); }
KERNEL(PRODUCT_THREADS, 1) product8_80(const ProductArgs args) { product<8, 80, 256>(args); }
KERNEL(PRODUCT_THREADS, 1) product16_80(const ProductArgs args) { product<16, 80, 256>(args); }
KERNEL(PRODUCT_THREADS, 1) product32_80(const ProductArgs args) { product<32, 80, 256>(args); }
