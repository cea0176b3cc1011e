// What all kernels share: bf16 in registers, loads of eight elements and of four, sums over warps.
#pragma once

#define FULL_WARP 0xffffffffu
#define INFINITY_F __uint_as_float(0x7f800000u)
#define LOG2_E 1.4426950408889634f

DEVICE float low_f32(u32 pair) { return __uint_as_float(pair << 16); }
DEVICE float high_f32(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
DEVICE float to_f32(u16 x) { return __uint_as_float((u32)x << 16); }
DEVICE u16 to_bf16(float x) { return (u16)pack_bf16(x, 0.0f); }

DEVICE bool aligned16(const void* p) { return ((u64)p & 15) == 0; }

// Elements from `p`: the first `valid` of eight, then zeros.
DEVICE uint4 load8_raw(const u16* p, int valid) {
    if (valid >= 8 && aligned16(p)) return *(const uint4*)p;
    u32 words[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 low = 2 * i < valid ? p[2 * i] : 0, high = 2 * i + 1 < valid ? p[2 * i + 1] : 0;
        words[i] = low | (high << 16);
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

DEVICE void widen8(uint4 raw, float (&v)[8]) {
    v[0] = low_f32(raw.x), v[1] = high_f32(raw.x), v[2] = low_f32(raw.y), v[3] = high_f32(raw.y);
    v[4] = low_f32(raw.z), v[5] = high_f32(raw.z), v[6] = low_f32(raw.w), v[7] = high_f32(raw.w);
}

DEVICE void load8(const u16* p, int valid, float (&v)[8]) { widen8(load8_raw(p, valid), v); }

// Stores the first `valid` of eight.
DEVICE void store8(u16* p, int valid, const float (&v)[8]) {
    if (valid >= 8 && aligned16(p)) {
        *(uint4*)p = make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]),
                                pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (i < valid) p[i] = to_bf16(v[i]);
}

// Four elements whose row is a multiple of four.
DEVICE void widen4(uint2 raw, float (&v)[4]) {
    v[0] = low_f32(raw.x), v[1] = high_f32(raw.x), v[2] = low_f32(raw.y), v[3] = high_f32(raw.y);
}

DEVICE void store4(u16* p, const float (&v)[4]) { *(uint2*)p = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])); }

DEVICE void load_floats(const float* from, float (&v)[4]) {
    const float4 four = *(const float4*)from;
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
}

DEVICE float warp_sum(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(FULL_WARP, x, offset);
    return x;
}

// Over four neighbouring lanes.
DEVICE float sum_of_quad(float x) {
    x += __shfl_xor_sync(FULL_WARP, x, 1);
    return x + __shfl_xor_sync(FULL_WARP, x, 2);
}
