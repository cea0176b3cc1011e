// The paged cache: K and V of a layer are [blocks, kv_heads, block_size, d_padded] each, so a head's tokens of one block
// are neighbours.
#pragma once

struct Paged {
    const u16* k;
    const u16* v;
    const u32* block_tables;
    u32 kv_heads;
    u32 block_size;
    u32 d;         // elements a head, even
    u32 d_padded;  // rounded up to 8; what lies past d is zero
};

// Row number of a key of kv head `head`, in rows of `d_padded` elements.
DEVICE u64 cache_row(const Paged& cache, const u32* table, u32 head, u32 key) {
    u32 block = key / cache.block_size, offset = key % cache.block_size;
    return ((u64)table[block] * cache.kv_heads + head) * cache.block_size + offset;
}
