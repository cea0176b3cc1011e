// Kernels of `cuda/` as plain C++, to be run where there is no GPU: a thread of a block is a thread of the CPU, and the clusters of
// a grid run one after the other. In the place of `ptx.cuh`.
//
// It knows what the kernels use that are run so: barriers of clusters, blocks and warps, exchanges within a warp, and products of
// fragments as the PTX manual lays them out. It is slow and exact, and the sanitizers of a C++ compiler see every access.
#pragma once

#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

using std::max;
using std::min;
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct uint2 {
    u32 x, y;
};
struct alignas(16) uint4 {
    u32 x, y, z, w;
};
struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

#define DEVICE inline
#define KERNEL(threads, blocks) void
// For kernels without clusters: their blocks run one after the other, so one copy serves them all.
#define __shared__ static
#define DYNAMIC_SHARED(name) u8* const name = own_block().shared.get()
#define __align__(bytes) __attribute__((aligned(bytes)))

struct Index {
    u32 x, y, z;
};
inline thread_local Index threadIdx, blockIdx;
inline Index blockDim, gridDim;

// What the threads of a warp meet at, and what they hand each other there.
struct Warp {
    std::barrier<> meet{32};
    u64 handed[32];
    u32 fragments[32][6];
};

// The same of a block, and its dynamic shared memory: to the byte, so that the sanitizer sees who takes more.
struct Block {
    std::barrier<> meet;
    std::vector<std::unique_ptr<Warp>> warps;
    std::unique_ptr<u8, decltype(&std::free)> shared;

    Block(u32 threads, size_t bytes) : meet(threads), shared(allocate(bytes), std::free) {
        for (u32 w = 0; w < threads / 32; w++) warps.push_back(std::make_unique<Warp>());
        memset(shared.get(), 0xff, bytes);
    }

    static u8* allocate(size_t bytes) {
        void* memory = 0;
        if (posix_memalign(&memory, 1024, bytes)) abort();
        return (u8*)memory;
    }
};

// The cluster that runs.
inline std::vector<std::unique_ptr<Block>> blocks;
inline std::unique_ptr<std::barrier<>> cluster_meet;
inline thread_local u32 cluster_rank;

inline u32 lane_id() { return threadIdx.x % 32; }
inline Block& own_block() { return *blocks[cluster_rank]; }
inline Warp& own_warp() { return *own_block().warps[threadIdx.x / 32]; }
inline void sync_cluster() { cluster_meet->arrive_and_wait(); }
inline void __syncthreads() { own_block().meet.arrive_and_wait(); }
inline void __syncwarp() { own_warp().meet.arrive_and_wait(); }

inline float4 load_of_peer(const float* shared, u32 peer) {
    const size_t at = (const u8*)shared - own_block().shared.get();
    return *(const float4*)(blocks[peer]->shared.get() + at);
}

// How a kernel is launched besides its grid and threads: blocks of a cluster, bytes of dynamic shared memory.
struct More {
    u32 cluster = 1;
    size_t shared = 0;
};

// Runs a kernel, one cluster of neighbours in x after the other. A thread that returns leaves the barriers to the others.
template <class Kernel>
void launch(Index grid, u32 threads, Kernel kernel, More more = {}) {
    gridDim = grid, blockDim = {threads, 1, 1};
    for (u32 first = 0; first < grid.x * grid.y * grid.z; first += more.cluster) {
        cluster_meet = std::make_unique<std::barrier<>>(more.cluster * threads);
        blocks.clear();
        for (u32 rank = 0; rank < more.cluster; rank++) blocks.push_back(std::make_unique<Block>(threads, more.shared));
        std::vector<std::thread> running;
        for (u32 t = 0; t < more.cluster * threads; t++)
            running.emplace_back([=] {
                cluster_rank = t / threads;
                const u32 block = first + cluster_rank;
                threadIdx = {t % threads, 0, 0};
                blockIdx = {block % grid.x, block / grid.x % grid.y, block / grid.x / grid.y};
                kernel();
                cluster_meet->arrive_and_drop();
                own_block().meet.arrive_and_drop();
                own_warp().meet.arrive_and_drop();
            });
        for (auto& thread : running) thread.join();
    }
}

// What all lanes hand over, to each of them. No lane may have left.
template <class T, class Use>
auto exchange(T own, Use use) {
    static_assert(sizeof(T) <= 8);
    Warp& warp = own_warp();
    memcpy(&warp.handed[lane_id()], &own, sizeof(T));
    __syncwarp();
    auto of_lane = [&](u32 lane) {
        T theirs;
        memcpy(&theirs, &warp.handed[lane % 32], sizeof(T));
        return theirs;
    };
    auto result = use(of_lane);
    __syncwarp();
    return result;
}

template <class T>
T __shfl_sync(u32, T own, u32 lane) {
    return exchange(own, [=](auto of_lane) { return of_lane(lane); });
}

template <class T>
T __shfl_xor_sync(u32, T own, u32 mask) {
    return exchange(own, [=](auto of_lane) { return of_lane(lane_id() ^ mask); });
}

inline u32 __ballot_sync(u32, bool own) {
    return exchange(own, [](auto of_lane) {
        u32 all = 0;
        for (u32 lane = 0; lane < 32; lane++) all |= (u32)of_lane(lane) << lane;
        return all;
    });
}

inline u32 __reduce_or_sync(u32, u32 own) {
    return exchange(own, [](auto of_lane) {
        u32 all = 0;
        for (u32 lane = 0; lane < 32; lane++) all |= of_lane(lane);
        return all;
    });
}

inline u32 __reduce_max_sync(u32, u32 own) {
    return exchange(own, [](auto of_lane) {
        u32 most = 0;
        for (u32 lane = 0; lane < 32; lane++) most = std::max(most, (u32)of_lane(lane));
        return most;
    });
}

inline u32 atomicAdd(u32* at, u32 x) { return __atomic_fetch_add(at, x, __ATOMIC_SEQ_CST); }
inline void __threadfence() {}
inline u32 __ffs(u32 x) { return __builtin_ffs(x); }
inline u32 __byte_perm(u32 x, u32 y, u32 selector) {
    const u64 bytes = (u64)y << 32 | x;
    u32 all = 0;
    for (u32 i = 0; i < 4; i++) all |= (u32)(bytes >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
    return all;
}
inline float exp2_approx(float x) { return std::exp2(x); }
inline float reciprocal_approx(float x) { return 1.0f / x; }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
template <class T>
T __ldg(const T* p) {
    return *p;
}
template <class T>
T __ldcg(const T* p) {
    return *p;
}

inline float __uint_as_float(u32 bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// To the nearest bf16, of two as near the even one.
inline u16 round_bf16(float x) {
    u32 bits;
    memcpy(&bits, &x, 4);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

inline u32 pack_bf16(float low, float high) { return round_bf16(low) | (u32)round_bf16(high) << 16; }

// Kernels never overlap here.
inline void let_dependents_start() {}
inline void wait_for_primary() {}
inline uint4 load_once(const void* p) { return *(const uint4*)p; }
// Harmless anywhere on a device; here it shows whether it asks for what is there.
inline void prefetch_l2(const void* p) { (void)*(const volatile u8*)p; }

// Copies are there when they are waited for, which is as late as the kernels may reckon with. What lay there is gone at once, which
// is as early.
struct Copy {
    void* to;
    const void* from;  // null: zeros
};
inline thread_local std::vector<std::vector<Copy>> copies(1);

inline void copy_async(void* shared, const void* global, bool valid) {
    if (((u64)shared | (valid ? (u64)global : 0)) % 16) abort();
    memset(shared, 0xff, 16);
    copies.back().push_back({shared, valid ? global : 0});
}
inline void copy_commit() { copies.emplace_back(); }

template <int PENDING>
void copy_wait() {
    // The last group is not committed.
    while (copies.size() > PENDING + 1) {
        for (const Copy& copy : copies.front())
            if (copy.from)
                memcpy(copy.to, copy.from, 16);
            else
                memset(copy.to, 0, 16);
        copies.erase(copies.begin());
    }
}

inline void ldmatrix(u32 (&r)[4], const void* row) {
    exchange(row, [&](auto of_lane) {
        for (u32 i = 0; i < 4; i++) memcpy(&r[i], (const u8*)of_lane(8 * i + lane_id() / 4) + 4 * (lane_id() % 4), 4);
        return 0;
    });
}

inline void ldmatrix_transposed(u32 (&r)[4], const void* row) {
    exchange(row, [&](auto of_lane) {
        const u32 column = lane_id() / 4;
        auto element = [&](u32 at) -> u32 { return ((const u16*)of_lane(at))[column]; };
        for (u32 i = 0; i < 4; i++) {
            const u32 first = 8 * i + lane_id() % 4 * 2;
            r[i] = element(first) | element(first + 1) << 16;
        }
        return 0;
    });
}

inline u32 transpose8(u32 x) {
    return exchange(x, [](auto of_lane) {
        const u32 g = lane_id() / 4, q = lane_id() % 4, shift = g % 2 * 16;
        auto element = [&](u32 row) { return of_lane(4 * row + g / 2) >> shift & 0xffff; };
        return element(2 * q) | element(2 * q + 1) << 16;
    });
}

// c += a b, K = 16; the fragments are those of `ptx.cuh`.
inline void mma16(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    Warp& warp = own_warp();
    const u32 own[6] = {a0, a1, a2, a3, b0, b1}, g = lane_id() / 4, q = lane_id() % 4;
    memcpy(warp.fragments[lane_id()], own, sizeof(own));
    __syncwarp();
    auto element = [&](u32 lane, u32 place, u32 k) {
        return __uint_as_float(k % 2 ? warp.fragments[lane][place] & 0xffff0000u : warp.fragments[lane][place] << 16);
    };
    for (u32 e = 0; e < 4; e++) {
        const u32 row = g + e / 2 * 8, column = 2 * q + e % 2;
        float sum = 0.0f;
        for (u32 k = 0; k < 16; k++)
            sum += element(row % 8 * 4 + k % 8 / 2, row / 8 + k / 8 * 2, k) * element(column * 4 + k % 8 / 2, 4 + k / 8, k);
        c[e] += sum;
    }
    __syncwarp();
}

// Products of four warps, of which each makes its own sixteen rows. They read and write when they are waited for, as late as the
// kernels may reckon with; until then a result that is not added to is NaN.
#define HAS_GROUP_PRODUCTS

inline u64 shared_address(const void* shared) { return (u64)shared; }

struct SharedOperand {
    const u8* at;
    u64 leading, stride;

    SharedOperand(const void* at, u64 leading, u64 stride) : at((const u8*)at), leading(leading), stride(stride) {}
    SharedOperand behind(u32 bytes) const { return SharedOperand(at + bytes, leading, stride); }

    // Of `line` of those of 128 bytes, which begins a new group after each eight; sixteens of bytes have changed places.
    float element(const u8* line, u32 column) const {
        u64 address = (u64)line + 2 * column;
        address ^= address >> 3 & 0x70;
        u16 bits;
        memcpy(&bits, (const void*)address, 2);
        return __uint_as_float((u32)bits << 16);
    }

    // Where lines are K-long, and where a line is one K.
    float of_row(u32 row, u32 k) const { return element(at + row / 8 * stride + row % 8 * 128, k); }
    float of_column(u32 k, u32 column) const {
        return element(at + column / 64 * leading + k / 8 * stride + k % 8 * 128, column % 64);
    }
};

template <class A, class B>
void multiply_group_by(float (&d)[16][4], A a, B b) {
    for (u32 n = 0; n < 16; n++)
        for (u32 e = 0; e < 4; e++) {
            float sum = 0.0f;
            for (u32 k = 0; k < 16; k++) sum += a(lane_id() / 4 + e / 2 * 8, k) * b(8 * n + 2 * (lane_id() % 4) + e % 2, k);
            d[n][e] += sum;
        }
}

inline thread_local std::vector<std::vector<std::function<void()>>> products(1);
inline thread_local bool fenced;

inline void queue_product(std::function<void()> product) {
    if (!fenced) abort();
    products.back().push_back(std::move(product));
}

inline void multiply_group(float (&d)[16][4], SharedOperand a, SharedOperand b, bool add) {
    if (!add)
        for (auto& row : d) std::fill_n(row, 4, NAN);
    queue_product([&d, a, b, add] {
        if (!add) memset(d, 0, sizeof(d));
        const u32 warp = threadIdx.x / 32 % 4;
        multiply_group_by(
            d, [&](u32 row, u32 k) { return a.of_row(16 * warp + row, k); }, [&](u32 row, u32 k) { return b.of_row(row, k); });
    });
}

inline void multiply_group_transposed(float (&d)[16][4], const u32 (&own)[4], SharedOperand b) {
    queue_product([&d, &own, b] {
        Warp& warp = own_warp();
        memcpy(warp.fragments[lane_id()], own, sizeof(own));
        __syncwarp();
        auto a = [&](u32 row, u32 k) {
            const u32 pair = warp.fragments[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
            return __uint_as_float(k % 2 ? pair & 0xffff0000u : pair << 16);
        };
        multiply_group_by(d, a, [&](u32 column, u32 k) { return b.of_column(k, column); });
        __syncwarp();
    });
}

inline void group_fence() { fenced = true; }
inline void group_commit() { products.emplace_back(); }

template <int PENDING>
void group_wait() {
    // The last group is not committed.
    while (products.size() > PENDING + 1) {
        for (const auto& product : products.front()) product();
        products.erase(products.begin());
    }
    fenced = false;
}

inline void hold(float (&)[16][4]) {}
inline void publish_to_products() {}
