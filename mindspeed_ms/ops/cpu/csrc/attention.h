// SPDX-License-Identifier: Apache-2.0
// Shared by attention forward and backward: sizes, blocks and the product of blocks.
//
// A block of scores is kBlock queries x kBlock keys; it exists only in a buffer of one thread. Keys
// and values of one (batch, group) are packed once and serve all query heads of the group.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "philox.h"
#include "tiles.h"

namespace kernels {

constexpr int64_t kBlock = 64;
constexpr int64_t kLine = kBlock + 16;  // row stride of a block of scores: rows spread over cache sets
static_assert(kBlock % kCols == 0 && kBlock % kRows == 0, "blocks hold whole register blocks");

// Where the scores lie in those of a whole attention [B, heads, queries, keys], of which this call
// computes a part; it names the dropout words.
struct ScorePlaces {
    int64_t heads, first_head, queries, keys;
    const int64_t *query_places, *key_places;  // null: 0, 1, 2, ...
};

// Keys that a query sees by its place: query i stands at key offset + i and sees keys from `left`
// before it to `right` after it.
struct Band {
    int64_t offset, left, right;  // no limit: kUnbounded
    // By row of the batch, null: keys [0, keys) and one offset.
    const int64_t *starts, *stops, *offsets;
};
constexpr int64_t kUnbounded = int64_t{1} << 40;

// What is done to scores before the softmax, in this order; see ops.attention.
struct Finish {
    float softcap;        // 0: none
    float divisor;        // of the scores where they are rounded
    int32_t storage;      // they are rounded to; -1: not
    int32_t rounds_weights;
    const float* slopes;  // [heads], null: none
    const void* bias;     // [bias_batch, bias_heads, queries, keys], null: none
    int32_t bias_storage, unused;
    int64_t bias_batch, bias_heads;  // 1 or all

    bool any() const { return softcap != 0.0f || storage >= 0 || slopes || bias; }
};

// Where keys and values lie, in units of one row of all groups.
struct KeyLayout {
    int64_t row_step, batch_step;  // from key to key, from one row of the batch to the next
    const int64_t* slots;          // of the rows of the batch among those in memory; null: in order
};

struct AttentionSizes {
    int64_t queries, keys, batch, heads, groups, dim, value_dim;
    int64_t mask_batch;  // 1 or batch
    float scale;
    Dropout dropout;  // dropout.scale == 0: none
    // Numbers of documents [document_batch, queries] and [document_batch, keys], never decreasing
    // along a row; null: one document.
    const int32_t *query_documents, *key_documents;
    int64_t document_batch;  // 1 or batch
    ScorePlaces places;
    Band band;
    Finish finish;
    KeyLayout layout;
    const float* sinks;  // [heads], a further logit of each head; null: none
    float* tops;         // [queries, batch, heads], largest score of each query; null: not wanted

    int64_t padded_dim() const { return round_up(dim, kCols); }
    int64_t padded_value_dim() const { return round_up(value_dim, kCols); }
    int64_t padded_keys() const { return round_up(keys, kBlock); }
    int64_t heads_per_group() const { return heads / groups; }
    int64_t query_stride() const { return batch * heads * dim; }
    int64_t out_stride() const { return batch * heads * value_dim; }
    int64_t key_stride() const { return layout.row_step * groups * dim; }
    int64_t value_stride() const { return layout.row_step * groups * value_dim; }
    // Beginning of the queries of a head, of its results, of the keys and the values of a group.
    int64_t query_at(int64_t b, int64_t head) const { return (b * heads + head) * dim; }
    int64_t out_at(int64_t b, int64_t head) const { return (b * heads + head) * value_dim; }
    int64_t group_at(int64_t b, int64_t group) const {
        return (layout.slots ? layout.slots[b] : b) * layout.batch_step * groups + group;
    }
    int64_t key_at(int64_t b, int64_t group) const { return group_at(b, group) * dim; }
    int64_t value_at(int64_t b, int64_t group) const { return group_at(b, group) * value_dim; }
    const int32_t* documents_of_queries(int64_t b) const {
        return query_documents + (document_batch == 1 ? 0 : b) * queries;
    }
    const int32_t* documents_of_keys(int64_t b) const {
        return key_documents + (document_batch == 1 ? 0 : b) * keys;
    }
    // Key at which a query stands.
    int64_t place(int64_t b, int64_t query) const {
        return query + (band.offsets ? band.offsets[b] : band.offset);
    }
    // Keys [first_key(b, first), keys_before(b, end)) are those that queries [first, end) can see.
    int64_t first_key(int64_t b, int64_t query) const {
        const int64_t start = band.starts ? band.starts[b] : 0;
        return std::max(start, place(b, query) - band.left);
    }
    int64_t keys_before(int64_t b, int64_t query_end) const {
        const int64_t stop = band.stops ? band.stops[b] : keys;
        return std::max(int64_t{0}, std::min(stop, place(b, query_end) + band.right));
    }
};

// One query block of one head.
struct QueryBlock {
    int64_t batch, head, first, count;
};

// How blocks are multiplied. Operands of a product are packed blocks of kBlock rows of a matrix
// [.., dim]: on the left as they are, on the right transposed (for products with rows^T) or as they
// are (for products over the rows). `left_floats`, `transposed_floats` and `right_floats` are their
// sizes. A block of scores is a left operand too, or its transpose is.

// With vector registers, from the scores as they lie in memory.
struct VectorMath {
    static int64_t left_floats(int64_t dim) { return kBlock * dim; }
    static int64_t transposed_floats(int64_t dim) { return kBlock * dim; }
    static int64_t right_floats(int64_t dim) { return kBlock * round_up(dim, kCols); }
    static int64_t score_floats() { return 0; }

    // Panels [row panel][dim][kRows].
    template <class T>
    static void pack_left(const T* rows, int64_t stride, int64_t count, int64_t dim, float* out) {
        for (int64_t row = 0; row < count; row += kRows, out += dim * kRows)
            pack_rows<kRows>(rows + row * stride, stride,
                             count - row < kRows ? count - row : kRows, dim, out);
    }
    // Panels [row panel][dim][kCols].
    template <class T>
    static void pack_transposed(const T* rows, int64_t stride, int64_t count, int64_t dim,
                                float* out) {
        for (int64_t row = 0; row < kBlock; row += kCols, out += dim * kCols) {
            const int64_t left = count - row;
            pack_rows<kCols>(rows + row * stride, stride,
                             left < 0 ? 0 : (left < kCols ? left : kCols), dim, out);
        }
    }
    // Panels [dim panel][kBlock][kCols].
    template <class T>
    static void pack_right(const T* rows, int64_t stride, int64_t count, int64_t dim, float* out) {
        for (int64_t first = 0; first < dim; first += kCols, out += kBlock * kCols)
            pack_columns<kCols>(rows + first, stride, dim - first < kCols ? dim - first : kCols,
                                count, out);
    }

    // Whole register blocks are computed, so the buffers hold rows and columns rounded up.
    template <int RowStride, int DepthStride>
    static void product(int64_t rows, int64_t columns, int64_t depth, const float* a,
                        int64_t a_step, const float* panels, int64_t panel_step, float* c,
                        int64_t c_stride, bool add) {
        for (int64_t column = 0; column < columns; column += kCols, panels += panel_step) {
            const float* left = a;
            for (int64_t row = 0; row < rows; row += kRows, left += a_step)
                multiply<RowStride, DepthStride>(depth, left, panels, c + row * c_stride + column,
                                                 c_stride, add);
        }
    }
    // scores [count, kBlock] = left transposed^T
    static void scores(int64_t count, int64_t dim, const float* left, const float* transposed,
                       float* scores) {
        product<1, kRows>(round_up(count, kRows), kBlock, dim, left, dim * kRows, transposed,
                          dim * kCols, scores, kLine, false);
    }
    // c [count, dim] = or += scores [count, depth] right
    static void weighted(int64_t count, int64_t depth, int64_t dim, const float* scores, float*,
                         const float* right, float* c, bool add) {
        product<kLine, 1>(round_up(count, kRows), dim, depth, scores, kRows * kLine, right,
                          kBlock * kCols, c, round_up(dim, kCols), add);
    }
    // c [depth, dim] += scores [count, depth]^T right
    static void weighted_back(int64_t count, int64_t depth, int64_t dim, const float* scores,
                              float*, const float* right, float* c) {
        product<1, kLine>(round_up(depth, kRows), dim, count, scores, kRows, right, kBlock * kCols,
                          c, round_up(dim, kCols), true);
    }
    struct Session {
        FlushTiny flush;
    };
};

#if defined(HAS_TILES)

// On the tile unit. Scores are rounded to 16 bits where that is more than the storage type has.
template <class T>
struct TileMath {
    static constexpr int kOwn = kParts<T>;
    static constexpr int kScore = kOwn == 3 ? 3 : 2;
    static_assert(kPanel == kCols && kBlock == 2 * kPanel, "results are padded alike");

    static int64_t left_floats(int64_t dim) { return 2 * panel_bytes<kOwn>(dim) / 4; }
    static int64_t transposed_floats(int64_t dim) { return 2 * panel_bytes<kOwn>(dim) / 4; }
    static int64_t right_floats(int64_t dim) {
        return round_up(dim, kPanel) / kPanel * panel_bytes<kOwn>(kBlock) / 4;
    }
    static int64_t score_floats() { return 2 * panel_bytes<kScore>(kBlock) / 4; }

    template <int Parts, bool Along, bool Right, class From>
    static void pack(const From* from, int64_t stride, int64_t items, int64_t depth, int64_t all,
                     float* out) {
        char* to = reinterpret_cast<char*>(out);
        const int64_t bytes = panel_bytes<Parts>(depth);
        for (int64_t item = 0; item < all; item += kPanel, to += bytes) {
            const int64_t left = items - item;
            pack_panel<Parts, Along, Right>(from + item * (Along ? stride : 1), stride,
                                            left < 0 ? 0 : (left < kPanel ? left : kPanel), depth,
                                            to);
        }
    }
    static void pack_left(const T* rows, int64_t stride, int64_t count, int64_t dim, float* out) {
        pack<kOwn, true, false>(rows, stride, count, dim, kBlock, out);
    }
    static void pack_transposed(const T* rows, int64_t stride, int64_t count, int64_t dim,
                                float* out) {
        pack<kOwn, true, true>(rows, stride, count, dim, kBlock, out);
    }
    static void pack_right(const T* rows, int64_t stride, int64_t count, int64_t dim, float* out) {
        const int64_t step = panel_bytes<kOwn>(kBlock) / 4;
        if (count <= kTileDepth)  // the second half of the depth is not packed below
            std::memset(out, 0, static_cast<size_t>(right_floats(dim)) * sizeof(float));
        for (int64_t first = 0; first < dim; first += kPanel, out += step)
            pack_panel<kOwn, false, true>(rows + first, stride,
                                          dim - first < kPanel ? dim - first : kPanel, count,
                                          reinterpret_cast<char*>(out));
    }

    template <int Left>
    static void product(int64_t columns, int64_t depth, const float* left, const float* right,
                        float* c, int64_t c_stride, bool add) {
        const char* lefts = reinterpret_cast<const char*>(left);
        const char* rights = reinterpret_cast<const char*>(right);
        for (int64_t column = 0; column < columns; column += kPanel) {
            for (int64_t row = 0; row < kBlock; row += kPanel)
                panel_product<Left, kOwn>(ceil_div(depth, kTileDepth),
                                          lefts + row / kPanel * panel_bytes<Left>(depth), rights,
                                          c + row * c_stride + column, c_stride * 4, add);
            rights += panel_bytes<kOwn>(depth);
        }
    }
    static void scores(int64_t, int64_t dim, const float* left, const float* transposed,
                       float* scores) {
        product<kOwn>(kBlock, dim, left, transposed, scores, kLine, false);
    }
    static void weighted(int64_t, int64_t, int64_t dim, const float* scores, float* packed,
                         const float* right, float* c, bool add) {
        pack<kScore, true, false>(scores, kLine, kBlock, kBlock, kBlock, packed);
        product<kScore>(dim, kBlock, packed, right, c, round_up(dim, kPanel), add);
    }
    static void weighted_back(int64_t, int64_t, int64_t dim, const float* scores, float* packed,
                              const float* right, float* c) {
        pack<kScore, false, false>(scores, kLine, kBlock, kBlock, kBlock, packed);
        product<kScore>(dim, kBlock, packed, right, c, round_up(dim, kPanel), true);
    }
    // The time in which one thread uses the unit.
    struct Session {
        Session() { begin_tiles(); }
        ~Session() { end_tiles(); }
        FlushTiny flush;
    };
};

#endif

// Whether some query of a block can see a key of [key, key + count): their documents overlap.
inline bool shares_document(const AttentionSizes& n, QueryBlock block, int64_t key, int64_t count) {
    if (!n.query_documents) return true;
    const int32_t* queries = n.documents_of_queries(block.batch) + block.first;
    const int32_t* keys = n.documents_of_keys(block.batch) + key;
    return queries[0] <= keys[count - 1] && keys[0] <= queries[block.count - 1];
}

// visit(key, count) for every block of keys of which the queries of a block can see some.
template <class Visit>
inline void each_key_block(const AttentionSizes& n, QueryBlock block, Visit visit) {
    const int64_t keys = n.keys_before(block.batch, block.first + block.count);
    for (int64_t key = n.first_key(block.batch, block.first) / kBlock * kBlock; key < keys;
         key += kBlock) {
        const int64_t count = std::min(keys - key, kBlock);
        if (shares_document(n, block, key, count)) visit(key, count);
    }
}

inline vf rounded(vf value, int32_t storage) {
    with_storage(storage, [&](auto type) {
        decltype(type) stored[kWidth];
        store(stored, value);
        value = load(stored);
    });
    return value;
}

// Scores of one query as they enter the softmax, from the products; `slope`, where it is wanted,
// becomes their derivatives by the scaled products. `key` is the position of the start.
inline void finish_line(const AttentionSizes& n, int64_t batch, int64_t head, int64_t query,
                        int64_t key, float* line, float* slope) {
    const Finish& f = n.finish;
    const float per_token = f.slopes ? f.slopes[head] : 0.0f;
    vf distance;
    for (int lane = 0; lane < kWidth; ++lane) distance[lane] = static_cast<float>(lane);
    distance += static_cast<float>(key - n.place(batch, query));
    for (int64_t i = 0; i < kBlock; i += kWidth, distance += static_cast<float>(kWidth)) {
        vf score = load(line + i) * n.scale, derivative = splat(1.0f);
        if (f.softcap != 0.0f) {
            const vf share = vtanh(score / f.softcap);
            score = share * f.softcap;
            derivative = 1.0f - share * share;
        }
        if (f.slopes) score -= vabs(distance) * per_token;
        store(line + i, score);
        if (slope) store(slope + i, derivative);
    }
    if (f.bias) {
        const int64_t row = (f.bias_batch == 1 ? 0 : batch) * f.bias_heads +
                            (f.bias_heads == 1 ? 0 : head);
        const int64_t at = (row * n.queries + query) * n.keys + key;
        with_storage(f.bias_storage, [&](auto type) {
            const auto* bias = static_cast<const decltype(type)*>(f.bias) + at;
            vector_loop(std::min(n.keys - key, kBlock), [&](int64_t i, int64_t lanes) {
                store(line + i, load(line + i) + load(bias + i, lanes));
            });
        });
    }
    if (f.storage >= 0)
        for (int64_t i = 0; i < kBlock; i += kWidth)
            store(line + i, rounded(load(line + i) / f.divisor, f.storage) * f.divisor);
}

// Whether some key of a block of keys is hidden from some query of a block, or may be.
inline bool hides_some(const AttentionSizes& n, const uint8_t* mask, QueryBlock block,
                       int64_t key) {
    return mask || n.query_documents ||
           n.keys_before(block.batch, block.first + 1) < key + kBlock ||
           n.first_key(block.batch, block.first + block.count - 1) > key;
}

// Lanes of a line of kBlock scores outside [begin, end) become -infinity.
inline void keep_lanes(int64_t begin, int64_t end, float* line) {
    vi place;
    for (int lane = 0; lane < kWidth; ++lane) place[lane] = lane;
    const int32_t first = static_cast<int32_t>(begin), last = static_cast<int32_t>(end);
    for (int64_t i = 0; i < kBlock; i += kWidth, place += kWidth)
        store(line + i,
              ((place >= first) & (place < last)) ? load(line + i) : splat(-INFINITY));
}

// Hides keys of one line of kBlock scores; `query` and `key` are the position of its start.
inline void hide_line(const AttentionSizes& n, const uint8_t* mask, int64_t batch, int64_t query,
                      int64_t key, float* line) {
    const int64_t visible =
        std::min(std::max(n.keys_before(batch, query + 1) - key, int64_t{0}), kBlock);
    const int64_t begin = std::max(n.first_key(batch, query) - key, int64_t{0});
    if (visible < kBlock || begin > 0)
        keep_lanes(std::min(begin, kBlock), visible, line);
    if (mask) {
        const int64_t at = n.mask_batch == 1 ? 0 : batch;
        const uint8_t* hidden = mask + (at * n.queries + query) * n.keys + key;
        for (int64_t i = 0; i < visible; ++i) line[i] = hidden[i] ? -INFINITY : line[i];
    }
    if (n.query_documents && visible > 0) {
        const int32_t own = n.documents_of_queries(batch)[query];
        const int32_t* documents = n.documents_of_keys(batch) + key;
        if (documents[0] != own || documents[visible - 1] != own)
            for (int64_t i = 0; i < visible; ++i)
                line[i] = documents[i] == own ? line[i] : -INFINITY;
    }
}

// Dropout factors of the scores of one query with `count` keys.
inline void keep_line(const AttentionSizes& n, int64_t batch, int64_t head, int64_t query,
                      int64_t key, int64_t count, float* keep) {
    const ScorePlaces& p = n.places;
    const int64_t place = p.query_places ? p.query_places[query] : query;
    const uint64_t row = static_cast<uint64_t>(
        ((batch * p.heads + p.first_head + head) * p.queries + place) * p.keys);
    if (!p.key_places) {
        keep_factors(n.dropout, row + static_cast<uint64_t>(key), count, keep);
        return;
    }
    for (int64_t done = 0; done < count;) {
        const int64_t* places = p.key_places + key + done;
        int64_t run = 1;
        while (done + run < count && places[run] == places[0] + run) ++run;
        keep_factors(n.dropout, row + static_cast<uint64_t>(places[0]), run, keep + done);
        done += run;
    }
}

// Measures, when that is switched on, how long this thread computes and how much of it in products.
class Stopwatch {
  public:
    Stopwatch();
    ~Stopwatch();
    // Runs `work`, which multiplies blocks.
    template <class Work>
    void product(Work work) {
        if (!on_) return work();
        const double start = now();
        work();
        products_ += now() - start;
    }

  private:
    static double now();
    bool on_;
    double start_ = 0.0, products_ = 0.0;
};

// Index of the log-sum-exp of a query in [S, B, N].
inline int64_t lse_index(const AttentionSizes& n, QueryBlock block, int64_t row) {
    return ((block.first + row) * n.batch + block.batch) * n.heads + block.head;
}

}  // namespace kernels
