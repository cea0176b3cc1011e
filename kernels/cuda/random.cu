// Dummy weights: `elements` numbers, uniform in (-amplitude, amplitude), that depend on seed and place alone.

struct RandomArgs {
    u16* out;
    u64 elements;
    u64 seed;
    float amplitude;
    u32 columns;  // of a row that hold numbers
    u32 stride;   // elements of a row; the rest are zeros
    u32 unused;
};

// SplitMix64's finaliser.
DEVICE u64 mix(u64 z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

KERNEL(256, 1) random_fill(const RandomArgs args) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < args.elements; i += step) {
        float unit = (float)(mix(args.seed + i * 0x9e3779b97f4a7c15ull) >> 40) * (1.0f / 8388608.0f) - 1.0f;
        args.out[i] = i % args.stride < args.columns ? to_bf16(unit * args.amplitude) : 0;
    }
}
