// SPDX-License-Identifier: Apache-2.0
// Attention backward: scores are computed again block by block from the stored log-sum-exp.
//
// P = exp(scale q k^T - lse), W = P * keep, dV = W^T dO, dP = (dO V^T) * keep,
// dS = scale * slope * P * (dP - sum(dO * O)), dQ = dS K, dK = dS^T Q. One thread owns one (batch,
// group), so dK and dV add over the heads of the group in a fixed order.
#include "attention.h"

namespace kernels {

namespace {

template <class Math>
struct Workspace {
    // One after the other for all blocks of keys, packed as the products want them.
    float *keys_t, *values_t, *keys;
    int64_t key_t_step, value_t_step, key_step;
    float *dkeys, *dvalues;                                   // of all keys
    float *query, *query_right, *grad, *grad_right, *dquery;  // of one query block
    float *weights, *dscores, *dropped, *packed;              // of one block of scores
    mutable Stopwatch watch;

    Workspace(const AttentionSizes& n) {
        const int64_t dim = n.padded_dim(), value_dim = n.padded_value_dim();
        const int64_t keys_size = n.padded_keys(), blocks = keys_size / kBlock;
        key_t_step = Math::transposed_floats(n.dim);
        value_t_step = Math::transposed_floats(n.value_dim);
        key_step = Math::right_floats(n.dim);
        const struct {
            float** buffer;
            int64_t size;
        } parts[] = {
            {&keys_t, blocks * key_t_step},
            {&values_t, blocks * value_t_step},
            {&keys, blocks * key_step},
            {&query, Math::left_floats(n.dim)},
            {&query_right, Math::right_floats(n.dim)},
            {&grad, Math::left_floats(n.value_dim)},
            {&grad_right, Math::right_floats(n.value_dim)},
            {&packed, Math::score_floats()},
            {&weights, kBlock * kLine},
            {&dscores, kBlock * kLine},
            {&dropped, kBlock * kLine},
            {&dquery, kBlock * dim},
            {&dkeys, keys_size * dim},
            {&dvalues, keys_size * value_dim},
        };
        int64_t total = 0;
        for (const auto& part : parts) total += round_up(part.size, 16);
        float* next = scratch(kAttention, total);
        for (const auto& part : parts) {
            *part.buffer = next;
            next += round_up(part.size, 16);
        }
        std::memset(dkeys, 0, static_cast<size_t>(keys_size * dim) * sizeof(float));
        std::memset(dvalues, 0, static_cast<size_t>(keys_size * value_dim) * sizeof(float));
        std::memset(dropped, 0, kBlock * kLine * sizeof(float));
    }
};

// Gradients are written in the storage type, or added to fp32 ones.
template <class T, class Grad>
struct Tensors {
    const T *q, *k, *v, *out, *dout;
    const uint8_t* mask;
    const float* lse;
    Grad *dq, *dk, *dv;
    bool adds;

    void put(Grad* to, const float* from, int64_t size) const {
        vector_loop(size, [&](int64_t i, int64_t lanes) {
            const vf value = load(from + i, lanes);
            store(to + i, adds ? value + load(to + i, lanes) : value, lanes);
        });
    }
};

// One line of scores, hidden ones -infinity, -> P (weights), W = P * keep (dropped) and dS (dscores
// holds dP on entry). `slope`: derivatives of the scores by the products, where they are finished.
template <bool Finishes>
void line_gradient(const AttentionSizes& n, QueryBlock block, int64_t row, int64_t key, float lse,
                   float delta, const float* slope, float* weights, float* dscores,
                   float* dropped) {
    float keep[kBlock];
    const bool drops = n.dropout.scale != 0.0f;
    if (drops) {
        const int64_t count = n.keys - key < kBlock ? n.keys - key : kBlock;
        std::memset(keep, 0, sizeof keep);
        keep_line(n, block.batch, block.head, block.first + row, key, count, keep);
    }
    for (int64_t i = 0; i < kBlock; i += kWidth) {
        vf weight = vexp((Finishes ? load(weights + i) : load(weights + i) * n.scale) - lse);
        if (Finishes && n.finish.rounds_weights) weight = rounded(weight, n.finish.storage);
        vf dweight = load(dscores + i);
        if (drops) {
            const vf factor = load(keep + i);
            store(dropped + i, weight * factor);
            dweight *= factor;
        }
        store(weights + i, weight);
        const vf dscore = weight * (dweight - delta) * n.scale;
        store(dscores + i, Finishes ? dscore * load(slope + i) : dscore);
    }
}

template <class T>
float row_dot(const T* a, const T* b, int64_t size) {
    vf sum = vf{};
    vector_loop(size, [&](int64_t i, int64_t lanes) { sum += load(a + i, lanes) * load(b + i, lanes); });
    return sum_of(sum);
}

template <class Math, class T, class Grad>
void query_block(const Tensors<T, Grad>& t, const AttentionSizes& n, QueryBlock block,
                 const Workspace<Math>& space) {
    const int64_t dim = n.padded_dim(), value_dim = n.padded_value_dim();
    const int64_t stride = n.query_stride(), out_stride = n.out_stride();
    const int64_t at = n.query_at(block.batch, block.head) + block.first * stride;
    const int64_t out_at = n.out_at(block.batch, block.head) + block.first * out_stride;
    space.watch.product([&] {
        Math::pack_left(t.q + at, stride, block.count, n.dim, space.query);
        Math::pack_left(t.dout + out_at, out_stride, block.count, n.value_dim, space.grad);
        Math::pack_right(t.q + at, stride, block.count, n.dim, space.query_right);
        Math::pack_right(t.dout + out_at, out_stride, block.count, n.value_dim, space.grad_right);
    });
    float delta[kBlock], lse[kBlock];
    for (int64_t row = 0; row < block.count; ++row) {
        const int64_t from = out_at + row * out_stride;
        delta[row] = row_dot(t.out + from, t.dout + from, n.value_dim);
        lse[row] = t.lse[lse_index(n, block, row)];
        if (lse[row] == -INFINITY) lse[row] = INFINITY;  // no key is seen: all weights are 0
    }
    const float* dropped = n.dropout.scale != 0.0f ? space.dropped : space.weights;
    bool started = false;
    each_key_block(n, block, [&](int64_t key, int64_t count) {
        const int64_t index = key / kBlock;
        space.watch.product([&] {
            Math::scores(block.count, n.dim, space.query, space.keys_t + index * space.key_t_step,
                         space.weights);
            Math::scores(block.count, n.value_dim, space.grad,
                         space.values_t + index * space.value_t_step, space.dscores);
        });
        const bool finishes = n.finish.any(), hides = hides_some(n, t.mask, block, key);
        for (int64_t row = 0; row < block.count; ++row) {
            float* line = space.weights + row * kLine;
            float slope[kBlock];
            if (finishes)
                finish_line(n, block.batch, block.head, block.first + row, key, line, slope);
            if (hides) hide_line(n, t.mask, block.batch, block.first + row, key, line);
            float *dscores = space.dscores + row * kLine, *kept = space.dropped + row * kLine;
            if (finishes)
                line_gradient<true>(n, block, row, key, lse[row], delta[row], slope, line, dscores,
                                    kept);
            else
                line_gradient<false>(n, block, row, key, lse[row], delta[row], slope, line, dscores,
                                     kept);
        }
        space.watch.product([&] {
            Math::weighted_back(block.count, count, n.value_dim, dropped, space.packed,
                                space.grad_right, space.dvalues + key * value_dim);
            Math::weighted_back(block.count, count, n.dim, space.dscores, space.packed,
                                space.query_right, space.dkeys + key * dim);
            Math::weighted(block.count, count, n.dim, space.dscores, space.packed,
                           space.keys + index * space.key_step, space.dquery, started);
        });
        started = true;
    });
    if (!started) std::memset(space.dquery, 0, static_cast<size_t>(kBlock * dim) * sizeof(float));
    for (int64_t row = 0; row < block.count; ++row)
        t.put(t.dq + at + row * stride, space.dquery + row * dim, n.dim);
}

template <class Math, class T, class Grad>
void pack_keys(const Tensors<T, Grad>& t, const AttentionSizes& n, int64_t batch, int64_t group,
               const Workspace<Math>& space) {
    const int64_t at = n.key_at(batch, group), stride = n.key_stride();
    const int64_t value_at = n.value_at(batch, group), value_stride = n.value_stride();
    const int64_t last = n.keys_before(batch, n.queries);
    for (int64_t block = n.first_key(batch, 0) / kBlock; block * kBlock < last; ++block) {
        const int64_t key = block * kBlock, count = std::min(last - key, kBlock);
        const T* keys = t.k + at + key * stride;
        Math::pack_transposed(keys, stride, count, n.dim, space.keys_t + block * space.key_t_step);
        Math::pack_right(keys, stride, count, n.dim, space.keys + block * space.key_step);
        Math::pack_transposed(t.v + value_at + key * value_stride, value_stride, count,
                              n.value_dim, space.values_t + block * space.value_t_step);
    }
}

template <class Math, class T, class Grad>
void group_gradient(const Tensors<T, Grad>& t, const AttentionSizes& n, int64_t batch,
                    int64_t group) {
    const Workspace<Math> space(n);
    [[maybe_unused]] const typename Math::Session session;
    const int64_t dim = n.padded_dim(), value_dim = n.padded_value_dim();
    const int64_t at = n.key_at(batch, group), stride = n.key_stride();
    const int64_t value_at = n.value_at(batch, group), value_stride = n.value_stride();
    space.watch.product([&] { pack_keys(t, n, batch, group, space); });
    for (int64_t head = group * n.heads_per_group(); head < (group + 1) * n.heads_per_group();
         ++head)
        for (int64_t first = 0; first < n.queries; first += kBlock) {
            const int64_t left = n.queries - first;
            query_block(t, n, QueryBlock{batch, head, first, left < kBlock ? left : kBlock}, space);
        }
    for (int64_t key = 0; key < n.keys; ++key) {
        t.put(t.dk + at + key * stride, space.dkeys + key * dim, n.dim);
        t.put(t.dv + value_at + key * value_stride, space.dvalues + key * value_dim, n.value_dim);
    }
}

template <class Math, class T, class Grad>
void backward(const Tensors<T, Grad>& t, const AttentionSizes& n) {
    const int team = threads_for(n.batch * n.heads * n.queries * n.keys);
#pragma omp parallel for schedule(dynamic) num_threads(team) if (team > 1)
    for (int64_t pair = 0; pair < n.batch * n.groups; ++pair)
        group_gradient<Math>(t, n, pair / n.groups, pair % n.groups);
}

}  // namespace

}  // namespace kernels

using namespace kernels;

// Tensors as in attention_forward; dq, dk, dv like q, k, v, or fp32 ones that are added to.
EXPORT void attention_backward(int32_t storage, const void* q, const void* k, const void* v,
                               const uint8_t* mask, const void* out, const float* lse,
                               const void* dout, void* dq, void* dk, void* dv, int32_t adds,
                               const AttentionSizes* sizes) {
    const AttentionSizes n = *sizes;
    if (n.keys == 0 || n.batch == 0 || n.groups == 0) return;
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        const auto run = [&](auto gradient) {
            using Grad = decltype(gradient);
            const Tensors<T, Grad> tensors{
                static_cast<const T*>(q), static_cast<const T*>(k), static_cast<const T*>(v),
                static_cast<const T*>(out), static_cast<const T*>(dout), mask, lse,
                static_cast<Grad*>(dq), static_cast<Grad*>(dk), static_cast<Grad*>(dv), adds != 0};
#if defined(HAS_TILES)
            if (tiles_ready<T>()) return backward<TileMath<T>>(tensors, n);
#endif
            backward<VectorMath>(tensors, n);
        };
        if (adds) run(float{});
        else run(T{});
    });
}

// dsinks [heads] = -sum over queries of exp(sink - lse) * (out . dout); tensors as above.
EXPORT void attention_sinks_grad(int32_t storage, const void* out, const void* dout,
                                 const float* lse, const float* sinks, float* dsinks, int64_t rows,
                                 int64_t heads, int64_t value_dim) {
    const int64_t pieces = row_pieces(rows), stride = round_up(heads, kWidth);
    float* partial = scratch(kPartial, pieces * stride);
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        const T *results = static_cast<const T*>(out), *grads = static_cast<const T*>(dout);
        parallel_ranges(pieces, rows / pieces * heads * value_dim, [&](int64_t begin, int64_t end) {
            for (int64_t piece = begin; piece < end; ++piece) {
                float* sums = partial + piece * stride;
                std::memset(sums, 0, static_cast<size_t>(stride) * sizeof(float));
                for (int64_t row = rows * piece / pieces; row < rows * (piece + 1) / pieces; ++row)
                    for (int64_t head = 0; head < heads; ++head) {
                        const int64_t at = row * heads + head;
                        const float share = std::exp(sinks[head] - lse[at]);
                        sums[head] -= share * row_dot(results + at * value_dim,
                                                      grads + at * value_dim, value_dim);
                    }
            }
        });
    });
    add_pieces(partial, pieces, stride, heads, dsinks);
}
