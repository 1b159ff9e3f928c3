// SPDX-License-Identifier: Apache-2.0
// What decode_layers.cpp is told of layers, and what its parts do to rows.
#pragma once

#include <cmath>
#include <cstring>

#include "few_rows.h"
#include "ranks.h"

namespace kernels {

// Keep these in step with ops/cpu/decode.py.
struct Norm {
    const float *weight, *bias;  // null: none of it
    float eps;
    int32_t centred;  // else the root mean square
};

// Queries, keys and values from narrow vectors, which alone are kept, and the rotated channels of the
// keys behind them, which all heads share.
struct Latent {
    Linear q_down, q_up, kv_down, kv_up;  // q_down without weight: none
    Norm q_norm, kv_norm;
    // Channels of the narrow vector, of a key that are not rotated, and of a value.
    int64_t rank, plain, value_dim;
};

enum Scores : int32_t { kSoftmax, kSigmoid, kRootOfSoftplus };

// Experts in the place of a feed-forward block.
struct Mixture {
    Linear router;                 // fp32
    const float *bias, *has_a_say;  // [experts], of the logits, and of the choice alone; null: none
    const Linear *in, *out;        // [experts]
    Linear shared_in, shared_out, shared_gate;  // without weight: none
    int64_t experts, choices, groups, open_groups, group_scores;  // groups 0: none
    Scores scores;
    int32_t scores_first;  // they come before the choice, not behind it
    int32_t normalizes, rounds;
    float factor;
    int32_t unused;
};

struct Layer {
    Norm input_norm, attention_post_norm, mlp_norm, mlp_post_norm, q_norm, k_norm;
    Linear qkv, attention_out, mlp_in, mlp_out;
    const Latent* latent;         // in the place of qkv, null: none
    const Mixture* mixture;       // in the place of mlp_in and mlp_out, null: none
    void *keys, *values;          // [slots, room, groups, dim]; of latent keys the same memory
    const float *slopes, *sinks;  // [heads], null: none
    const float *cos, *sin;       // [rows, rotated], null: not rotated
    int64_t left;                 // keys before its own that a query sees
    float scale, softcap;
};

struct Stack {
    int64_t rows, hidden, heads, groups, dim, rotated, room;
    int32_t storage, activation, interleaved, adds_normed;
    int32_t side_by_side;       // both blocks read what enters the layer
    int32_t normalizes_jointly;  // the queries of all heads as one vector, and the keys
    int32_t norms_of_heads;      // each head has factors of its own
    float multiplier;           // of what a block adds
    float limit, offset;        // of a gated unit's halves, and of its value; limit 0: none
    float clip;                 // of queries, keys and values; 0: none
    const int64_t *slots, *starts, *stops, *offsets;  // [rows]
    const int64_t* counts;  // [sequences], rows of each, which follow one another; null: 1
    int64_t sequences;
    const Ranks* ranks;  // that share out heads and inner channels, null: none
};

// Memory that a function gives out; a copy gives out the same again.
struct Arena {
    float* next;

    float* take(int64_t count) {
        float* found = next;
        next += round_up(count, kWidth);
        return found;
    }
    template <class T>
    T* take_as(int64_t count) {
        static_assert(sizeof(T) <= sizeof(float), "a float has room for one");
        return reinterpret_cast<T*>(take(count));
    }
};

inline void normalize_row(const float* x, int64_t width, const Norm& norm, float* y) {
    float mean = 0.0f;
    if (norm.centred) {
        vf sum = vf{};
        vector_loop(width, [&](int64_t i, int64_t lanes) { sum += load(x + i, lanes); });
        mean = sum_of(sum) / static_cast<float>(width);
    }
    vf square = vf{};
    vector_loop(width, [&](int64_t i, int64_t lanes) {
        const vf d = fill_tail(load(x + i, lanes) - mean, lanes, 0.0f);
        square += d * d;
    });
    const float rstd = 1.0f / std::sqrt(sum_of(square) / static_cast<float>(width) + norm.eps);
    vector_loop(width, [&](int64_t i, int64_t lanes) {
        vf value = (load(x + i, lanes) - mean) * rstd * load(norm.weight + i, lanes);
        if (norm.bias) value += load(norm.bias + i, lanes);
        store(y + i, value, lanes);
    });
}

// step(row) for all rows, by threads where there is work for them.
template <class Step>
void each_row(int64_t rows, int64_t width, Step step) {
    parallel_ranges(rows, width, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) step(row);
    });
}

// y = norm(x), or x where there is none.
inline void normalize(const float* x, int64_t rows, int64_t width, const Norm& norm, float* y) {
    if (!norm.weight) return void(std::memcpy(y, x, static_cast<size_t>(rows * width) * sizeof(float)));
    each_row(rows, width, [&](int64_t row) {
        normalize_row(x + row * width, width, norm, y + row * width);
    });
}

// The root mean square norm of parts [parts, width] of a vector, so many floats from one to the next.
inline void normalize_parts(float* x, int64_t parts, int64_t width, int64_t step, const Norm& norm) {
    vf square = vf{};
    for (int64_t part = 0; part < parts; ++part)
        vector_loop(width, [&](int64_t i, int64_t lanes) {
            const vf value = load(x + part * step + i, lanes);
            square += value * value;
        });
    const float rstd = 1.0f / std::sqrt(sum_of(square) / static_cast<float>(parts * width) + norm.eps);
    for (int64_t part = 0; part < parts; ++part)
        vector_loop(width, [&](int64_t i, int64_t lanes) {
            float* at = x + part * step + i;
            store(at, load(at, lanes) * rstd * load(norm.weight + part * width + i, lanes), lanes);
        });
}

inline void clip(float* x, int64_t width, float limit) {
    vector_loop(width, [&](int64_t i, int64_t lanes) {
        store(x + i, vmax(vmin(load(x + i, lanes), splat(limit)), splat(-limit)), lanes);
    });
}

inline void rotate_head(float* t, const float* cos, const float* sin, int64_t rotated, bool interleaved) {
    const int64_t half = rotated / 2;
    for (int64_t i = 0; i < half; ++i) {
        const int64_t first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 1 : half + i;
        const float a = t[first], b = t[second];
        t[first] = a * cos[first] - b * sin[first];
        t[second] = b * cos[second] + a * sin[second];
    }
}

template <class From, class To>
void copy(const From* from, int64_t count, To* to) {
    vector_loop(count, [&](int64_t i, int64_t lanes) { store(to + i, load(from + i, lanes), lanes); });
}

}  // namespace kernels
