// SPDX-License-Identifier: Apache-2.0
// Attention forward: blocks of scores with a running maximum and sum per query.
//
// Source: Dao et al., 2022 (FlashAttention), Milakov and Gimelshein, 2018 (online softmax).
#include "attention.h"

namespace kernels {

namespace {

template <class Math>
struct Workspace {
    // One after the other for all blocks of keys: keys (transposed) and values.
    float *key_panels, *value_panels;
    int64_t key_step, value_step;
    float *query, *scores, *packed, *out;
    mutable Stopwatch watch;

    Workspace(const AttentionSizes& n) {
        const int64_t blocks = n.padded_keys() / kBlock;
        key_step = Math::transposed_floats(n.dim);
        value_step = Math::right_floats(n.value_dim);
        const int64_t query_size = Math::left_floats(n.dim), packed_size = Math::score_floats();
        key_panels = scratch(kAttention, blocks * (key_step + value_step) + query_size +
                                             packed_size + kBlock * (kLine + n.padded_value_dim()));
        value_panels = key_panels + blocks * key_step;
        query = value_panels + blocks * value_step;
        packed = query + query_size;
        scores = packed + packed_size;
        out = scores + kBlock * kLine;
    }
};

// Running softmax of a block of queries: scores -> weights, `out` (the sum so far) rescaled.
struct Running {
    float top[kBlock], sum[kBlock];
    float highest[kBlock];  // score; only kept where it is wanted

    void add_block(int64_t rows, float scale, float* scores, float* out, int64_t dim,
                   bool keeps_highest) {
        alignas(64) float now[kBlock], factor[kBlock];
        for (int64_t row = 0; row < rows; ++row) {
            const float* line = scores + row * kLine;
            vf best = load(line) * scale;
            for (int64_t i = kWidth; i < kBlock; i += kWidth)
                best = vmax(load(line + i) * scale, best);
            now[row] = max_of(best);
            if (keeps_highest) highest[row] = std::max(highest[row], now[row]);
        }
        for (int64_t row = 0; row < rows; row += kWidth) {
            const vf before = load(top + row), highest = vmax(before, load(now + row));
            const vf change = vexp(before - highest);
            // A query that has seen no key has no weights yet; a shift by infinity would give NaN.
            store(factor + row, before == -INFINITY ? vf{} : change);
            store(now + row, highest == -INFINITY ? vf{} : highest);
            store(top + row, highest);
        }
        for (int64_t row = 0; row < rows; ++row) {
            float* line = scores + row * kLine;
            const vf shift = splat(now[row]);
            vf total = vf{};
            for (int64_t i = 0; i < kBlock; i += kWidth) {
                const vf weight = vexp(load(line + i) * scale - shift);
                store(line + i, weight);
                total += weight;
            }
            sum[row] = sum[row] * factor[row] + sum_of(total);
            if (factor[row] != 1.0f && out)
                for (int64_t i = 0; i < dim; i += kWidth)
                    store(out + row * dim + i, load(out + row * dim + i) * factor[row]);
        }
    }

    // From now on weights have the sum 1.
    void settle(int64_t rows) {
        for (int64_t row = 0; row < rows; ++row) {
            if (sum[row] == 0.0f) continue;
            top[row] += std::log(sum[row]);
            sum[row] = 1.0f;
        }
    }

    // Scores -> rounded weights, once the sums are known.
    void weigh_block(int64_t rows, float scale, int32_t storage, float* scores) const {
        for (int64_t row = 0; row < rows; ++row) {
            float* line = scores + row * kLine;
            const vf shift = splat(top[row] == -INFINITY ? INFINITY : top[row]);
            for (int64_t i = 0; i < kBlock; i += kWidth)
                store(line + i, rounded(vexp(load(line + i) * scale - shift), storage));
        }
    }
};

// The keys that are seen; values before them do not count, whatever they are.
template <class Math, class T>
void pack_keys(const T* k, const T* v, const AttentionSizes& n, int64_t batch, int64_t group,
               const Workspace<Math>& space) {
    const T *keys = k + n.key_at(batch, group), *values = v + n.value_at(batch, group);
    const int64_t first = n.first_key(batch, 0), last = n.keys_before(batch, n.queries);
    for (int64_t block = first / kBlock; block * kBlock < last; ++block) {
        const int64_t key = block * kBlock, count = std::min(last - key, kBlock);
        Math::pack_transposed(keys + key * n.key_stride(), n.key_stride(), count, n.dim,
                              space.key_panels + block * space.key_step);
        const T* from = values + key * n.value_stride();
        int64_t stride = n.value_stride();
        if (key < first) {
            const size_t bytes = static_cast<size_t>(n.value_dim) * sizeof(T);
            T* cleared = reinterpret_cast<T*>(space.out);  // not in use yet
            std::memset(cleared, 0, kBlock * bytes);
            for (int64_t row = first - key; row < count; ++row)
                std::memcpy(cleared + row * n.value_dim, from + row * stride, bytes);
            from = cleared;
            stride = n.value_dim;
        }
        Math::pack_right(from, stride, count, n.value_dim,
                         space.value_panels + block * space.value_step);
    }
}

// Continues from an earlier result: its weights have the sum 1 after a shift by the log-sum-exp.
void take_up(const AttentionSizes& n, QueryBlock block, const float* out, const float* lse,
             Running& running, float* sums) {
    const int64_t dim = n.padded_value_dim();
    std::memset(sums, 0, static_cast<size_t>(kBlock * dim) * sizeof(float));
    for (int64_t row = 0; row < block.count; ++row) {
        const float top = lse[lse_index(n, block, row)];
        if (top == -INFINITY) continue;
        running.top[row] = top;
        running.sum[row] = 1.0f;
        std::memcpy(sums + row * dim, out + row * n.out_stride(),
                    static_cast<size_t>(n.value_dim) * sizeof(float));
    }
}

template <class Out>
void put_results(const AttentionSizes& n, QueryBlock block, const Running& running,
                 const float* sums, Out* out, float* lse) {
    for (int64_t row = 0; row < block.count; ++row) {
        const float sum = running.sum[row];
        const vf inverse = splat(sum > 0.0f ? 1.0f / sum : 0.0f);
        const float* from = sums + row * n.padded_value_dim();
        Out* to = out + row * n.out_stride();
        vector_loop(n.value_dim, [&](int64_t i, int64_t lanes) {
            const vf value = sum > 0.0f ? load(from + i, lanes) * inverse : vf{};
            store(to + i, value, lanes);
        });
        lse[lse_index(n, block, row)] =
            sum > 0.0f ? running.top[row] + std::log(sum) : -INFINITY;
        if (n.tops) n.tops[lse_index(n, block, row)] = running.highest[row];
    }
}

// Scores of a block of queries with a block of keys, hidden ones -infinity.
template <class Math>
void block_scores(const AttentionSizes& n, const uint8_t* mask, QueryBlock block, int64_t key,
                  const Workspace<Math>& space) {
    space.watch.product([&] {
        Math::scores(block.count, n.dim, space.query,
                     space.key_panels + key / kBlock * space.key_step, space.scores);
    });
    if (n.finish.any())
        for (int64_t row = 0; row < block.count; ++row)
            finish_line(n, block.batch, block.head, block.first + row, key,
                        space.scores + row * kLine, nullptr);
    if (hides_some(n, mask, block, key))
        for (int64_t row = 0; row < block.count; ++row)
            hide_line(n, mask, block.batch, block.first + row, key, space.scores + row * kLine);
}

// Adds the values of a block of keys, weighted by what the scores have become.
template <class Math>
void add_values(const AttentionSizes& n, QueryBlock block, int64_t key, int64_t count, bool adds,
                const Workspace<Math>& space) {
    for (int64_t row = 0; row < block.count && n.dropout.scale != 0.0f; ++row) {
        float* line = space.scores + row * kLine;
        float keep[kBlock] = {};
        keep_line(n, block.batch, block.head, block.first + row, key, count, keep);
        for (int64_t i = 0; i < kBlock; i += kWidth)
            store(line + i, load(line + i) * load(keep + i));
    }
    space.watch.product([&] {
        Math::weighted(block.count, count, n.value_dim, space.scores, space.packed,
                       space.value_panels + key / kBlock * space.value_step, space.out, adds);
    });
}

template <class Math, bool Continues, class T, class Out>
void query_block(const T* q, const uint8_t* mask, Out* out, float* lse, const AttentionSizes& n,
                 QueryBlock block, const Workspace<Math>& space) {
    const int64_t dim = n.padded_value_dim(), stride = n.query_stride();
    space.watch.product([&] {
        Math::pack_left(q + n.query_at(block.batch, block.head) + block.first * stride, stride,
                        block.count, n.dim, space.query);
    });
    Out* results = out + n.out_at(block.batch, block.head) + block.first * n.out_stride();
    Running running;
    for (int64_t row = 0; row < kBlock; ++row) {
        running.top[row] = n.sinks ? n.sinks[block.head] : -INFINITY;
        running.sum[row] = n.sinks ? 1.0f : 0.0f;
        running.highest[row] = -INFINITY;
    }
    if constexpr (Continues) take_up(n, block, results, lse, running, space.out);
    const float scale = n.finish.any() ? 1.0f : n.scale;
    bool started = Continues;
    const bool settles = n.finish.rounds_weights != 0;
    if (settles) {  // rounded are weights of the whole, so their sum must be known before
        each_key_block(n, block, [&](int64_t key, int64_t) {
            block_scores(n, mask, block, key, space);
            running.add_block(block.count, scale, space.scores, nullptr, dim, n.tops);
        });
        running.settle(block.count);
    }
    each_key_block(n, block, [&](int64_t key, int64_t count) {
        block_scores(n, mask, block, key, space);
        if (settles)
            running.weigh_block(block.count, scale, n.finish.storage, space.scores);
        else
            running.add_block(block.count, scale, space.scores, started ? space.out : nullptr, dim,
                              n.tops);
        add_values(n, block, key, count, started, space);
        started = true;
    });
    if (!started) std::memset(space.out, 0, static_cast<size_t>(kBlock * dim) * sizeof(float));
    put_results(n, block, running, space.out, results, lse);
}

template <class Math, bool Continues, class T, class Out>
void forward(const T* q, const T* k, const T* v, const uint8_t* mask, Out* out, float* lse,
             const AttentionSizes& n) {
    const int64_t blocks = ceil_div(n.queries, kBlock), per_group = n.heads_per_group() * blocks;
    const int64_t pairs = n.batch * n.groups;
    const int team = threads_for(n.batch * n.heads * n.queries * n.keys);
    int64_t parts = pairs >= 2 * team || team == 1 ? 1 : ceil_div(2 * team, pairs);
    parts = parts < per_group ? parts : per_group;
#pragma omp parallel for schedule(dynamic) num_threads(team) if (team > 1)
    for (int64_t task = 0; task < pairs * parts; ++task) {
        const int64_t pair = task / parts, batch = pair / n.groups, group = pair % n.groups;
        const Workspace<Math> space(n);
        [[maybe_unused]] const typename Math::Session session;
        space.watch.product([&] { pack_keys(k, v, n, batch, group, space); });
        for (int64_t index = task % parts; index < per_group; index += parts) {
            const int64_t first = index % blocks * kBlock;
            const int64_t left = n.queries - first;
            query_block<Math, Continues>(
                q, mask, out, lse, n,
                QueryBlock{batch, group * n.heads_per_group() + index / blocks, first,
                           left < kBlock ? left : kBlock},
                space);
        }
    }
}

template <bool Continues, class T, class Out>
void run(const void* q, const void* k, const void* v, const uint8_t* mask, Out* out, float* lse,
         const AttentionSizes& n) {
    if (n.queries == 0 || n.batch == 0 || n.heads == 0) return;
    const T *queries = static_cast<const T*>(q), *keys = static_cast<const T*>(k);
    const T* values = static_cast<const T*>(v);
#if defined(HAS_TILES)
    if (tiles_ready<T>())
        return forward<TileMath<T>, Continues>(queries, keys, values, mask, out, lse, n);
#endif
    forward<VectorMath, Continues>(queries, keys, values, mask, out, lse, n);
}

}  // namespace

}  // namespace kernels

using namespace kernels;

// q [S, B, N, D]; k [S', B, G, D], v [S', B, G, E]; mask [mask_batch, S, S'] or null;
// out [S, B, N, E]; lse fp32 [S, B, N], -infinity for a query that sees no key
EXPORT void attention_forward(int32_t storage, const void* q, const void* k, const void* v,
                              const uint8_t* mask, void* out, float* lse,
                              const AttentionSizes* sizes) {
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        run<false, T>(q, k, v, mask, static_cast<T*>(out), lse, *sizes);
    });
}

// The same over further keys: out (fp32) and lse hold the result over earlier ones.
EXPORT void attention_accumulate(int32_t storage, const void* q, const void* k, const void* v,
                                 const uint8_t* mask, float* out, float* lse,
                                 const AttentionSizes* sizes) {
    with_storage(storage, [&](auto type) {
        run<true, decltype(type)>(q, k, v, mask, out, lse, *sizes);
    });
}
