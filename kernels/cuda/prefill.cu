// `prefill.cuh` by products of a warp each, which every device has. A warp has 32 rows (16 where heads are large), so that what
// it reads of K and V in shared memory serves two products.

#define THREADS 128

// Rows of D elements, padded by 16 bytes so that eight rows of a matrix lie in different banks.
template <int D>
struct Tiles {
    static const int STRIDE = D + 8;
    static const int KEYS = D > 128 ? 32 : 64;
    static const int PARTS = D > 128 ? 1 : 2;  // of a warp, each 16 rows
    static const int WARP_ROWS = 16 * PARTS;
    static const int ROWS = THREADS / 32 * WARP_ROWS;
    u16* q;
    u16* k;
    u16* v;

    DEVICE Tiles(u8* memory) : q((u16*)memory), k(q + ROWS * STRIDE), v(k + KEYS * STRIDE) {}

    typedef KeyPlaces<D, KEYS, THREADS> Places;

    DEVICE static void load(const PrefillArgs& args, const u32* places, u32 keys, const u16* cache, u16* to) {
        u16* own = to + threadIdx.x / Places::CHUNKS * STRIDE + threadIdx.x % Places::CHUNKS * 8;
        Places::load(args, places, keys, cache, own, Places::STEP * STRIDE);
        copy_commit();
    }

    // s = q Kᵀ of a warp's rows.
    DEVICE void multiply_keys(Scores<KEYS> (&s)[PARTS]) const {
        const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const u16* of_q = q + (warp * WARP_ROWS + lane % 16) * STRIDE + lane / 16 * 8;
        const u16* of_k = k + (lane / 16 * 8 + lane % 8) * STRIDE + lane / 8 % 2 * 8;
#pragma unroll
        for (u32 i = 0; i < D; i += 16) {
            u32 a[PARTS][4];
#pragma unroll
            for (u32 m = 0; m < PARTS; m++) ldmatrix(a[m], of_q + m * 16 * STRIDE + i);
#pragma unroll
            for (u32 n = 0; n < KEYS / 16; n++) {
                u32 b[4];
                ldmatrix(b, of_k + n * 16 * STRIDE + i);
#pragma unroll
                for (u32 m = 0; m < PARTS; m++) {
                    mma16(s[m][2 * n], a[m][0], a[m][1], a[m][2], a[m][3], b[0], b[1]);
                    mma16(s[m][2 * n + 1], a[m][0], a[m][1], a[m][2], a[m][3], b[2], b[3]);
                }
            }
        }
    }

    // acc += weights V
    DEVICE void add_values(const Scores<KEYS> (&s)[PARTS], SixteenRows<D> (&rows)[PARTS]) const {
        const u32 lane = threadIdx.x % 32;
        const u16* of_v = v + lane % 16 * STRIDE + lane / 16 * 8;
#pragma unroll
        for (u32 n = 0; n < KEYS / 16; n++) {
            u32 a[PARTS][4];
#pragma unroll
            for (u32 m = 0; m < PARTS; m++) pack_weights(s[m], n, a[m]);
#pragma unroll
            for (u32 i = 0; i < D; i += 16) {
                u32 b[4];
                ldmatrix_transposed(b, of_v + n * 16 * STRIDE + i);
#pragma unroll
                for (u32 m = 0; m < PARTS; m++) {
                    mma16(rows[m].acc[i / 8], a[m][0], a[m][1], a[m][2], a[m][3], b[0], b[1]);
                    mma16(rows[m].acc[i / 8 + 1], a[m][0], a[m][1], a[m][2], a[m][3], b[2], b[3]);
                }
            }
        }
    }
};

template <int D>
DEVICE void prefill(const PrefillArgs& args) {
    typedef Tiles<D> T;
    const u32 KEYS = T::KEYS, ROWS = T::ROWS;
    // Of two blocks of keys in turns.
    __shared__ __align__(16) u32 places[2][KEYS];
    __shared__ u32 positions[ROWS];
    DYNAMIC_SHARED(memory);
    const T tiles(memory);
    auto find = [&](u32 first, u32 end) {
        return T::Places::find(args, args.cache.block_tables + args.tiles[blockIdx.y].first_block, first, end);
    };
    auto places_from = [&](u32 first) { return places[first / KEYS % 2]; };
    u32 first, end;
    {
        const PrefillTile tile = args.tiles[blockIdx.y];
        const Span<ROWS, KEYS> span(args, tile, positions);
        first = span.first, end = span.end;
        T::Places::note(places_from(first), find(first, end));
        __syncthreads();
        auto place = [&](u32 r, u32 chunk) { return tiles.q + r * T::STRIDE + 8 * chunk; };
        load_queries<D, ROWS, THREADS>(args, tile, positions, place);
        T::load(args, places_from(first), end - first, args.cache.k, tiles.k);
    }
    const u32 of_warp = threadIdx.x / 32 * T::WARP_ROWS;
    SixteenRows<D> rows[T::PARTS];
    for (; first < end; first += KEYS) {
        T::load(args, places_from(first), end - first, args.cache.v, tiles.v);
        const u32 next = find(first + KEYS, end);
        copy_wait<1>();
        __syncthreads();
        Scores<KEYS> s[T::PARTS] = {};
        tiles.multiply_keys(s);
        T::Places::note(places_from(first + KEYS), next);
        __syncthreads();
        // Past the last key this loads zeros, and keeps the count of copies.
        T::load(args, places_from(first + KEYS), max(end, first + KEYS) - (first + KEYS), args.cache.k, tiles.k);
#pragma unroll
        for (u32 m = 0; m < T::PARTS; m++) {
            float factor[2];
            mask<KEYS>(args.window, positions + of_warp + 16 * m, first, s[m]);
            if (rows[m].soften(args.scale * LOG2_E, s[m], factor)) rows[m].rescale(factor);
        }
        copy_wait<1>();
        __syncthreads();
        tiles.add_values(s, rows);
        __syncthreads();
    }
    copy_wait<0>();
    const PrefillTile tile = args.tiles[blockIdx.y];
#pragma unroll
    for (u32 m = 0; m < T::PARTS; m++)
        rows[m].store(args, tile, of_warp + 16 * m, positions + of_warp + 16 * m);
}

KERNEL(128, 2) prefill64(const PrefillArgs args) { prefill<64>(args); }
KERNEL(128, 2) prefill128(const PrefillArgs args) { prefill<128>(args); }
KERNEL(128, 1) prefill256(const PrefillArgs args) { prefill<256>(args); }
