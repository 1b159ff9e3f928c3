// SPDX-License-Identifier: Apache-2.0
// Attention of a few queries to many keys, forward only: every key and value is read once.
//
// One task owns a part of the keys of one (batch, group) and computes all queries of its heads; the
// parts are merged by their log-sum-exp. Nothing outside a row's range of keys is read.
//
// Source: Dao et al., 2023 (Flash-Decoding).
#include "attention.h"

namespace kernels {

namespace {

constexpr int64_t kLeastPart = 256;  // keys; less is not worth a task of its own
constexpr int kTileRows = 4, kTileVectors = 4;
constexpr int64_t kAhead = 8;  // keys that are fetched before they are used

// Rows are the queries of the heads of one group: row = query * heads_per_group + head.
struct Rows {
    int64_t count, dim, value_dim;  // padded sizes
    explicit Rows(const AttentionSizes& n)
        : count(n.queries * n.heads_per_group()),
          dim(round_up(n.dim, kWidth)),
          value_dim(round_up(n.value_dim, kWidth * kTileVectors)) {}
};

// Sums over some keys: values by weight, the sum of the weights, and the score they are relative to.
struct Part {
    float *values, *sum, *top;
    static int64_t floats(const Rows& rows) { return rows.count * (rows.value_dim + 2); }
    Part(const Rows& rows, float* at)
        : values(at), sum(at + rows.count * rows.value_dim), top(sum + rows.count) {}
};

struct Range {
    int64_t first, last;
};

// Keys of a group lie pages apart, where the processor does not look ahead by itself.
template <class T>
inline void look_ahead(const T* from, int64_t elements) {
    constexpr int64_t line = 64 / sizeof(T);
    for (int64_t i = 0; i < elements; i += line) __builtin_prefetch(from + i);
}

// scores[row][key] for Count rows; lanes of keys that are not there stay as they are.
template <int Count, class T>
void score_rows(const float* queries, int64_t padded, const T* keys, int64_t stride, int64_t dim,
                int64_t count, float* scores) {
    for (int64_t key = 0; key < count; ++key, keys += stride) {
        look_ahead(keys + kAhead * stride, dim);
        vf sums[Count] = {};
        vector_loop(dim, [&](int64_t i, int64_t lanes) {
            const vf part = load(keys + i, lanes);
#pragma GCC unroll 4
            for (int row = 0; row < Count; ++row) sums[row] += part * load(queries + row * padded + i);
        });
        for (int row = 0; row < Count; ++row) scores[row * kBlock + key] = sum_of(sums[row]);
    }
}

// values[row] += weights[row][key] * value of the key, for Count rows.
template <int Count, class T>
void weigh_rows(const float* weights, const T* from, int64_t stride, int64_t dim, int64_t count,
                float* values, int64_t padded) {
    for (int64_t first = 0; first < dim; first += kTileVectors * kWidth) {
        vf sums[Count][kTileVectors];
        for (int row = 0; row < Count; ++row)
            for (int v = 0; v < kTileVectors; ++v)
                sums[row][v] = load(values + row * padded + first + v * kWidth);
        const bool whole = first + kTileVectors * kWidth <= dim;
        for (int64_t key = 0; key < count; ++key) {
            const T* value = from + key * stride + first;
            look_ahead(value + kAhead * stride, kTileVectors * kWidth);
            vf parts[kTileVectors];
#pragma GCC unroll 4
            for (int v = 0; v < kTileVectors; ++v) {
                const int64_t left = dim - first - v * kWidth;
                parts[v] = whole ? load(value + v * kWidth)
                                 : left > 0 ? load(value + v * kWidth, left) : vf{};
            }
#pragma GCC unroll 4
            for (int row = 0; row < Count; ++row) {
                const vf weight = splat(weights[row * kBlock + key]);
#pragma GCC unroll 4
                for (int v = 0; v < kTileVectors; ++v) sums[row][v] += weight * parts[v];
            }
        }
        for (int row = 0; row < Count; ++row)
            for (int v = 0; v < kTileVectors; ++v)
                store(values + row * padded + first + v * kWidth, sums[row][v]);
    }
}

// step(row, std::integral_constant) over all rows, in tiles.
template <class Step>
void tiles_of_rows(int64_t rows, Step step) {
    int64_t row = 0;
    for (; row + kTileRows <= rows; row += kTileRows)
        step(row, std::integral_constant<int, kTileRows>{});
    for (; row < rows; ++row) step(row, std::integral_constant<int, 1>{});
}

// Scores of one row -> weights; `part` is brought to the new maximum.
void soften(const AttentionSizes& n, float scale, float* line, const Rows& rows, int64_t row,
            const Part& part) {
    vf best = load(line) * scale;
    for (int64_t i = kWidth; i < kBlock; i += kWidth) best = vmax(load(line + i) * scale, best);
    const float before = part.top[row], top = std::max(before, max_of(best));
    const vf shift = splat(top == -INFINITY ? 0.0f : top);
    vf total = vf{};
    for (int64_t i = 0; i < kBlock; i += kWidth) {
        const vf weight = vexp(load(line + i) * scale - shift);
        store(line + i, weight);
        total += weight;
    }
    const float factor = before == -INFINITY ? 0.0f : std::exp(before - top);
    part.sum[row] = part.sum[row] * factor + sum_of(total);
    part.top[row] = top;
    if (factor == 1.0f) return;
    float* values = part.values + row * rows.value_dim;
    for (int64_t i = 0; i < n.value_dim; i += kWidth) store(values + i, load(values + i) * factor);
}

template <class T>
void attend_part(const T* q, const T* k, const T* v, const AttentionSizes& n, int64_t b,
                 int64_t group, Range range, const Rows& rows, const Part& part) {
    [[maybe_unused]] const FlushTiny flush;
    float* queries = scratch(kAttention, rows.count * (rows.dim + kBlock));
    float* scores = queries + rows.count * rows.dim;
    const int64_t per_group = n.heads_per_group();
    std::memset(queries, 0, static_cast<size_t>(rows.count * rows.dim) * sizeof(float));
    for (int64_t row = 0; row < rows.count; ++row) {
        const int64_t head = group * per_group + row % per_group;
        const T* from = q + n.query_at(b, head) + row / per_group * n.query_stride();
        vector_loop(n.dim, [&](int64_t i, int64_t lanes) {
            store(queries + row * rows.dim + i, load(from + i, lanes), lanes);
        });
        part.top[row] = -INFINITY;
        part.sum[row] = 0.0f;
    }
    std::memset(part.values, 0, static_cast<size_t>(rows.count * rows.value_dim) * sizeof(float));
    const bool finishes = n.finish.any();
    for (int64_t key = range.first; key < range.last; key += kBlock) {
        const int64_t count = std::min(range.last - key, kBlock);
        const T* keys = k + n.key_at(b, group) + key * n.key_stride();
        const T* values = v + n.value_at(b, group) + key * n.value_stride();
        tiles_of_rows(rows.count, [&](int64_t row, auto tile) {
            score_rows<tile()>(queries + row * rows.dim, rows.dim, keys, n.key_stride(), n.dim,
                               count, scores + row * kBlock);
        });
        for (int64_t row = 0; row < rows.count; ++row) {
            float* line = scores + row * kBlock;
            const int64_t query = row / per_group, head = group * per_group + row % per_group;
            for (int64_t i = count; i < kBlock; ++i) line[i] = 0.0f;
            if (finishes) finish_line(n, b, head, query, key, line, nullptr);
            const int64_t begin = std::max(n.first_key(b, query) - key, int64_t{0});
            const int64_t end =
                std::min(std::max(n.keys_before(b, query + 1) - key, int64_t{0}), count);
            if (begin > 0 || end < kBlock) keep_lanes(std::min(begin, kBlock), end, line);
            soften(n, finishes ? 1.0f : n.scale, line, rows, row, part);
        }
        tiles_of_rows(rows.count, [&](int64_t row, auto tile) {
            weigh_rows<tile()>(scores + row * kBlock, values, n.value_stride(), n.value_dim, count,
                               part.values + row * rows.value_dim, rows.value_dim);
        });
    }
}

// The parts of one (batch, group), one after the other in memory, and the sinks.
template <class T>
void merge_parts(const AttentionSizes& n, int64_t b, int64_t group, const Rows& rows, float* parts,
                 int64_t count, T* out) {
    for (int64_t row = 0; row < rows.count; ++row) {
        const int64_t head = group * n.heads_per_group() + row % n.heads_per_group();
        float top = n.sinks ? n.sinks[head] : -INFINITY;
        for (int64_t i = 0; i < count; ++i)
            top = std::max(top, Part(rows, parts + i * Part::floats(rows)).top[row]);
        float sum = n.sinks ? std::exp(n.sinks[head] - top) : 0.0f;
        Part first(rows, parts);
        float* values = first.values + row * rows.value_dim;
        for (int64_t i = 0; i < count; ++i) {
            const Part part(rows, parts + i * Part::floats(rows));
            const float factor = part.sum[row] > 0.0f ? std::exp(part.top[row] - top) : 0.0f;
            sum += part.sum[row] * factor;
            const float* from = part.values + row * rows.value_dim;
            for (int64_t d = 0; d < n.value_dim; d += kWidth) {
                const vf sofar = i == 0 ? vf{} : load(values + d);
                store(values + d, sofar + load(from + d) * factor);
            }
        }
        const vf inverse = splat(sum > 0.0f ? 1.0f / sum : 0.0f);
        T* to = out + n.out_at(b, head) + row / n.heads_per_group() * n.out_stride();
        vector_loop(n.value_dim, [&](int64_t i, int64_t lanes) {
            store(to + i, load(values + i, lanes) * inverse, lanes);
        });
    }
}

// Keys that some query of a row of the batch sees.
Range seen(const AttentionSizes& n, int64_t b) {
    const int64_t first = n.first_key(b, 0);
    return {first, std::max(first, n.keys_before(b, n.queries))};
}

template <class T>
void decode(const T* q, const T* k, const T* v, T* out, const AttentionSizes& n) {
    const Rows rows(n);
    int64_t longest = 0, all = 0;
    for (int64_t b = 0; b < n.batch; ++b) {
        const int64_t length = seen(n, b).last - seen(n, b).first;
        longest = std::max(longest, length);
        all += length;
    }
    const int64_t pairs = n.batch * n.groups;
    const int team = threads_for(all * n.groups * (n.dim + n.value_dim));
    const int64_t wanted = team == 1 ? 1 : ceil_div(4 * team, pairs);
    const int64_t parts = std::max(int64_t{1}, std::min(wanted, longest / kLeastPart));
    float* partial = scratch(kSharedPanels, pairs * parts * Part::floats(rows));
#pragma omp parallel for schedule(dynamic) num_threads(team) if (team > 1)
    for (int64_t task = 0; task < pairs * parts; ++task) {
        const int64_t pair = task / parts, number = task % parts, b = pair / n.groups;
        const Range range = seen(n, b);
        const int64_t length = range.last - range.first;
        const Range own{range.first + length * number / parts,
                        range.first + length * (number + 1) / parts};
        attend_part(q, k, v, n, b, pair % n.groups, own, rows,
                    Part(rows, partial + task * Part::floats(rows)));
    }
    for (int64_t pair = 0; pair < pairs; ++pair)
        merge_parts(n, pair / n.groups, pair % n.groups, rows,
                    partial + pair * parts * Part::floats(rows), parts, out);
}

}  // namespace

// q [S, B, N, D]; k and v as the layout of the sizes says; out [S, B, N, E]
void decode_heads(int32_t storage, const void* q, const void* k, const void* v, void* out,
                  const AttentionSizes& sizes) {
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        decode(static_cast<const T*>(q), static_cast<const T*>(k), static_cast<const T*>(v),
               static_cast<T*>(out), sizes);
    });
}

}  // namespace kernels

using namespace kernels;

EXPORT void attention_decode(int32_t storage, const void* q, const void* k, const void* v,
                             void* out, const AttentionSizes* sizes) {
    if (sizes->queries == 0 || sizes->batch == 0 || sizes->heads == 0) return;
    decode_heads(storage, q, k, v, out, *sizes);
}
