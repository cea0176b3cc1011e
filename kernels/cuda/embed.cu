// residual[row] = table[token of row]. Grid: rows.

struct EmbedArgs {
    const u16* table;    // [vocabulary, stride]
    float* residual;     // [rows, residual_stride]
    u32* tokens;         // one a row; the top bit marks a sample row of the step before, until it is known
    const u32* sampled;  // tokens of the step before
    u32 stride;
    u32 residual_stride;
    u32 width;
    u32 vocabulary;
};

KERNEL(256, 1) embed(const EmbedArgs args) {
    let_dependents_start();
    wait_for_primary();
    u32 token = args.tokens[blockIdx.x];
    const bool drawn = token >> 31;
    if (drawn) token = args.sampled[token & 0x7fffffffu];
    __syncthreads();
    // A draw may ask for it when this step's tokens have replaced the ones before.
    if (drawn && threadIdx.x == 0) args.tokens[blockIdx.x] = token;
    // The host has checked the tokens that it knows; a drawn one is below the head's rows.
    if (token >= args.vocabulary) token = 0;
    const u16* from = args.table + (u64)token * args.stride;
    float* to = args.residual + (u64)blockIdx.x * args.residual_stride;
    for (u32 i = threadIdx.x * 8; i < args.width; i += blockDim.x * 8) {
        float v[8];
        widen8(*(const uint4*)(from + i), v);
        *(float4*)(to + i) = make_float4(v[0], v[1], v[2], v[3]);
        *(float4*)(to + i + 4) = make_float4(v[4], v[5], v[6], v[7]);
    }
}
