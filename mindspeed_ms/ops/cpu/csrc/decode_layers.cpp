// SPDX-License-Identifier: Apache-2.0
// New tokens of some sequences through a stack of layers, forward only: dense ones or mixtures of
// experts, with attention to projected or to latent keys and values.
//
// With few rows the time is that of reading the weights (few_rows.h). A prompt's rows are multiplied
// by the blocked products, and attend to blocks of keys. Everything between the layers is fp32.
#include <functional>
#include <limits>

#include "decode_heads.h"

namespace kernels {

namespace {

enum Activation : int32_t { kGelu, kFastGelu, kSilu, kQuickGelu, kRelu, kSquaredRelu };

inline vf activate(int32_t kind, vf x) {
    switch (kind) {
        case kGelu: return x * (verf(x * 0.70710678118654752f) + 1.0f) * 0.5f;
        case kFastGelu:
            return x * (vtanh((x + x * x * x * 0.044715f) * 0.79788456080286536f) + 1.0f) * 0.5f;
        case kQuickGelu: return x / (vexp(x * -1.702f) + 1.0f);
        case kRelu: return vmax(x, vf{});
        case kSquaredRelu: {
            const vf positive = vmax(x, vf{});
            return positive * positive;
        }
        default: return x / (vexp(-x) + 1.0f);
    }
}

void add(const float* from, int64_t count, float* to, float factor = 1.0f) {
    vector_loop(count, [&](int64_t i, int64_t lanes) {
        store(to + i, load(to + i, lanes) + load(from + i, lanes) * factor, lanes);
    });
}

// x = (normed or x) + multiplier * post_norm(output, summed over the ranks)
void add_residual(const Stack& n, const Norm& post, const float* normed, float* output, float* x) {
    const int64_t count = n.rows * n.hidden;
    if (n.ranks) add_over_ranks(*n.ranks, output, count);
    if (post.weight) normalize(output, n.rows, n.hidden, post, output);
    if (n.adds_normed) std::memcpy(x, normed, static_cast<size_t>(count) * sizeof(float));
    add(output, count, x, n.multiplier);
}

// y [rows, out] = out(activation(in(x))), where the activation may be a gate for a value behind it.
template <class T>
void feed_forward(const Stack& n, const float* x, int64_t rows, const Linear& in, const Linear& out,
                  Arena arena, float* y) {
    const bool is_gated = in.out == 2 * out.in;
    const vf most = splat(n.limit);
    float* wide = arena.take(rows * in.out);
    float* inner = arena.take(rows * out.in);
    multiply_rows<T>(x, rows, in, wide);
    each_row(rows, in.out, [&](int64_t row) {
        const float* from = wide + row * in.out;
        float* to = inner + row * out.in;
        vector_loop(out.in, [&](int64_t i, int64_t lanes) {
            vf value = load(from + i, lanes);
            if (n.limit > 0.0f) value = vmin(value, most);
            value = activate(n.activation, value);
            if (is_gated) {
                vf up = load(from + out.in + i, lanes);
                if (n.limit > 0.0f) up = vmax(vmin(up, most), -most);
                value *= up + n.offset;
            }
            store(to + i, value, lanes);
        });
    });
    multiply_rows<T>(inner, rows, out, y);
}

void score(Scores kind, float* x, int64_t count) {
    if (kind == kSoftmax) {
        const float top = *std::max_element(x, x + count);
        float sum = 0.0f;
        for (int64_t i = 0; i < count; ++i) sum += x[i] = std::exp(x[i] - top);
        for (int64_t i = 0; i < count; ++i) x[i] /= sum;
        return;
    }
    for (int64_t i = 0; i < count; ++i)
        x[i] = kind == kSigmoid ? 1.0f / (1.0f + std::exp(-x[i]))
                                : std::sqrt(std::max(x[i], 0.0f) +
                                            std::log1p(std::exp(-std::fabs(x[i]))));
}

constexpr float kClosed = -std::numeric_limits<float>::infinity();

// Columns of the largest values, the first of equals; those that were taken become kClosed.
void take_largest(float* values, int64_t count, int64_t wanted, int32_t* columns) {
    for (int64_t place = 0; place < wanted; ++place) {
        const int64_t best = std::max_element(values, values + count) - values;
        columns[place] = static_cast<int32_t>(best);
        values[best] = kClosed;
    }
}

// Closes the groups of neighbouring values whose best ones have the smaller sums.
void close_groups(const Mixture& m, float* values, Arena arena) {
    const int64_t width = m.experts / m.groups;
    float *best = arena.take(width), *sums = arena.take(m.groups);
    int32_t* open = arena.take_as<int32_t>(m.groups);
    for (int64_t group = 0; group < m.groups; ++group) {
        std::copy_n(values + group * width, width, best);
        std::sort(best, best + width, std::greater<float>());
        sums[group] = 0.0f;
        for (int64_t i = 0; i < m.group_scores; ++i) sums[group] += best[i];
    }
    take_largest(sums, m.groups, m.open_groups, open);
    for (int64_t group = 0; group < m.groups; ++group)
        if (sums[group] != kClosed) std::fill_n(values + group * width, width, kClosed);
}

// Experts [choices] of a token and their weights, from its logits [experts].
void choose(const Mixture& m, float* logits, Arena arena, int32_t* experts, float* weights) {
    float* values = arena.take(m.experts);
    if (m.scores_first) score(m.scores, logits, m.experts);
    for (int64_t i = 0; i < m.experts; ++i)
        values[i] = logits[i] + (m.has_a_say ? m.has_a_say[i] : 0.0f);
    if (m.groups) close_groups(m, values, arena);
    take_largest(values, m.experts, m.choices, experts);
    float sum = 1e-20f;
    for (int64_t i = 0; i < m.choices; ++i) sum += weights[i] = logits[experts[i]];
    if (!m.scores_first) score(m.scores, weights, m.choices);
    for (int64_t i = 0; i < m.choices; ++i)
        weights[i] = (m.normalizes ? weights[i] / sum : weights[i]) * m.factor;
}

// y [rows, hidden]: what each row's experts make of it, by weight, and what the shared one does.
template <class T>
void mix(const Stack& n, const Mixture& m, const float* x, Arena arena, float* y) {
    const int64_t hidden = n.hidden;
    float* logits = arena.take(n.rows * m.experts);
    float* gathered = arena.take(n.rows * std::max(hidden, m.experts));
    float* made = arena.take(n.rows * hidden);
    float* weights = arena.take(n.rows * m.choices);
    float* shares = arena.take(n.rows);
    int32_t* experts = arena.take_as<int32_t>(n.rows * m.choices);
    int32_t* rows = arena.take_as<int32_t>(n.rows);
    // Experts are chosen from what the router reads elsewhere, too: rounded to the storage type.
    T* rounded = reinterpret_cast<T*>(made);
    copy(x, n.rows * hidden, rounded);
    copy(rounded, n.rows * hidden, gathered);
    multiply_rows<float>(gathered, n.rows, m.router, logits);
    if (m.rounds) {
        rounded = reinterpret_cast<T*>(gathered);
        copy(logits, n.rows * m.experts, rounded);
        copy(rounded, n.rows * m.experts, logits);
    }
    for (int64_t row = 0; row < n.rows; ++row) {
        float* own = logits + row * m.experts;
        if (m.bias) add(m.bias, m.experts, own);
        choose(m, own, arena, experts + row * m.choices, weights + row * m.choices);
    }
    std::fill_n(y, n.rows * hidden, 0.0f);
    if (m.shared_in.weight)
        feed_forward<T>(n, x, n.rows, m.shared_in, m.shared_out, arena, y);
    if (m.shared_gate.weight) {
        multiply_rows<T>(x, n.rows, m.shared_gate, logits);
        for (int64_t row = 0; row < n.rows; ++row) {
            score(kSigmoid, logits + row, 1);
            vector_loop(hidden, [&](int64_t i, int64_t lanes) {
                float* at = y + row * hidden + i;
                store(at, load(at, lanes) * logits[row], lanes);
            });
        }
    }
    for (int64_t expert = 0; expert < m.experts; ++expert) {
        int64_t count = 0;
        for (int64_t i = 0; i < n.rows * m.choices; ++i) {
            if (experts[i] != expert) continue;
            rows[count] = static_cast<int32_t>(i / m.choices);
            shares[count] = weights[i];
            copy(x + rows[count] * hidden, hidden, gathered + count * hidden);
            ++count;
        }
        if (!count) continue;
        feed_forward<T>(n, gathered, count, m.in[expert], m.out[expert], arena, made);
        for (int64_t i = 0; i < count; ++i)
            vector_loop(hidden, [&](int64_t at, int64_t lanes) {
                float* to = y + rows[i] * hidden + at;
                store(to, load(to, lanes) + load(made + i * hidden + at, lanes) * shares[i], lanes);
            });
    }
}

template <class T>
void run_layer(const Stack& n, const Layer& layer, float* x, Arena arena) {
    float* normed = arena.take(n.rows * n.hidden);
    float* output = arena.take(n.rows * n.hidden);
    float* attended = arena.take(n.rows * layer.attention_out.in);

    normalize(x, n.rows, n.hidden, layer.input_norm, normed);
    attend<T>(n, layer, normed, arena, attended);
    multiply_rows<T>(attended, n.rows, layer.attention_out, output);
    if (n.side_by_side) normalize(x, n.rows, n.hidden, layer.mlp_norm, normed);
    add_residual(n, layer.attention_post_norm, normed, output, x);

    if (!n.side_by_side) normalize(x, n.rows, n.hidden, layer.mlp_norm, normed);
    if (layer.mixture) {
        mix<T>(n, *layer.mixture, normed, arena, output);
    } else {
        feed_forward<T>(n, normed, n.rows, layer.mlp_in, layer.mlp_out, arena, output);
    }
    add_residual(n, layer.mlp_post_norm, normed, output, x);
}

// Floats that a layer takes, at most.
int64_t floats_of(const Stack& n, const Layer& layer) {
    int64_t row = 2 * n.hidden + layer.attention_out.in + n.heads * (2 * n.dim + 1);
    int64_t attention = layer.qkv.out, block = layer.mlp_in.out + layer.mlp_out.in;
    if (layer.latent) {
        const Latent& own = *layer.latent;
        attention = own.q_up.out + own.q_down.out + n.dim + n.heads * n.dim;
    }
    int64_t alone = 32 * kWidth;
    if (layer.mixture) {
        const Mixture& m = *layer.mixture;
        block = m.shared_in.out + m.shared_out.in;
        for (int64_t i = 0; i < m.experts; ++i) block = std::max(block, m.in[i].out + m.out[i].in);
        block += 2 * n.hidden + 2 * m.experts + 2 * m.choices + 2;
        alone += 4 * m.experts;
    }
    return n.rows * (row + attention + block) + alone;
}

}  // namespace

}  // namespace kernels

using namespace kernels;

// x fp32 [rows, hidden], in place: the hidden states behind all layers.
EXPORT void decode_layers(float* x, const Layer* layers, int64_t count, const Stack* stack) {
    const Stack& n = *stack;
    if (n.rows == 0) return;
    [[maybe_unused]] const FlushTiny flush;
    int64_t floats = 0;
    for (int64_t i = 0; i < count; ++i) floats = std::max(floats, floats_of(n, layers[i]));
    const Arena arena{scratch(kStack, floats)};
    with_storage(n.storage, [&](auto type) {
        for (int64_t i = 0; i < count; ++i) run_layer<decltype(type)>(n, layers[i], x, arena);
    });
}

// y fp32 [rows, out] = normalize(x fp32 [rows, in]) weight [out, in]^T; a norm without weight is none.
EXPORT void decode_head(int32_t storage, const float* x, int64_t rows, const Norm* norm,
                        const Linear* head, float* y) {
    if (rows == 0) return;
    float* normed = scratch(kStack, rows * head->in);
    normalize(x, rows, head->in, *norm, normed);
    with_storage(storage, [&](auto type) {
        multiply_rows<decltype(type)>(normed, rows, *head, y);
    });
}
