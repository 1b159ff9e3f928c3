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
        const int64_t dim = n.padded_dim(), long_side = n.padded_keys() * dim;
        const int64_t short_side = kBlock * dim, square = kBlock * kLine;
        float* next = scratch(kAttention, 5 * (long_side + short_side) + 3 * square);
        for (float** buffer : {&keys_t, &values_t, &keys, &dkeys, &dvalues})
            *buffer = next, next += long_side;
        for (float** buffer : {&query, &query_right, &grad, &grad_right, &dquery})
            *buffer = next, next += short_side;
        for (float** buffer : {&weights, &dscores, &dropped}) *buffer = next, next += square;
        for (float* sums : {dkeys, dvalues})
            std::memset(sums, 0, static_cast<size_t>(long_side) * sizeof(float));
    }
};

template <class T>
struct Tensors {
    const T *q, *k, *v, *out, *dout;
    const uint8_t* mask;
    const float* lse;
    T *dq, *dk, *dv;
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
        keep_factors(n.dropout, score_index(n, block.batch, block.head, block.first + row, key),
                     count, keep);
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

template <class T>
void query_block(const Tensors<T>& t, const AttentionSizes& n, QueryBlock block,
                 const Workspace& space) {
    const int64_t dim = n.padded_dim(), stride = n.query_stride();
    const int64_t at = block.first * stride + (block.batch * n.heads + block.head) * n.dim;
    pack_block_left(t.q + at, stride, block.count, n.dim, space.query);
    pack_block_left(t.dout + at, stride, block.count, n.dim, space.grad);
    pack_block_right(t.q + at, stride, block.count, n.dim, space.query_right);
    pack_block_right(t.dout + at, stride, block.count, n.dim, space.grad_right);
    float delta[kBlock];
    for (int64_t row = 0; row < block.count; ++row)
        delta[row] = row_dot(t.out + at + row * stride, t.dout + at + row * stride, n.dim);
    const float* lse = t.lse + (block.batch * n.heads + block.head) * n.queries + block.first;
    const float* dropped = n.dropout.scale != 0.0f ? space.dropped : space.weights;
    const int64_t rows = round_up(block.count, kRows), step = n.dim * kRows;
    const int64_t keys = n.keys_before(block.first + block.count);
    for (int64_t key = 0; key < keys; key += kBlock) {
        const int64_t count = keys - key < kBlock ? keys - key : kBlock;
        block_product<1, kRows>(rows, kBlock, n.dim, space.query, step,
                                space.keys_t + key * n.dim, n.dim * kCols, space.weights, kLine,
                                false);
        block_product<1, kRows>(rows, kBlock, n.dim, space.grad, step,
                                space.values_t + key * n.dim, n.dim * kCols, space.dscores, kLine,
                                false);
        for (int64_t row = 0; row < block.count; ++row)
            line_gradient(n, t.mask, block, row, key, lse[row], delta[row], space);
        const int64_t key_rows = round_up(count, kRows);
        block_product<1, kLine>(key_rows, dim, block.count, dropped, kRows, space.grad_right,
                                kBlock * kCols, space.dvalues + key * dim, dim, true);
        block_product<1, kLine>(key_rows, dim, block.count, space.dscores, kRows,
                                space.query_right, kBlock * kCols, space.dkeys + key * dim, dim,
                                true);
        block_product<kLine, 1>(rows, dim, count, space.dscores, kRows * kLine,
                                space.keys + key * dim, kBlock * kCols, space.dquery, dim,
                                key > 0);
    }
    for (int64_t row = 0; row < block.count; ++row)
        vector_loop(n.dim, [&](int64_t i, int64_t lanes) {
            const vf value = keys > 0 ? load(space.dquery + row * dim + i, lanes) : vf{};
            store(t.dq + at + row * stride + i, value, lanes);
        });
}

template <class T>
void group_gradient(const Tensors<T>& t, const AttentionSizes& n, int64_t batch, int64_t group) {
    const Workspace space(n);
    const int64_t dim = n.padded_dim(), stride = n.key_stride();
    const int64_t at = (batch * n.groups + group) * n.dim;
    pack_transposed(t.k + at, stride, n.keys, n.padded_keys(), n.dim, space.keys_t);
    pack_transposed(t.v + at, stride, n.keys, n.padded_keys(), n.dim, space.values_t);
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
    for (int64_t key = 0; key < n.keys; ++key)
        vector_loop(n.dim, [&](int64_t i, int64_t lanes) {
            store(t.dk + at + key * stride + i, load(space.dkeys + key * dim + i, lanes), lanes);
            store(t.dv + at + key * stride + i, load(space.dvalues + key * dim + i, lanes), lanes);
        });
}

}  // namespace

}  // namespace kernels

using namespace kernels;

EXPORT void attention_backward(int32_t storage, const void* q, const void* k, const void* v,
                               const uint8_t* mask, const void* out, const float* lse,
                               const void* dout, void* dq, void* dk, void* dv,
                               const AttentionSizes* sizes) {
    const AttentionSizes n = *sizes;
    if (n.keys == 0 || n.batch == 0 || n.groups == 0) return;
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        const Tensors<T> t{static_cast<const T*>(q),    static_cast<const T*>(k),
                           static_cast<const T*>(v),    static_cast<const T*>(out),
                           static_cast<const T*>(dout), mask,
                           lse,                         static_cast<T*>(dq),
                           static_cast<T*>(dk),         static_cast<T*>(dv)};
        const int team = threads_for(n.batch * n.heads * n.queries * n.keys);
#pragma omp parallel for schedule(dynamic) num_threads(team) if (team > 1)
        for (int64_t pair = 0; pair < n.batch * n.groups; ++pair)
            group_gradient(t, n, pair / n.groups, pair % n.groups);
    });
}
