// SPDX-License-Identifier: Apache-2.0
// New tokens of some sequences through a stack of layers, forward only: dense ones or mixtures of
// experts, with attention to projected or to latent keys and values.
//
// With few rows the time is that of reading the weights (few_rows.h). A prompt's rows are multiplied
// by the blocked products, and attend to blocks of keys. Everything between the layers is fp32.
#include <functional>
#include <limits>

#include "attention.h"
#include "few_rows.h"
#include "ranks.h"

// Defined in attention_forward.cpp.
EXPORT void attention_forward(int32_t storage, const void* q, const void* k, const void* v,
                              const uint8_t* mask, void* out, float* lse,
                              const kernels::AttentionSizes* sizes);

namespace kernels {

// Defined in attention_decode.cpp.
void decode_heads(int32_t storage, const void* q, const void* k, const void* v, void* out,
                  const AttentionSizes& sizes);

namespace {

// Keep these in step with ops/cpu/decode.py.
struct Norm {
    const float *weight, *bias;  // null weight: none of it; null bias: root mean square
    float eps;
    int32_t unused;
};

// Queries, keys and values from narrow vectors: the rotated channels of the keys are shared by all
// heads, and stand behind those of each head that are not.
struct Latent {
    Linear q_down, q_up, kv_down, kv_up;  // q_down without weight: none
    Norm q_norm, kv_norm;
    int64_t rank, plain;  // channels of the narrow vector, and of a key that are not rotated
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
    void *keys, *values;          // [slots, room, groups, dim], [.., value_dim]
    const float *slopes, *sinks;  // [heads], null: none
    const float *cos, *sin;       // [rows, rotated], null: not rotated
    int64_t left;                 // keys before its own that a query sees
    float scale, softcap;
};

enum Activation : int32_t { kGelu, kFastGelu, kSwiglu, kSilu, kSquaredRelu };

struct Stack {
    int64_t rows, hidden, heads, groups, dim, value_dim, rotated, room;
    int32_t storage, activation, interleaved, adds_normed;
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

void normalize_row(const float* x, int64_t width, const Norm& norm, float* y) {
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

void normalize(const float* x, int64_t rows, int64_t width, const Norm& norm, float* y) {
    each_row(rows, width, [&](int64_t row) {
        normalize_row(x + row * width, width, norm, y + row * width);
    });
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

template <class From, class To>
void copy(const From* from, int64_t count, To* to) {
    vector_loop(count, [&](int64_t i, int64_t lanes) { store(to + i, load(from + i, lanes), lanes); });
}

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
        for (int64_t group = 0; group < n.groups; ++group) {
            float* own = mixed + (row * n.groups + group) * width;
            for (int64_t head = 0; head <= per_group; ++head) {
                float* t = own + head * n.dim;
                const Norm& norm = head < per_group ? layer.q_norm : layer.k_norm;
                if (norm.weight) normalize_row(t, n.dim, norm, t);
                if (cos) rotate_head(t, cos, sin, n.rotated, n.interleaved != 0);
            }
            copy(own, per_group * n.dim, queries + (row * n.heads + group * per_group) * n.dim);
            const int64_t at = (place + group) * n.dim;
            copy(own + per_group * n.dim, n.dim, static_cast<T*>(layer.keys) + at);
            copy(own + (per_group + 1) * n.dim, n.dim, static_cast<T*>(layer.values) + at);
        }
    });
}

// The same from narrow vectors.
template <class T>
void widen(const Stack& n, const Layer& layer, const float* normed, Arena arena, T* queries) {
    const Latent& own = *layer.latent;
    const int64_t turned = n.dim - own.plain, width = own.plain + n.value_dim;
    float* q = arena.take(n.rows * own.q_up.out);
    if (own.q_down.weight) {
        float* narrow_q = arena.take(n.rows * own.q_down.out);
        multiply_rows<T>(normed, n.rows, own.q_down, narrow_q);
        if (own.q_norm.weight)
            normalize(narrow_q, n.rows, own.q_down.out, own.q_norm, narrow_q);
        multiply_rows<T>(narrow_q, n.rows, own.q_up, q);
    } else {
        multiply_rows<T>(normed, n.rows, own.q_up, q);
    }
    float* both = arena.take(n.rows * own.kv_down.out);
    float* narrow_kv = arena.take(n.rows * own.rank);
    float* kv = arena.take(n.rows * own.kv_up.out);
    multiply_rows<T>(normed, n.rows, own.kv_down, both);
    for (int64_t row = 0; row < n.rows; ++row)
        copy(both + row * own.kv_down.out, own.rank, narrow_kv + row * own.rank);
    if (own.kv_norm.weight) normalize(narrow_kv, n.rows, own.rank, own.kv_norm, narrow_kv);
    multiply_rows<T>(narrow_kv, n.rows, own.kv_up, kv);
    each_row(n.rows, own.kv_up.out, [&](int64_t row) {
        const float* cos = layer.cos ? layer.cos + row * n.rotated : nullptr;
        const float* sin = layer.sin ? layer.sin + row * n.rotated : nullptr;
        float* shared = both + row * own.kv_down.out + own.rank;
        if (cos) rotate_head(shared, cos, sin, turned, n.interleaved != 0);
        const int64_t place = (n.slots[row] * n.room + n.offsets[row]) * n.heads;
        for (int64_t head = 0; head < n.heads; ++head) {
            if (cos)
                rotate_head(q + (row * n.heads + head) * n.dim + own.plain, cos, sin, turned,
                            n.interleaved != 0);
            const float* from = kv + (row * n.heads + head) * width;
            T* key = static_cast<T*>(layer.keys) + (place + head) * n.dim;
            copy(from, own.plain, key);
            copy(shared, turned, key + own.plain);
            copy(from + own.plain, n.value_dim,
                   static_cast<T*>(layer.values) + (place + head) * n.value_dim);
        }
    });
    copy(q, n.rows * n.heads * n.dim, queries);
}

// The rows of one sequence after another; sizes are those of single rows.
template <class T>
void attend_blocks(const Stack& n, const Layer& layer, const T* queries, AttentionSizes sizes,
                   Arena arena, T* results) {
    float* lse = arena.take(n.rows * n.heads);
    sizes.batch = 1;
    for (int64_t index = 0, row = 0; index < n.sequences; row += n.counts[index++]) {
        sizes.queries = n.counts[index];
        sizes.layout.slots = n.slots + row;
        sizes.band.starts = n.starts + row;
        sizes.band.stops = n.stops + row + sizes.queries - 1;
        sizes.band.offsets = n.offsets + row;
        attention_forward(n.storage, queries + row * n.heads * n.dim, layer.keys, layer.values,
                          nullptr, results + row * n.heads * n.value_dim, lse, &sizes);
    }
}

// out [rows, heads, value_dim]
template <class T>
void attend(const Stack& n, const Layer& layer, const float* normed, Arena arena, float* out) {
    T* queries = arena.take_as<T>(n.rows * n.heads * n.dim);
    T* results = arena.take_as<T>(n.rows * n.heads * n.value_dim);
    if (layer.latent) {
        widen<T>(n, layer, normed, arena, queries);
    } else {
        take_apart<T>(n, layer, normed, arena, queries);
    }
    AttentionSizes sizes{};
    sizes.queries = 1;
    sizes.keys = n.room;
    sizes.batch = n.rows;
    sizes.heads = n.heads;
    sizes.groups = n.groups;
    sizes.dim = n.dim;
    sizes.value_dim = n.value_dim;
    sizes.scale = layer.scale;
    sizes.band = Band{0, layer.left, 0, n.starts, n.stops, n.offsets};
    sizes.finish.softcap = layer.softcap;
    sizes.finish.divisor = 1.0f;
    sizes.finish.storage = -1;
    sizes.finish.slopes = layer.slopes;
    sizes.layout = KeyLayout{1, n.room, n.slots};
    sizes.sinks = layer.sinks;
    if (n.counts) {
        attend_blocks(n, layer, queries, sizes, arena, results);
    } else {
        decode_heads(n.storage, queries, layer.keys, layer.values, results, sizes);
    }
    copy(results, n.rows * n.heads * n.value_dim, out);
}

void add(const float* from, int64_t count, float* to) {
    vector_loop(count, [&](int64_t i, int64_t lanes) {
        store(to + i, load(to + i, lanes) + load(from + i, lanes), lanes);
    });
}

// x = (normed or x) + post_norm(output, summed over the ranks)
void add_residual(const Stack& n, const Norm& post, const float* normed, float* output, float* x) {
    const int64_t count = n.rows * n.hidden;
    if (n.ranks) add_over_ranks(*n.ranks, output, count);
    if (post.weight) normalize(output, n.rows, n.hidden, post, output);
    if (n.adds_normed) std::memcpy(x, normed, static_cast<size_t>(count) * sizeof(float));
    add(output, count, x);
}

// y [rows, out] = out(activation(in(x)))
template <class T>
void feed_forward(int32_t activation, const float* x, int64_t rows, const Linear& in,
                  const Linear& out, Arena arena, float* y) {
    float* wide = arena.take(rows * in.out);
    float* inner = arena.take(rows * out.in);
    multiply_rows<T>(x, rows, in, wide);
    each_row(rows, in.out, [&](int64_t row) {
        const float* from = wide + row * in.out;
        float* to = inner + row * out.in;
        vector_loop(out.in, [&](int64_t i, int64_t lanes) {
            vf value = activate(activation, load(from + i, lanes));
            if (activation == kSwiglu) value *= load(from + out.in + i, lanes);
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
        feed_forward<T>(n.activation, x, n.rows, m.shared_in, m.shared_out, arena, y);
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
        feed_forward<T>(n.activation, gathered, count, m.in[expert], m.out[expert], arena, made);
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
    float* attended = arena.take(n.rows * n.heads * n.value_dim);

    normalize(x, n.rows, n.hidden, layer.input_norm, normed);
    attend<T>(n, layer, normed, arena, attended);
    multiply_rows<T>(attended, n.rows, layer.attention_out, output);
    add_residual(n, layer.attention_post_norm, normed, output, x);

    normalize(x, n.rows, n.hidden, layer.mlp_norm, normed);
    if (layer.mixture) {
        mix<T>(n, *layer.mixture, normed, arena, output);
    } else {
        feed_forward<T>(n.activation, normed, n.rows, layer.mlp_in, layer.mlp_out, arena, output);
    }
    add_residual(n, layer.mlp_post_norm, normed, output, x);
}

// Floats that a layer takes, at most.
int64_t floats_of(const Stack& n, const Layer& layer) {
    int64_t row = 2 * n.hidden + n.heads * (n.dim + 2 * n.value_dim + 1);
    int64_t attention = layer.qkv.out, block = layer.mlp_in.out + layer.mlp_out.in;
    if (layer.latent) {
        const Latent& own = *layer.latent;
        attention = own.q_up.out + own.q_down.out + own.kv_down.out + own.rank + own.kv_up.out;
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
    if (norm->weight) {
        normalize(x, rows, head->in, *norm, normed);
    } else {
        std::memcpy(normed, x, static_cast<size_t>(rows * head->in) * sizeof(float));
    }
    with_storage(storage, [&](auto type) {
        multiply_rows<decltype(type)>(normed, rows, *head, y);
    });
}
