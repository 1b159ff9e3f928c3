// Shared by attention forward and backward: sizes, blocks and the product of blocks.
//
// A block of scores is kBlock queries x kBlock keys; it exists only in a buffer of one thread. Keys
// and values of one (batch, group) are packed once and serve all query heads of the group.
#pragma once

#include <initializer_list>

#include "micro.h"
#include "philox.h"

namespace kernels {

constexpr int64_t kBlock = 64;
constexpr int64_t kLine = kBlock + 16;  // row stride of a block of scores: rows spread over cache sets
static_assert(kBlock % kCols == 0 && kBlock % kRows == 0, "blocks hold whole register blocks");

struct AttentionSizes {
    int64_t queries, keys, batch, heads, groups, dim;
    int64_t mask_batch;  // 1 or batch
    bool causal;
    float scale;
    Dropout dropout;  // dropout.scale == 0: none

    int64_t padded_dim() const { return round_up(dim, kCols); }
    int64_t padded_keys() const { return round_up(keys, kBlock); }
    int64_t heads_per_group() const { return heads / groups; }
    int64_t query_stride() const { return batch * heads * dim; }
    int64_t key_stride() const { return batch * groups * dim; }
    // Keys that the queries before `query_end` can see.
    int64_t keys_before(int64_t query_end) const {
        if (!causal) return keys;
        const int64_t limit = query_end + keys - queries;
        return limit < 0 ? 0 : (limit < keys ? limit : keys);
    }
};

// One query block of one head.
struct QueryBlock {
    int64_t batch, head, first, count;
};

// C [rows, columns] (row stride c_stride) = or += A B; whole register blocks are computed, so the
// buffers hold rows and columns rounded up. A's register block number i starts at a + i * a_step.
template <int RowStride, int DepthStride>
inline void block_product(int64_t rows, int64_t columns, int64_t depth, const float* a,
                          int64_t a_step, const float* panels, int64_t panel_step, float* c,
                          int64_t c_stride, bool add) {
    for (int64_t column = 0; column < columns; column += kCols, panels += panel_step) {
        const float* left = a;
        for (int64_t row = 0; row < rows; row += kRows, left += a_step)
            multiply<RowStride, DepthStride>(depth, left, panels, c + row * c_stride + column,
                                             c_stride, add);
    }
}

// Rows of a [.., dim] matrix as left-hand panels [row panel][dim][kRows].
template <class T>
inline void pack_block_left(const T* rows, int64_t stride, int64_t count, int64_t dim, float* out) {
    for (int64_t row = 0; row < count; row += kRows, out += dim * kRows)
        pack_rows<kRows>(rows + row * stride, stride, count - row < kRows ? count - row : kRows,
                         dim, out);
}

// The transposed rows as right-hand panels [row panel][dim][kCols]: for products with rows^T.
template <class T>
inline void pack_transposed(const T* rows, int64_t stride, int64_t count, int64_t padded,
                            int64_t dim, float* out) {
    for (int64_t row = 0; row < padded; row += kCols, out += dim * kCols) {
        const int64_t left = count - row;
        pack_rows<kCols>(rows + row * stride, stride, left < 0 ? 0 : (left < kCols ? left : kCols),
                         dim, out);
    }
}

// The rows themselves as right-hand panels [dim panel][kBlock][kCols]: for products over the rows.
template <class T>
inline void pack_block_right(const T* rows, int64_t stride, int64_t count, int64_t dim,
                             float* out) {
    for (int64_t first = 0; first < dim; first += kCols, out += kBlock * kCols)
        pack_columns<kCols>(rows + first, stride, dim - first < kCols ? dim - first : kCols, count,
                            out);
}

// Scales one line of kBlock scores and hides keys; `query` and `key` are the position of its start.
inline void hide_line(const AttentionSizes& n, const uint8_t* mask, int64_t batch, int64_t query,
                      int64_t key, float* line) {
    const vf scale = splat(n.scale);
    for (int64_t i = 0; i < kBlock; i += kWidth) store(line + i, load(line + i) * scale);
    int64_t visible = n.keys_before(query + 1) - key;
    visible = visible < 0 ? 0 : (visible < kBlock ? visible : kBlock);
    for (int64_t i = visible; i < kBlock; ++i) line[i] = -INFINITY;
    if (mask) {
        const int64_t at = n.mask_batch == 1 ? 0 : batch;
        const uint8_t* hidden = mask + (at * n.queries + query) * n.keys + key;
        for (int64_t i = 0; i < visible; ++i) line[i] = hidden[i] ? -INFINITY : line[i];
    }
}

// Number of the score (query, key) in [B, N, S, S'], which names its dropout word.
inline uint64_t score_index(const AttentionSizes& n, int64_t batch, int64_t head, int64_t query,
                            int64_t key) {
    return static_cast<uint64_t>(((batch * n.heads + head) * n.queries + query) * n.keys + key);
}

}  // namespace kernels
