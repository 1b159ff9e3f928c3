// Attention forward: blocks of scores with a running maximum and sum per query.
//
// Source: Dao et al., 2022 (FlashAttention), Milakov and Gimelshein, 2018 (online softmax).
#include "attention.h"

namespace kernels {

namespace {

struct Workspace {
    float *key_panels, *value_panels, *query, *scores, *out;

    Workspace(const AttentionSizes& n) {
        const int64_t dim = n.padded_dim(), keys = n.padded_keys();
        float* next = scratch(kAttention, 2 * keys * dim + kBlock * (2 * dim + kLine));
        key_panels = next;
        value_panels = key_panels + keys * dim;
        query = value_panels + keys * dim;
        scores = query + kBlock * dim;
        out = scores + kBlock * kLine;
    }
};

// Running softmax of one query: scores -> weights, `out` (the sum so far) rescaled.
struct Running {
    float top[kBlock], sum[kBlock];

    void add_line(int64_t row, float* line, float* out, int64_t dim) {
        vf best = load(line);
        for (int64_t i = kWidth; i < kBlock; i += kWidth) best = vmax(load(line + i), best);
        const float before = top[row], now = std::fmax(before, max_of(best));
        if (now == -INFINITY) {
            std::memset(line, 0, kBlock * sizeof(float));
            return;
        }
        const vf shift = splat(now);
        vf total = vf{};
        for (int64_t i = 0; i < kBlock; i += kWidth) {
            const vf weight = vexp(load(line + i) - shift);
            store(line + i, weight);
            total += weight;
        }
        const float factor = before == -INFINITY ? 0.0f : vexp(splat(before - now))[0];
        sum[row] = sum[row] * factor + sum_of(total);
        top[row] = now;
        if (factor != 1.0f && out)
            for (int64_t i = 0; i < dim; i += kWidth)
                store(out + row * dim + i, load(out + row * dim + i) * factor);
    }
};

template <class T>
void pack_keys(const T* k, const T* v, const AttentionSizes& n, int64_t batch, int64_t group,
               const Workspace& space) {
    const int64_t at = (batch * n.groups + group) * n.dim, stride = n.key_stride();
    pack_transposed(k + at, stride, n.keys, n.padded_keys(), n.dim, space.key_panels);
    for (int64_t key = 0; key < n.keys; key += kBlock)
        pack_block_right(v + at + key * stride, stride,
                         n.keys - key < kBlock ? n.keys - key : kBlock, n.dim,
                         space.value_panels + key * n.padded_dim());
}

template <class T>
void query_block(const T* q, const uint8_t* mask, T* out, float* lse, const AttentionSizes& n,
                 QueryBlock block, const Workspace& space) {
    const int64_t dim = n.padded_dim(), stride = n.query_stride();
    const int64_t at = block.first * stride + (block.batch * n.heads + block.head) * n.dim;
    pack_block_left(q + at, stride, block.count, n.dim, space.query);
    Running running;
    for (int64_t row = 0; row < kBlock; ++row) running.top[row] = -INFINITY, running.sum[row] = 0;
    const int64_t rows = round_up(block.count, kRows);
    const int64_t keys = n.keys_before(block.first + block.count);
    for (int64_t key = 0; key < keys; key += kBlock) {
        const int64_t count = keys - key < kBlock ? keys - key : kBlock;
        block_product<1, kRows>(rows, kBlock, n.dim, space.query, n.dim * kRows,
                                space.key_panels + key * n.dim, n.dim * kCols, space.scores, kLine,
                                false);
        for (int64_t row = 0; row < block.count; ++row) {
            float* line = space.scores + row * kLine;
            hide_line(n, mask, block.batch, block.first + row, key, line);
            running.add_line(row, line, key ? space.out : nullptr, dim);
            if (n.dropout.scale == 0.0f) continue;
            float keep[kBlock] = {};
            keep_factors(n.dropout,
                         score_index(n, block.batch, block.head, block.first + row, key), count,
                         keep);
            for (int64_t i = 0; i < kBlock; i += kWidth)
                store(line + i, load(line + i) * load(keep + i));
        }
        block_product<kLine, 1>(rows, dim, count, space.scores, kRows * kLine,
                                space.value_panels + key * dim, kBlock * kCols, space.out, dim,
                                key > 0);
    }
    for (int64_t row = 0; row < block.count; ++row) {
        const float sum = running.sum[row];
        const vf inverse = splat(sum > 0.0f ? 1.0f / sum : 0.0f);
        T* to = out + at + row * stride;
        vector_loop(n.dim, [&](int64_t i, int64_t lanes) {
            const vf value = sum > 0.0f ? load(space.out + row * dim + i, lanes) * inverse : vf{};
            store(to + i, value, lanes);
        });
        lse[(block.batch * n.heads + block.head) * n.queries + block.first + row] =
            sum > 0.0f ? running.top[row] + std::log(sum) : INFINITY;
    }
}

template <class T>
void forward(const T* q, const T* k, const T* v, const uint8_t* mask, T* out, float* lse,
             const AttentionSizes& n) {
    const int64_t blocks = ceil_div(n.queries, kBlock), per_group = n.heads_per_group() * blocks;
    const int64_t pairs = n.batch * n.groups;
    const int team = threads_for(n.batch * n.heads * n.queries * n.keys);
    int64_t parts = pairs >= 2 * team || team == 1 ? 1 : ceil_div(2 * team, pairs);
    parts = parts < per_group ? parts : per_group;
#pragma omp parallel for schedule(dynamic) num_threads(team) if (team > 1)
    for (int64_t task = 0; task < pairs * parts; ++task) {
        const int64_t pair = task / parts, batch = pair / n.groups, group = pair % n.groups;
        const Workspace space(n);
        pack_keys(k, v, n, batch, group, space);
        for (int64_t index = task % parts; index < per_group; index += parts) {
            const int64_t first = index % blocks * kBlock;
            const int64_t left = n.queries - first;
            query_block(q, mask, out, lse, n,
                        QueryBlock{batch, group * n.heads_per_group() + index / blocks, first,
                                   left < kBlock ? left : kBlock},
                        space);
        }
    }
}

}  // namespace

}  // namespace kernels

using namespace kernels;

// q, out [S, B, N, D]; k, v [S', B, G, D]; mask [mask_batch, S, S'] or null; lse fp32 [B, N, S]
EXPORT void attention_forward(int32_t storage, const void* q, const void* k, const void* v,
                              const uint8_t* mask, void* out, float* lse,
                              const AttentionSizes* sizes) {
    if (sizes->queries == 0 || sizes->batch == 0 || sizes->heads == 0) return;
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        forward(static_cast<const T*>(q), static_cast<const T*>(k), static_cast<const T*>(v), mask,
                static_cast<T*>(out), lse, *sizes);
    });
}
