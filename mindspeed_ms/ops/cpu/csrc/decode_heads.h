// SPDX-License-Identifier: Apache-2.0
// Attention of decode_layers.cpp: to projected keys and values, and to narrow vectors.
//
// Source: DeepSeek-AI, 2024, DeepSeek-V2, section 2.1.2 and appendix C (narrow vectors, and queries
// that take in the matrix of the keys).
#pragma once

#include "attention.h"
#include "decode_stack.h"

// Defined in attention_forward.cpp.
EXPORT void attention_forward(int32_t storage, const void* q, const void* k, const void* v,
                              const uint8_t* mask, void* out, float* lse,
                              const kernels::AttentionSizes* sizes);

namespace kernels {

// Defined in attention_decode.cpp.
void decode_heads(int32_t storage, const void* q, const void* k, const void* v, void* out,
                  const AttentionSizes& sizes);

// Splits [R queries, key, value] per group, turns queries and keys, writes the cache.
template <class T>
void take_apart(const Stack& n, const Layer& layer, const float* normed, Arena arena, T* queries) {
    float* mixed = arena.take(n.rows * layer.qkv.out);
    multiply_rows<T>(normed, n.rows, layer.qkv, mixed);
    const int64_t per_group = n.heads / n.groups, width = (per_group + 2) * n.dim;
    each_row(n.rows, layer.qkv.out, [&](int64_t row) {
        const float* cos = layer.cos ? layer.cos + row * n.rotated : nullptr;
        const float* sin = layer.sin ? layer.sin + row * n.rotated : nullptr;
        const int64_t place = (n.slots[row] * n.room + n.offsets[row]) * n.groups;
        if (n.normalizes_jointly) {
            float* first = mixed + row * layer.qkv.out;
            normalize_parts(first, n.groups, per_group * n.dim, width, layer.q_norm);
            normalize_parts(first + per_group * n.dim, n.groups, n.dim, width, layer.k_norm);
        }
        for (int64_t group = 0; group < n.groups; ++group) {
            float* own = mixed + (row * n.groups + group) * width;
            for (int64_t head = 0; head < per_group + 2; ++head) {
                float* t = own + head * n.dim;
                const bool is_query = head < per_group, is_value = head > per_group;
                Norm norm = is_query ? layer.q_norm : layer.k_norm;
                if (norm.weight && !n.normalizes_jointly && !is_value) {
                    const int64_t number = is_query ? group * per_group + head : group;
                    if (n.norms_of_heads) norm.weight += number * n.dim;
                    normalize_row(t, n.dim, norm, t);
                }
                if (n.clip > 0.0f) clip(t, n.dim, n.clip);
                if (cos && !is_value) rotate_head(t, cos, sin, n.rotated, n.interleaved != 0);
            }
            copy(own, per_group * n.dim, queries + (row * n.heads + group * per_group) * n.dim);
            const int64_t at = (place + group) * n.dim;
            copy(own + per_group * n.dim, n.dim, static_cast<T*>(layer.keys) + at);
            copy(own + (per_group + 1) * n.dim, n.dim, static_cast<T*>(layer.values) + at);
        }
    });
}

// The keys that a token keeps: its narrow vector, and the rotated channels. The queries of all heads,
// [rows, heads, plain + rotated], are what the memory that comes back holds.
template <class T>
const float* narrow_down(const Stack& n, const Layer& layer, const float* normed, Arena* arena) {
    const Latent& own = *layer.latent;
    const int64_t turned = n.dim - own.rank, width = own.plain + turned;
    float* q = arena->take(n.rows * own.q_up.out);
    float* both = arena->take(n.rows * n.dim);
    if (own.q_down.weight) {
        float* narrow_q = arena->take(n.rows * own.q_down.out);
        multiply_rows<T>(normed, n.rows, own.q_down, narrow_q);
        if (own.q_norm.weight)
            normalize(narrow_q, n.rows, own.q_down.out, own.q_norm, narrow_q);
        multiply_rows<T>(narrow_q, n.rows, own.q_up, q);
    } else {
        multiply_rows<T>(normed, n.rows, own.q_up, q);
    }
    multiply_rows<T>(normed, n.rows, own.kv_down, both);
    each_row(n.rows, own.q_up.out + n.dim, [&](int64_t row) {
        const float* cos = layer.cos ? layer.cos + row * n.rotated : nullptr;
        const float* sin = layer.sin ? layer.sin + row * n.rotated : nullptr;
        float* narrow = both + row * n.dim;
        if (own.kv_norm.weight) normalize_row(narrow, own.rank, own.kv_norm, narrow);
        if (cos) {
            rotate_head(narrow + own.rank, cos, sin, turned, n.interleaved != 0);
            for (int64_t head = 0; head < n.heads; ++head)
                rotate_head(q + (row * n.heads + head) * width + own.plain, cos, sin, turned,
                            n.interleaved != 0);
        }
        const int64_t place = n.slots[row] * n.room + n.offsets[row];
        copy(narrow, n.dim, static_cast<T*>(layer.keys) + place * n.dim);
    });
    return q;
}

// The matrix of a head's keys, or of its values, which stand below them.
template <class T>
Linear part_of(const Latent& own, int64_t head, bool values) {
    const int64_t first = head * (own.plain + own.value_dim) + (values ? own.plain : 0);
    Linear part = own.kv_up;
    part.weight = static_cast<const T*>(own.kv_up.weight) + first * own.rank;
    if (part.scales) part.scales += first;
    part.out = values ? own.value_dim : own.plain;
    return part;
}

// y [Count, rank] = x [Count, plain] weight, for rows of x and y that are so far apart.
template <int Count, class T>
void combine(const float* x, int64_t x_step, const Linear& keys, float* y, int64_t y_step) {
    constexpr int kVectors = 4;
    const T* weight = static_cast<const T*>(keys.weight);
    for (int64_t first = 0; first < keys.in; first += kVectors * kWidth) {
        vf sums[Count][kVectors] = {};
        const int64_t left = keys.in - first;
        for (int64_t i = 0; i < keys.out; ++i) {
            vf w[kVectors];
            for (int v = 0; v < kVectors; ++v) {
                const int64_t lanes = std::min<int64_t>(left - v * kWidth, kWidth);
                w[v] = lanes > 0 ? load(weight + i * keys.in + first + v * kWidth, lanes) : vf{};
            }
            const float scale = keys.scales ? keys.scales[i] : 1.0f;
#pragma GCC unroll 4
            for (int row = 0; row < Count; ++row) {
                const vf value = splat(x[row * x_step + i] * scale);
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v) sums[row][v] += value * w[v];
            }
        }
        for (int row = 0; row < Count; ++row)
            for (int v = 0; v < kVectors; ++v)
                if (left > v * kWidth)
                    store(y + row * y_step + first + v * kWidth, sums[row][v],
                          std::min<int64_t>(left - v * kWidth, kWidth));
    }
}

// The queries of narrow vectors, whose products with them are those of the heads' keys.
template <class W, class T>
void absorb(const Stack& n, const Latent& own, const float* q, float* wide, T* queries) {
    const int64_t turned = n.dim - own.rank, width = own.plain + turned;
    parallel_ranges(n.heads, n.rows * own.plain * own.rank, [&](int64_t begin, int64_t end) {
        for (int64_t head = begin; head < end; ++head) {
            const Linear keys = part_of<W>(own, head, false);
            const float* from = q + head * width;
            float* to = wide + head * n.dim;
            const int64_t x_step = n.heads * width, y_step = n.heads * n.dim;
            int64_t row = 0;
            for (; row + 4 <= n.rows; row += 4)
                combine<4, W>(from + row * x_step, x_step, keys, to + row * y_step, y_step);
            for (; row < n.rows; ++row)
                combine<1, W>(from + row * x_step, x_step, keys, to + row * y_step, y_step);
            for (row = 0; row < n.rows; ++row) {
                copy(from + row * x_step + own.plain, turned, to + row * y_step + own.rank);
                copy(to + row * y_step, n.dim, queries + row * y_step + head * n.dim);
            }
        }
    });
}

// out [rows, heads, value_dim]: the values of the heads, from sums of narrow vectors.
template <class W, class T>
void raise(const Stack& n, const Latent& own, const T* results, float* narrow, float* out) {
    parallel_ranges(n.heads, n.rows * own.value_dim * own.rank, [&](int64_t begin, int64_t end) {
        for (int64_t head = begin; head < end; ++head) {
            Linear values = part_of<W>(own, head, true);
            const int64_t count = values.out;
            values.out = n.heads * own.value_dim;  // from row to row of the result
            float* x = narrow + head * n.rows * own.rank;
            for (int64_t row = 0; row < n.rows; ++row)
                copy(results + (row * n.heads + head) * n.dim, own.rank, x + row * own.rank);
            float* y = out + head * own.value_dim;
            int64_t first = 0;
            for (; first + 4 <= count; first += 4) all_rows<4, W>(x, n.rows, values, first, y);
            for (; first < count; ++first) all_rows<1, W>(x, n.rows, values, first, y);
        }
    });
}

inline AttentionSizes sizes_of(const Stack& n, const Layer& layer) {
    AttentionSizes sizes{};
    sizes.queries = 1;
    sizes.keys = n.room;
    sizes.batch = n.rows;
    sizes.heads = n.heads;
    sizes.groups = n.groups;
    sizes.dim = n.dim;
    sizes.value_dim = n.dim;
    sizes.scale = layer.scale;
    sizes.band = Band{0, layer.left, 0, n.starts, n.stops, n.offsets};
    sizes.finish.softcap = layer.softcap;
    sizes.finish.divisor = 1.0f;
    sizes.finish.storage = -1;
    sizes.finish.slopes = layer.slopes;
    sizes.layout = KeyLayout{1, n.room, n.slots};
    sizes.sinks = layer.sinks;
    return sizes;
}

// step(row, sizes) for the rows of one sequence after another.
template <class Step>
void each_sequence(const Stack& n, AttentionSizes sizes, Step step) {
    sizes.batch = 1;
    for (int64_t index = 0, row = 0; index < n.sequences; row += n.counts[index++]) {
        sizes.queries = n.counts[index];
        sizes.layout.slots = n.slots + row;
        sizes.band.starts = n.starts + row;
        sizes.band.stops = n.stops + row + sizes.queries - 1;
        sizes.band.offsets = n.offsets + row;
        step(row, sizes);
    }
}

constexpr int64_t kMostWidened = 1 << 23;  // floats

// Many queries of a sequence: keys and values of its heads are made from all that it keeps, some heads
// at a time, since attention to narrow vectors takes more arithmetic.
template <class T>
void attend_widened(const Stack& n, const Layer& layer, const float* q, int64_t row,
                    AttentionSizes sizes, float* out) {
    const Latent& own = *layer.latent;
    const int64_t turned = n.dim - own.rank, width = own.plain + turned, both = own.plain + own.value_dim;
    const int64_t keys = *sizes.band.stops, queries = sizes.queries;
    const int64_t of_head = keys * (both + width + own.value_dim) + queries * (width + own.value_dim + 1);
    const int64_t team = std::clamp<int64_t>(kMostWidened / of_head, 1, n.heads);
    Arena arena{scratch(kWidened, keys * own.rank + of_head * team + 8 * kWidth)};
    float* narrow = arena.take(keys * own.rank);
    const T* kept = static_cast<const T*>(layer.keys) + *sizes.layout.slots * n.room * n.dim;
    each_row(keys, own.rank, [&](int64_t key) {
        copy(kept + key * n.dim, own.rank, narrow + key * own.rank);
    });
    float* wide = arena.take(keys * team * both);
    float* lse = arena.take(queries * team);
    T* k = arena.take_as<T>(keys * team * width);
    T* v = arena.take_as<T>(keys * team * own.value_dim);
    T* queries_of = arena.take_as<T>(queries * team * width);
    T* results = arena.take_as<T>(queries * team * own.value_dim);
    const int64_t slot = 0;
    sizes.keys = keys;
    sizes.dim = width;
    sizes.value_dim = own.value_dim;
    sizes.layout = KeyLayout{1, keys, &slot};
    for (int64_t first = 0; first < n.heads; first += team) {
        const int64_t heads = std::min(team, n.heads - first);
        Linear part = part_of<T>(own, first, false);
        part.out = heads * both;
        multiply_rows<T>(narrow, keys, part, wide);
        each_row(keys, part.out, [&](int64_t key) {
            for (int64_t head = 0; head < heads; ++head) {
                const float* from = wide + key * part.out + head * both;
                T* to = k + (key * heads + head) * width;
                copy(from, own.plain, to);
                copy(kept + key * n.dim + own.rank, turned, to + own.plain);
                copy(from + own.plain, own.value_dim, v + (key * heads + head) * own.value_dim);
            }
        });
        for (int64_t i = 0; i < queries; ++i)
            copy(q + ((row + i) * n.heads + first) * width, heads * width,
                 queries_of + i * heads * width);
        sizes.heads = sizes.groups = heads;
        if (layer.slopes) sizes.finish.slopes = layer.slopes + first;
        if (layer.sinks) sizes.sinks = layer.sinks + first;
        attention_forward(n.storage, queries_of, k, v, nullptr, results, lse, &sizes);
        for (int64_t i = 0; i < queries; ++i)
            copy(results + i * heads * own.value_dim, heads * own.value_dim,
                 out + ((row + i) * n.heads + first) * own.value_dim);
    }
}

// out [rows, heads, value_dim]
template <class T>
void attend_narrow(const Stack& n, const Layer& layer, const float* normed, Arena arena, float* out) {
    const Latent& own = *layer.latent;
    const float* q = narrow_down<T>(n, layer, normed, &arena);
    const AttentionSizes sizes = sizes_of(n, layer);
    if (n.counts && !own.kv_up.scales) {
        each_sequence(n, sizes, [&](int64_t row, const AttentionSizes& part) {
            attend_widened<T>(n, layer, q, row, part, out);
        });
        return;
    }
    float* wide = arena.take(n.rows * n.heads * n.dim);
    T* queries = arena.take_as<T>(n.rows * n.heads * n.dim);
    T* results = arena.take_as<T>(n.rows * n.heads * n.dim);
    const auto with_weights = [&](auto weight) {
        using W = decltype(weight);
        absorb<W>(n, own, q, wide, queries);
        decode_heads(n.storage, queries, layer.keys, layer.keys, results, sizes);
        raise<W>(n, own, results, wide, out);
    };
    own.kv_up.scales ? with_weights(int8_t{}) : with_weights(T{});
}

// out [rows, heads, dim]
template <class T>
void attend(const Stack& n, const Layer& layer, const float* normed, Arena arena, float* out) {
    if (layer.latent) return attend_narrow<T>(n, layer, normed, arena, out);
    T* queries = arena.take_as<T>(n.rows * n.heads * n.dim);
    T* results = arena.take_as<T>(n.rows * n.heads * n.dim);
    take_apart<T>(n, layer, normed, arena, queries);
    const AttentionSizes sizes = sizes_of(n, layer);
    if (n.counts) {
        float* lse = arena.take(n.rows * n.heads);
        each_sequence(n, sizes, [&](int64_t row, const AttentionSizes& part) {
            const int64_t at = row * n.heads * n.dim;
            attention_forward(n.storage, queries + at, layer.keys, layer.values, nullptr,
                              results + at, lse, &part);
        });
    } else {
        decode_heads(n.storage, queries, layer.keys, layer.values, results, sizes);
    }
    copy(results, n.rows * n.heads * n.dim, out);
}

}  // namespace kernels
