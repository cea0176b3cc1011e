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
