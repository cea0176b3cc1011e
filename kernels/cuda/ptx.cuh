// Instructions that CUDA C++ offers only through NVIDIA's headers, and what surrounds them.
//
// Fragments of a 16x8x16 product, as the PTX manual numbers them, for lane l with g = l / 4 and q = l % 4:
//   A (16 x 16): a0 = row g, columns 2q and 2q+1; a1 = row g+8; a2 = row g, columns 2q+8 and 2q+9; a3 = row g+8 of those.
//   B (16 x 8):  b0 = rows 2q and 2q+1 of column g; b1 = rows 2q+8 and 2q+9.
//   C (16 x 8):  c0, c1 = row g, columns 2q and 2q+1; c2, c3 = row g+8.
// The order of K may be changed freely if A and B are changed alike: that is how lanes load 16 bytes at once.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE __device__ __forceinline__
#define KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) u8 name[]

// Two f32 as bf16, round to nearest even.
DEVICE u32 pack_bf16(float low, float high) {
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

DEVICE float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

DEVICE float reciprocal_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// c += a b, K = 16.
DEVICE void mma16(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// A kernel that was launched early may start from here on; it waits for this one's end before it reads what this one
// writes. Without such a kernel, and where the device knows none, these do nothing.
DEVICE void let_dependents_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

DEVICE void wait_for_primary() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

DEVICE void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// What is read once: it leaves the first-level cache to others.
DEVICE uint4 load_once(const void* p) {
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}

DEVICE u32 shared_address(const void* shared) { return (u32)__cvta_generic_to_shared(shared); }

// Four 8x8 matrices of 16-bit elements; lanes 8i .. 8i+7 hold the addresses of matrix i's rows.
DEVICE void ldmatrix(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

DEVICE void ldmatrix_transposed(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Transposes an 8x8 matrix that lies across a warp: lane l holds row g, columns 2q and 2q+1.
DEVICE u32 transpose8(u32 x) {
    u32 y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

// 16 bytes to shared memory behind the caller's back; zeros unless `valid`.
DEVICE void copy_async(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(global), "r"(valid ? 16 : 0)
                 : "memory");
}

// All threads of a cluster, or of a block where the device knows none, have come here, and see what the others stored.
DEVICE void sync_cluster() {
#if __CUDA_ARCH__ >= 900
    __syncwarp();
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    __syncthreads();
#endif
}

// What lies there in the shared memory of a cluster's block.
DEVICE float4 load_of_peer(const float* shared, u32 peer) {
#if __CUDA_ARCH__ >= 900
    u32 at;
    float4 v;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(shared_address(shared)), "r"(peer));
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(at)
                 : "memory");
    return v;
#else
    return *(const float4*)shared;
#endif
}

// The same place in the shared memory of another block of the cluster; there is none where the device knows no clusters.
template <typename T>
DEVICE const T* of_peer(const T* shared, u32 peer) {
#if __CUDA_ARCH__ >= 900
    u64 at;
    asm volatile("mapa.u64 %0, %1, %2;" : "=l"(at) : "l"(shared), "r"(peer));
    return (const T*)at;
#else
    return shared;
#endif
}

DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `PENDING` committed groups are under way.
template <int PENDING>
DEVICE void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Hopper's products of four warps, 64 rows by 128 columns, K = 16. A tile of an operand in shared memory has rows of 128 bytes,
// whose sixteens of bytes change places with the row, from an address that 1,024 divides. Of the result, warp w of the group has
// rows 16 w .. as fragments of `mma16`, eight columns each. Products run behind the caller's back: what they read and write may
// be touched again when they have been waited for.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define HAS_GROUP_PRODUCTS

struct SharedOperand {
    u64 descriptor;

    // `leading`: bytes from 64 columns to the next, where rows are K; `stride`: from eight rows to the next.
    DEVICE SharedOperand(const void* at, u64 leading, u64 stride)
        : descriptor((u64)(shared_address(at) & 0x3ffff) >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | 1ull << 62) {}

    // The same so many bytes further.
    DEVICE SharedOperand behind(u32 bytes) const {
        SharedOperand other = *this;
        other.descriptor += bytes >> 4;
        return other;
    }
};

#define FOUR(d, n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define SIXTEEN(d, n) FOUR(d, n), FOUR(d, n + 1), FOUR(d, n + 2), FOUR(d, n + 3)
#define ALL_OF(d) SIXTEEN(d, 0), SIXTEEN(d, 4), SIXTEEN(d, 8), SIXTEEN(d, 12)
#define NAMES_OF_ALL                                                                        \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// d = a bᵀ, or d += a bᵀ if `add`; the rows of both are K-long.
DEVICE void multiply_group(float (&d)[16][4], SharedOperand a, SharedOperand b, bool add) {
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NAMES_OF_ALL "}, %64, %65, add, 1, 1, 0, 0;\n}"
                 : ALL_OF(d)
                 : "l"(a.descriptor), "l"(b.descriptor), "r"((u32)add));
}

// d += a b, the rows of b being K; `a` as fragments of `mma16`.
DEVICE void multiply_group_transposed(float (&d)[16][4], const u32 (&a)[4], SharedOperand b) {
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NAMES_OF_ALL
                 "}, {%64, %65, %66, %67}, %68, add, 1, 1, 1;\n}"
                 : ALL_OF(d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.descriptor), "r"(1));
}

// Registers that were written are seen by the products that follow.
DEVICE void group_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void group_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most `PENDING` committed groups of products run.
template <int PENDING>
DEVICE void group_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Results are read behind this, not before.
DEVICE void hold(float (&d)[16][4]) { asm volatile("" : ALL_OF(d)::"memory"); }

// What this thread stored in shared memory is seen by products behind the next barrier.
DEVICE void publish_to_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
#endif
