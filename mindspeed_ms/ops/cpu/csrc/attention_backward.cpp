// Attention backward: scores are computed again block by block from the stored log-sum-exp.
//
// P = exp(scale q k^T - lse), W = P * keep, dV = W^T dO, dP = (dO V^T) * keep,
// dS = scale * P * (dP - sum(dO * O)), dQ = dS K, dK = dS^T Q. One thread owns one (batch, group),
// so dK and dV add over the heads of the group in a fixed order.
#include "attention.h"

namespace kernels {

namespace {

struct Workspace {
    float *keys_t, *values_t, *keys, *dkeys, *dvalues;        // of all keys
    float *query, *query_right, *grad, *grad_right, *dquery;  // of one query block
    float *weights, *dscores, *dropped;                       // of one block of scores

    Workspace(const AttentionSizes& n) {
        const int64_t dim = n.padded_dim(), value_dim = n.padded_value_dim();
        const int64_t rows = n.padded_keys() + kBlock, square = kBlock * kLine;
        float* next = scratch(kAttention, rows * (3 * dim + 2 * value_dim) + 3 * square);
        const auto take = [&next](int64_t count) { return (next += count) - count; };
        for (float** buffer : {&keys_t, &keys, &dkeys}) *buffer = take(n.padded_keys() * dim);
        for (float** buffer : {&values_t, &dvalues}) *buffer = take(n.padded_keys() * value_dim);
        for (float** buffer : {&query, &query_right, &dquery}) *buffer = take(kBlock * dim);
        for (float** buffer : {&grad, &grad_right}) *buffer = take(kBlock * value_dim);
        for (float** buffer : {&weights, &dscores, &dropped}) *buffer = take(square);
        const size_t keys_size = static_cast<size_t>(n.padded_keys()) * sizeof(float);
        std::memset(dkeys, 0, keys_size * static_cast<size_t>(dim));
        std::memset(dvalues, 0, keys_size * static_cast<size_t>(value_dim));
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

// One line of scores -> P (weights), W = P * keep (dropped) and dS (dscores holds dP on entry).
void line_gradient(const AttentionSizes& n, const uint8_t* mask, QueryBlock block, int64_t row,
                   int64_t key, float lse, float delta, const Workspace& space) {
    float* weights = space.weights + row * kLine;
    float* dscores = space.dscores + row * kLine;
    hide_line(n, mask, block.batch, block.first + row, key, weights);
    float keep[kBlock];
    const bool drops = n.dropout.scale != 0.0f;
    if (drops) {
        const int64_t count = n.keys - key < kBlock ? n.keys - key : kBlock;
        std::memset(keep, 0, sizeof keep);
        keep_line(n, block.batch, block.head, block.first + row, key, count, keep);
    }
    for (int64_t i = 0; i < kBlock; i += kWidth) {
        const vf weight = vexp(load(weights + i) - lse);
        vf dweight = load(dscores + i);
        if (drops) {
            const vf factor = load(keep + i);
            store(space.dropped + row * kLine + i, weight * factor);
            dweight *= factor;
        }
        store(weights + i, weight);
        store(dscores + i, weight * (dweight - delta) * n.scale);
    }
}

template <class T>
float row_dot(const T* a, const T* b, int64_t size) {
    vf sum = vf{};
    vector_loop(size, [&](int64_t i, int64_t lanes) { sum += load(a + i, lanes) * load(b + i, lanes); });
    return sum_of(sum);
}

template <class T, class Grad>
void query_block(const Tensors<T, Grad>& t, const AttentionSizes& n, QueryBlock block,
                 const Workspace& space) {
    const int64_t dim = n.padded_dim(), value_dim = n.padded_value_dim();
    const int64_t stride = n.query_stride(), out_stride = n.out_stride();
    const int64_t at = n.query_at(block.batch, block.head) + block.first * stride;
    const int64_t out_at = n.out_at(block.batch, block.head) + block.first * out_stride;
    pack_block_left(t.q + at, stride, block.count, n.dim, space.query);
    pack_block_left(t.dout + out_at, out_stride, block.count, n.value_dim, space.grad);
    pack_block_right(t.q + at, stride, block.count, n.dim, space.query_right);
    pack_block_right(t.dout + out_at, out_stride, block.count, n.value_dim, space.grad_right);
    float delta[kBlock], lse[kBlock];
    for (int64_t row = 0; row < block.count; ++row) {
        const int64_t from = out_at + row * out_stride;
        delta[row] = row_dot(t.out + from, t.dout + from, n.value_dim);
        lse[row] = t.lse[lse_index(n, block, row)];
        if (lse[row] == -INFINITY) lse[row] = INFINITY;  // no key is seen: all weights are 0
    }
    const float* dropped = n.dropout.scale != 0.0f ? space.dropped : space.weights;
    const int64_t rows = round_up(block.count, kRows);
    const int64_t keys = n.keys_before(block.first + block.count);
    bool started = false;
    for (int64_t key = 0; key < keys; key += kBlock) {
        const int64_t count = keys - key < kBlock ? keys - key : kBlock;
        if (!shares_document(n, block, key, count)) continue;
        block_product<1, kRows>(rows, kBlock, n.dim, space.query, n.dim * kRows,
                                space.keys_t + key * n.dim, n.dim * kCols, space.weights, kLine,
                                false);
        block_product<1, kRows>(rows, kBlock, n.value_dim, space.grad, n.value_dim * kRows,
                                space.values_t + key * n.value_dim, n.value_dim * kCols,
                                space.dscores, kLine, false);
        for (int64_t row = 0; row < block.count; ++row)
            line_gradient(n, t.mask, block, row, key, lse[row], delta[row], space);
        const int64_t key_rows = round_up(count, kRows);
        block_product<1, kLine>(key_rows, value_dim, block.count, dropped, kRows,
                                space.grad_right, kBlock * kCols, space.dvalues + key * value_dim,
                                value_dim, true);
        block_product<1, kLine>(key_rows, dim, block.count, space.dscores, kRows,
                                space.query_right, kBlock * kCols, space.dkeys + key * dim, dim,
                                true);
        block_product<kLine, 1>(rows, dim, count, space.dscores, kRows * kLine,
                                space.keys + key * dim, kBlock * kCols, space.dquery, dim,
                                started);
        started = true;
    }
    if (!started) std::memset(space.dquery, 0, static_cast<size_t>(rows * dim) * sizeof(float));
    for (int64_t row = 0; row < block.count; ++row)
        t.put(t.dq + at + row * stride, space.dquery + row * dim, n.dim);
}

template <class T, class Grad>
void group_gradient(const Tensors<T, Grad>& t, const AttentionSizes& n, int64_t batch,
                    int64_t group) {
    const Workspace space(n);
    const int64_t dim = n.padded_dim(), value_dim = n.padded_value_dim();
    const int64_t at = n.key_at(batch, group), stride = n.key_stride();
    const int64_t value_at = n.value_at(batch, group), value_stride = n.value_stride();
    pack_transposed(t.k + at, stride, n.keys, n.padded_keys(), n.dim, space.keys_t);
    pack_transposed(t.v + value_at, value_stride, n.keys, n.padded_keys(), n.value_dim,
                    space.values_t);
    for (int64_t key = 0; key < n.keys; key += kBlock)
        pack_block_right(t.k + at + key * stride, stride,
                         n.keys - key < kBlock ? n.keys - key : kBlock, n.dim,
                         space.keys + key * dim);
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

template <class T, class Grad>
void backward(const Tensors<T, Grad>& t, const AttentionSizes& n) {
    const int team = threads_for(n.batch * n.heads * n.queries * n.keys);
#pragma omp parallel for schedule(dynamic) num_threads(team) if (team > 1)
    for (int64_t pair = 0; pair < n.batch * n.groups; ++pair)
        group_gradient(t, n, pair / n.groups, pair % n.groups);
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
            backward(Tensors<T, Grad>{static_cast<const T*>(q), static_cast<const T*>(k),
                                      static_cast<const T*>(v), static_cast<const T*>(out),
                                      static_cast<const T*>(dout), mask, lse,
                                      static_cast<Grad*>(dq), static_cast<Grad*>(dk),
                                      static_cast<Grad*>(dv), adds != 0},
                     n);
        };
        if (adds) run(float{});
        else run(T{});
    });
}
