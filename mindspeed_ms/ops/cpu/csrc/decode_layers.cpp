// SPDX-License-Identifier: Apache-2.0
// One new token of up to kMostRows sequences through a stack of layers, forward only.
//
// With so few rows the time is that of reading the weights (few_rows.h); nothing but attention needs
// more than rows * width numbers of scratch. Arithmetic and everything between the layers are fp32.
#include "attention.h"
#include "few_rows.h"

namespace kernels {

// Defined in attention_decode.cpp.
void decode_heads(int32_t storage, const void* q, const void* k, const void* v, void* out,
                  const AttentionSizes& sizes);

namespace {

constexpr int64_t kMostRows = 16;

struct Norm {
    const float *weight, *bias;  // null weight: none of it; null bias: root mean square
};

// Keep in step with ops/cpu/decode.py.
struct Layer {
    Norm input_norm, q_norm, k_norm, attention_post_norm, mlp_norm, mlp_post_norm;
    Linear qkv, attention_out, mlp_in, mlp_out;
    void *keys, *values;         // [slots, room, groups, dim]
    const float *slopes, *sinks;  // [heads], null: none
    const float *cos, *sin;      // [rows, rotated], null: not rotated
    int64_t left;                // keys before its own that a query sees
    float scale, softcap;
};

enum Activation : int32_t { kGelu, kFastGelu, kSwiglu, kSilu, kSquaredRelu };

struct Stack {
    int64_t rows, hidden, heads, groups, dim, rotated, room;
    int32_t storage, activation, interleaved, adds_normed;
    float eps;
    int32_t unused;
    const int64_t *slots, *starts, *stops, *offsets;  // [rows]
};

inline vf activate(int32_t kind, vf x) {
    switch (kind) {
        case kGelu: return x * (verf(x * 0.70710678118654752f) + 1.0f) * 0.5f;
        case kFastGelu:
            return x * (vtanh((x + x * x * x * 0.044715f) * 0.79788456080286536f) + 1.0f) * 0.5f;
        case kSquaredRelu: {
            const vf positive = vmax(x, vf{});
            return positive * positive;
        }
        default: return x / (vexp(-x) + 1.0f);
    }
}

void normalize(const float* x, int64_t rows, int64_t width, const Norm& norm, float eps, float* y) {
    for (int64_t row = 0; row < rows; ++row, x += width, y += width) {
        float mean = 0.0f;
        if (norm.bias) {
            vf sum = vf{};
            vector_loop(width, [&](int64_t i, int64_t lanes) { sum += load(x + i, lanes); });
            mean = sum_of(sum) / static_cast<float>(width);
        }
        vf square = vf{};
        vector_loop(width, [&](int64_t i, int64_t lanes) {
            const vf d = fill_tail(load(x + i, lanes) - mean, lanes, 0.0f);
            square += d * d;
        });
        const float rstd = 1.0f / std::sqrt(sum_of(square) / static_cast<float>(width) + eps);
        vector_loop(width, [&](int64_t i, int64_t lanes) {
            vf value = (load(x + i, lanes) - mean) * rstd * load(norm.weight + i, lanes);
            if (norm.bias) value += load(norm.bias + i, lanes);
            store(y + i, value, lanes);
        });
    }
}

void rotate_head(float* t, const float* cos, const float* sin, int64_t rotated, bool interleaved) {
    const int64_t half = rotated / 2;
    for (int64_t i = 0; i < half; ++i) {
        const int64_t first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 1 : half + i;
        const float a = t[first], b = t[second];
        t[first] = a * cos[first] - b * sin[first];
        t[second] = b * cos[second] + a * sin[second];
    }
}

template <class T>
void narrow(const float* from, int64_t count, T* to) {
    vector_loop(count, [&](int64_t i, int64_t lanes) { store(to + i, load(from + i, lanes), lanes); });
}

// Splits [R queries, key, value] per group, turns queries and keys, writes the cache, attends.
template <class T>
void attend(const Stack& n, const Layer& layer, float* mixed, T* queries, T* results, float* out) {
    const int64_t per_group = n.heads / n.groups, width = (per_group + 2) * n.dim;
    for (int64_t row = 0; row < n.rows; ++row) {
        const float* cos = layer.cos ? layer.cos + row * n.rotated : nullptr;
        const float* sin = layer.sin ? layer.sin + row * n.rotated : nullptr;
        const int64_t place = (n.slots[row] * n.room + n.offsets[row]) * n.groups;
        for (int64_t group = 0; group < n.groups; ++group) {
            float* own = mixed + (row * n.groups + group) * width;
            for (int64_t head = 0; head <= per_group; ++head) {
                float* t = own + head * n.dim;
                const Norm& norm = head < per_group ? layer.q_norm : layer.k_norm;
                if (norm.weight) normalize(t, 1, n.dim, norm, n.eps, t);
                if (cos) rotate_head(t, cos, sin, n.rotated, n.interleaved != 0);
            }
            narrow(own, per_group * n.dim, queries + (row * n.heads + group * per_group) * n.dim);
            const int64_t at = (place + group) * n.dim;
            narrow(own + per_group * n.dim, n.dim, static_cast<T*>(layer.keys) + at);
            narrow(own + (per_group + 1) * n.dim, n.dim, static_cast<T*>(layer.values) + at);
        }
    }
    AttentionSizes sizes{};
    sizes.queries = 1;
    sizes.keys = n.room;
    sizes.batch = n.rows;
    sizes.heads = n.heads;
    sizes.groups = n.groups;
    sizes.dim = sizes.value_dim = n.dim;
    sizes.scale = layer.scale;
    sizes.band = Band{0, layer.left, 0, n.starts, n.stops, n.offsets};
    sizes.finish.softcap = layer.softcap;
    sizes.finish.divisor = 1.0f;
    sizes.finish.storage = -1;
    sizes.finish.slopes = layer.slopes;
    sizes.layout = KeyLayout{1, n.room, n.slots};
    sizes.sinks = layer.sinks;
    decode_heads(n.storage, queries, layer.keys, layer.values, results, sizes);
    vector_loop(n.rows * n.heads * n.dim, [&](int64_t i, int64_t lanes) {
        store(out + i, load(results + i, lanes), lanes);
    });
}

void add(const float* from, int64_t count, float* to) {
    vector_loop(count, [&](int64_t i, int64_t lanes) {
        store(to + i, load(to + i, lanes) + load(from + i, lanes), lanes);
    });
}

// x = (normed or x) + post_norm(output)
void add_residual(const Stack& n, const Norm& post, const float* normed, float* output, float* x) {
    const int64_t count = n.rows * n.hidden;
    if (post.weight) normalize(output, n.rows, n.hidden, post, n.eps, output);
    if (n.adds_normed) std::memcpy(x, normed, static_cast<size_t>(count) * sizeof(float));
    add(output, count, x);
}

template <class T>
void run_layer(const Stack& n, const Layer& layer, float* x, float* memory) {
    const bool gated = n.activation == kSwiglu;
    const int64_t inner = layer.mlp_out.in, values = n.heads * n.dim;
    float* normed = memory;
    float* wide = normed + round_up(n.rows * n.hidden, kWidth);
    float* narrowed = wide + round_up(n.rows * std::max(layer.qkv.out, layer.mlp_in.out), kWidth);
    T* queries = reinterpret_cast<T*>(narrowed + round_up(n.rows * std::max(inner, values), kWidth));
    T* results = queries + round_up(n.rows * values, 2 * kWidth);
    float* output = reinterpret_cast<float*>(results + round_up(n.rows * values, 2 * kWidth));

    normalize(x, n.rows, n.hidden, layer.input_norm, n.eps, normed);
    multiply_rows<T>(normed, n.rows, layer.qkv, wide);
    attend<T>(n, layer, wide, queries, results, narrowed);
    multiply_rows<T>(narrowed, n.rows, layer.attention_out, output);
    add_residual(n, layer.attention_post_norm, normed, output, x);

    normalize(x, n.rows, n.hidden, layer.mlp_norm, n.eps, normed);
    multiply_rows<T>(normed, n.rows, layer.mlp_in, wide);
    for (int64_t row = 0; row < n.rows; ++row) {
        const float* from = wide + row * layer.mlp_in.out;
        float* to = narrowed + row * inner;
        vector_loop(inner, [&](int64_t i, int64_t lanes) {
            vf value = activate(n.activation, load(from + i, lanes));
            if (gated) value *= load(from + inner + i, lanes);
            store(to + i, value, lanes);
        });
    }
    multiply_rows<T>(narrowed, n.rows, layer.mlp_out, output);
    add_residual(n, layer.mlp_post_norm, normed, output, x);
}

}  // namespace

}  // namespace kernels

using namespace kernels;

// x fp32 [rows, hidden], in place: the hidden states behind all layers.
EXPORT void decode_layers(float* x, const Layer* layers, int64_t count, const Stack* stack) {
    const Stack& n = *stack;
    if (n.rows == 0) return;
    [[maybe_unused]] const FlushTiny flush;
    int64_t widest = 0;
    for (int64_t i = 0; i < count; ++i)
        widest = std::max({widest, layers[i].qkv.out, layers[i].mlp_in.out, layers[i].mlp_out.in});
    float* memory = scratch(kTile, n.rows * (2 * n.hidden + 2 * widest + 2 * n.heads * n.dim) +
                                       16 * kWidth);
    with_storage(n.storage, [&](auto type) {
        for (int64_t i = 0; i < count; ++i) run_layer<decltype(type)>(n, layers[i], x, memory);
    });
}

// y fp32 [rows, out] = normalize(x fp32 [rows, in]) weight [out, in]^T; a norm without weight is none.
EXPORT void decode_head(int32_t storage, const float* x, int64_t rows, const Norm* norm, float eps,
                        const Linear* head, float* y) {
    if (rows == 0) return;
    float* normed = scratch(kTile, rows * head->in);
    if (norm->weight) {
        normalize(x, rows, head->in, *norm, eps, normed);
    } else {
        std::memcpy(normed, x, static_cast<size_t>(rows * head->in) * sizeof(float));
    }
    with_storage(storage, [&](auto type) {
        multiply_rows<decltype(type)>(normed, rows, *head, y);
    });
}
