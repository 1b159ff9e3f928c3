// SPDX-License-Identifier: Apache-2.0
// FlashAttentionScore and its gradient in layouts SBH and TND, by the documented rules: 16-bit
// storage, head sizes in steps of 16, the compressed triangle for sparse modes 3 and 4, a bias for
// every head, dropout as bits.
//
// Without dropout the native library computes; its dropout words have another source, so a given
// mask of bits is applied by plain loops. What the Ascend kernel gives for a query that sees no key
// is not documented: here it is a number nobody can want.
#include <algorithm>
#include <cmath>

#include "native.h"

using plugin::AttentionSizes;
using plugin::Bytes;
using plugin::Call;
using plugin::count_of;
using plugin::Floats;
using plugin::Ints;
using plugin::kFloat32;
using plugin::require;
using plugin::Shape;
using plugin::text_of;

namespace {

constexpr int64_t kSbh = 2, kTnd = 4;  // codes of the layouts
constexpr int64_t kAll = 1, kRightDownCausal = 3, kBand = 4, kTriangle = 2048, kCopies = 8;
constexpr float kUndocumented = 1000.0f;

// Positions of the arguments, which the gradient has in another order.
struct Places {
    int shift, drop, padding, mask, prefix, query_ends, key_ends, heads;
};
constexpr Places kForward{3, 4, 5, 6, 7, 8, 9, 10}, kBackward{4, 5, 6, 7, 12, 13, 14, 15};

// Sequences of one call that attend to themselves only: all of SBH, or one of TND.
struct Part {
    AttentionSizes n{};
    int64_t first_query = 0, first_key = 0;  // rows before it, in TND
};

struct Request {
    int64_t layout, heads, groups, dim;
    float keep, scale;
    Bytes mask, kept;  // [mask_batch, S, S'] and [B, N, S, S'], empty: none
    Floats bias;       // [B or 1, N, S, S'], empty: none
    std::vector<Part> parts;
};

void require_triangle(const Call& call, int at) {
    require(call.given(at) && call.shape(at) == Shape{kTriangle, kTriangle},
            "this sparse mode takes a mask [2048, 2048]");
    static const Bytes triangle = [] {
        Bytes hidden(static_cast<size_t>(kTriangle * kTriangle));
        for (int64_t i = 0; i < kTriangle * kTriangle; ++i)
            hidden[i] = i % kTriangle > i / kTriangle;
        return hidden;
    }();
    require(call.bytes(at) == triangle, "the compressed mask is not the strict upper triangle");
}

// The last query stands at the last key.
Part part_of(const Request& request, int64_t queries, int64_t keys, int64_t batch, bool causal) {
    Part part;
    part.n.queries = queries;
    part.n.keys = keys;
    part.n.batch = batch;
    part.n.heads = part.n.whole_heads = request.heads;
    part.n.groups = request.groups;
    part.n.dim = part.n.value_dim = request.dim;
    part.n.mask_batch = 1;
    part.n.band = {keys - queries, plugin::kUnbounded, causal ? 0 : plugin::kUnbounded, nullptr,
                   nullptr, nullptr};
    part.n.row_step = batch;
    part.n.batch_step = 1;
    part.n.scale = request.scale;
    part.n.whole_queries = queries;
    part.n.whole_keys = keys;
    return part;
}

void read_sbh(const Call& call, const Places& at, int64_t mode, Request& request) {
    const Shape q = call.shape(0), k = call.shape(1);
    require(!call.given(at.query_ends) && !call.given(at.key_ends), "lengths belong to TND");
    Part part = part_of(request, q[0], k[0], q[1], mode == kRightDownCausal);
    AttentionSizes& n = part.n;
    if (mode == kRightDownCausal) {
        require_triangle(call, at.mask);
    } else if (mode == kBand) {
        require_triangle(call, at.mask);
        n.band.left = call.integer(at.heads + 3);
        n.band.right = call.integer(at.heads + 4);
        require(n.band.left >= 0 && n.band.right >= 0, "limits of the band below 0");
        require(n.band.offset + n.band.right >= 0, "a query without a key in the band");
    } else if (call.given(at.mask)) {
        const Shape mask = call.shape(at.mask);
        const bool is_plain = mask == Shape{n.queries, n.keys};
        require(is_plain || mask == Shape{n.batch, 1, n.queries, n.keys},
                "mask " + text_of(mask) + " for sparse mode " + std::to_string(mode));
        n.mask_batch = is_plain ? 1 : n.batch;
        request.mask = call.bytes(at.mask);
    } else {
        require(mode != kAll, "sparse mode 1 takes a mask");
    }
    if (call.given(at.shift)) {
        const Shape shift = call.shape(at.shift);
        require(call.type(at.shift) == call.type(0) && shift.size() == 4 &&
                    (shift[0] == 1 || shift[0] == n.batch) &&
                    Shape(shift.begin() + 1, shift.end()) == Shape{n.heads, n.queries, n.keys},
                "bias " + call.type(at.shift) + text_of(shift));
        request.bias = call.floats(at.shift);
        n.finish.bias_batch = shift[0];
        n.finish.bias_heads = n.heads;
    }
    if (call.given(at.drop)) {
        require(n.keys % 8 == 0, "dropout needs a multiple of 8 keys");
        const Shape bits = call.shape(at.drop);
        require(call.type(at.drop) == "uint8" &&
                    bits == Shape{n.batch, n.heads, n.queries, n.keys / 8},
                "dropout bits " + call.type(at.drop) + text_of(bits));
        for (uint8_t byte : call.bytes(at.drop))
            for (int bit = 0; bit < 8; ++bit) request.kept.push_back(byte >> bit & 1);
    }
    request.parts.push_back(part);
}

void read_tnd(const Call& call, const Places& at, int64_t mode, Request& request) {
    require(call.given(at.query_ends) && call.given(at.key_ends), "TND takes lengths");
    require(!call.given(at.drop) && !call.given(at.prefix) && !call.given(at.shift),
            "options that TND does not take");
    const Ints queries = call.integers(at.query_ends), keys = call.integers(at.key_ends);
    require(queries.size() == keys.size() && queries.size() <= 1024, "number of sequences");
    if (mode == kRightDownCausal) {
        require_triangle(call, at.mask);
        require(call.integer(at.heads + 4) == 0, "TND with a mask takes next_tokens 0");
    } else {
        require(mode == 0 && !call.given(at.mask), "masks of TND are triangles");
    }
    int64_t query = 0, key = 0;
    for (size_t i = 0; i < queries.size(); ++i) {
        const int64_t rows = queries[i] - query, columns = keys[i] - key;
        require(rows >= 0 && columns > 0, "lengths must grow");
        require(mode != kRightDownCausal || rows <= columns, "more queries than keys");
        Part part = part_of(request, rows, columns, 1, mode == kRightDownCausal);
        part.first_query = query;
        part.first_key = key;
        request.parts.push_back(part);
        query = queries[i];
        key = keys[i];
    }
    require(query == call.shape(0)[0] && key == call.shape(1)[0], "lengths do not cover all rows");
}

Request read(const Call& call, const Places& at) {
    Request request;
    require(call.type(0) == "float16" || call.type(0) == "bfloat16", "storage " + call.type(0));
    require(call.type(1) == call.type(0) && call.type(2) == call.type(0), "one type for q, k, v");
    require(!call.given(at.padding), "padding masks");
    require(!call.given(at.mask) || call.type(at.mask) == "bool" || call.type(at.mask) == "uint8",
            "mask of type " + call.type(at.mask));
    request.heads = call.integer(at.heads);
    request.keep = static_cast<float>(call.number(at.heads + 1));
    request.scale = static_cast<float>(call.number(at.heads + 2));
    request.layout = call.integer(at.heads + 6);
    const int64_t mode = call.integer(at.heads + 7);
    const Shape q = call.shape(0), k = call.shape(1);
    require(call.shape(2) == k && q.size() == 3 && k.size() == 3, "shapes of q, k, v");
    require(request.layout == kSbh || request.layout == kTnd, "this layout is not served");
    require(mode == 0 || mode == kAll || mode == kRightDownCausal || mode == kBand, "this mode is not served");
    require((request.keep == 1.0f) == !call.given(at.drop), "dropout needs bits, bits dropout");
    if (request.layout == kSbh) {
        require(q[1] == k[1] && q[2] % request.heads == 0, "shapes of q, k, v");
        request.dim = q[2] / request.heads;
        request.groups = k[2] / request.dim;
    } else {
        require(q[1] == request.heads && q[2] == k[2], "shapes of q, k, v");
        request.dim = q[2];
        request.groups = k[1];
    }
    require(request.dim % 16 == 0 && request.dim <= 512,
            "head size " + std::to_string(request.dim));
    require(request.heads % request.groups == 0, "heads and groups");
    if (request.layout == kSbh)
        read_sbh(call, at, mode, request);
    else
        read_tnd(call, at, mode, request);
    return request;
}

// Where things of a part lie; its rows are contiguous in both layouts.
struct Rows {
    const AttentionSizes& n;
    int64_t query(int64_t i, int64_t b, int64_t h) const {
        return ((i * n.batch + b) * n.heads + h) * n.dim;
    }
    int64_t key(int64_t j, int64_t b, int64_t h) const {
        return ((j * n.batch + b) * n.groups + h / (n.heads / n.groups)) * n.dim;
    }
    int64_t statistic(int64_t i, int64_t b, int64_t h) const {
        return (i * n.batch + b) * n.heads + h;
    }
};

float dot(const float* a, const float* b, int64_t size) {
    double sum = 0.0;
    for (int64_t i = 0; i < size; ++i) sum += static_cast<double>(a[i]) * b[i];
    return static_cast<float>(sum);
}

template <class Visit>
void each_query(const AttentionSizes& n, Visit visit) {
    for (int64_t b = 0; b < n.batch; ++b)
        for (int64_t h = 0; h < n.heads; ++h)
            for (int64_t i = 0; i < n.queries; ++i) visit(b, h, i);
}

// Scaled scores of one query, -infinity where a key is hidden.
Floats scores_of(const Request& request, const AttentionSizes& n, const float* q, const float* k,
                 int64_t b, int64_t h, int64_t i) {
    const Rows at{n};
    Floats scores(static_cast<size_t>(n.keys));
    for (int64_t j = 0; j < n.keys; ++j) {
        const int64_t place = i + n.band.offset;
        bool hidden = j > place + n.band.right || j < place - n.band.left;
        if (!request.mask.empty())
            hidden |= request.mask[((n.mask_batch == 1 ? 0 : b) * n.queries + i) * n.keys + j] != 0;
        scores[j] = hidden ? -INFINITY
                           : n.scale * dot(q + at.query(i, b, h), k + at.key(j, b, h), n.dim);
        if (!request.bias.empty()) {
            const int64_t matrix = (n.finish.bias_batch == 1 ? 0 : b) * n.heads + h;
            scores[j] += request.bias[(matrix * n.queries + i) * n.keys + j];
        }
    }
    return scores;
}

// 0 or 1 / keep per key of one query; 1 without dropout.
Floats factors_of(const Request& request, const AttentionSizes& n, int64_t b, int64_t h,
                  int64_t i) {
    Floats factors(static_cast<size_t>(n.keys), 1.0f);
    if (!request.kept.empty())
        for (int64_t j = 0; j < n.keys; ++j)
            factors[j] =
                request.kept[((b * n.heads + h) * n.queries + i) * n.keys + j] / request.keep;
    return factors;
}

// With the bias, whose place is known when the request is complete.
AttentionSizes sizes_of(const Request& request, const Part& part) {
    AttentionSizes n = part.n;
    if (!request.bias.empty()) n.finish.bias = request.bias.data();
    return n;
}

struct Statistics {
    Floats top, sum;  // [rows, B, N]
};

void forward(const Request& request, const Part& part, const float* q, const float* k,
             const float* v, float* out, float* top, float* sum) {
    const AttentionSizes n = sizes_of(request, part);
    const Rows at{n};
    if (request.kept.empty()) {
        Floats lse(static_cast<size_t>(n.queries * n.batch * n.heads));
        plugin::native().attention_forward(kFloat32, q, k, v,
                                           request.mask.empty() ? nullptr : request.mask.data(),
                                           out, lse.data(), &n);
    } else {
        std::fill_n(out, n.queries * n.batch * n.heads * n.dim, 0.0f);
    }
    each_query(n, [&](int64_t b, int64_t h, int64_t i) {
        const Floats scores = scores_of(request, n, q, k, b, h, i);
        const float largest = *std::max_element(scores.begin(), scores.end());
        const int64_t row = at.statistic(i, b, h);
        float* result = out + at.query(i, b, h);
        if (largest == -INFINITY) {
            std::fill_n(result, n.dim, kUndocumented);
            top[row] = kUndocumented;
            sum[row] = 1.0f;
            return;
        }
        double total = 0.0;
        for (float score : scores) total += std::exp(score - largest);
        top[row] = largest;
        sum[row] = static_cast<float>(total);
        if (request.kept.empty()) return;
        const Floats factors = factors_of(request, n, b, h, i);
        for (int64_t j = 0; j < n.keys; ++j) {
            const float weight = std::exp(scores[j] - largest) / sum[row] * factors[j];
            for (int64_t d = 0; d < n.dim; ++d) result[d] += weight * v[at.key(j, b, h) + d];
        }
    });
}

struct Gradients {
    const float *q, *k, *v, *out, *dy;
    float *dq, *dk, *dv;
};

void backward_with_bits(const Request& request, const AttentionSizes& n, const Gradients& t,
                        const float* lse) {
    const Rows at{n};
    each_query(n, [&](int64_t b, int64_t h, int64_t i) {
        const Floats scores = scores_of(request, n, t.q, t.k, b, h, i);
        const Floats factors = factors_of(request, n, b, h, i);
        const int64_t query = at.query(i, b, h);
        const float delta = dot(t.dy + query, t.out + query, n.dim);
        for (int64_t j = 0; j < n.keys; ++j) {
            const int64_t key = at.key(j, b, h);
            const float prob = std::exp(scores[j] - lse[at.statistic(i, b, h)]);
            const float dprob = factors[j] * dot(t.dy + query, t.v + key, n.dim);
            const float dscore = prob * (dprob - delta) * n.scale;
            for (int64_t d = 0; d < n.dim; ++d) {
                t.dq[query + d] += dscore * t.k[key + d];
                t.dk[key + d] += dscore * t.q[query + d];
                t.dv[key + d] += prob * factors[j] * t.dy[query + d];
            }
        }
    });
}

// Index of the first copy of a statistic: [B, N, S, 8], or [T, N, 8] in TND.
int64_t copies_at(const Request& request, const Part& part, int64_t b, int64_t h, int64_t i) {
    const AttentionSizes& n = part.n;
    if (request.layout == kTnd) return ((part.first_query + i) * n.heads + h) * kCopies;
    return ((b * n.heads + h) * n.queries + i) * kCopies;
}

Shape shape_of_statistics(const Request& request, const Shape& q) {
    if (request.layout == kTnd) return {q[0], request.heads, kCopies};
    return {q[1], request.heads, q[0], kCopies};
}

}  // namespace

OPERATION(FlashAttentionScore) {
    const Request request = read(call, kForward);
    const Floats q = call.floats(0), k = call.floats(1), v = call.floats(2);
    const int64_t copies = count_of(shape_of_statistics(request, call.shape(0)));
    Floats out(q.size()), top_copies(static_cast<size_t>(copies)), sum_copies(top_copies.size());
    for (const Part& part : request.parts) {
        const AttentionSizes& n = part.n;
        Statistics found{Floats(static_cast<size_t>(n.queries * n.batch * n.heads)), {}};
        found.sum = found.top;
        const int64_t query = part.first_query * n.heads * n.dim;
        const int64_t key = part.first_key * n.groups * n.dim;
        forward(request, part, q.data() + query, k.data() + key, v.data() + key,
                out.data() + query, found.top.data(), found.sum.data());
        each_query(n, [&](int64_t b, int64_t h, int64_t i) {
            const int64_t to = copies_at(request, part, b, h, i);
            const int64_t from = Rows{n}.statistic(i, b, h);
            std::fill_n(top_copies.data() + to, kCopies, found.top[from]);
            std::fill_n(sum_copies.data() + to, kCopies, found.sum[from]);
        });
    }
    call.put(0, top_copies);
    call.put(1, sum_copies);
    call.put(3, out);
}

// query, key, value, dy, shift, drop, padding, mask, max, sum, softmax, attention, .. -> dq, dk, dv
OPERATION(FlashAttentionScoreGrad) {
    const Request request = read(call, kBackward);
    const Shape shape = shape_of_statistics(request, call.shape(0));
    for (int statistic : {8, 9})
        require(call.type(statistic) == "float32" && call.shape(statistic) == shape,
                "statistics " + call.type(statistic) + text_of(call.shape(statistic)));
    for (int like_query : {3, 11})
        require(call.type(like_query) == call.type(0) && call.shape(like_query) == call.shape(0),
                "result and its gradient " + call.type(like_query) +
                    text_of(call.shape(like_query)));
    const Floats q = call.floats(0), k = call.floats(1), v = call.floats(2), dy = call.floats(3);
    const Floats top = call.floats(8), sum = call.floats(9), out = call.floats(11);
    Floats dq(q.size()), dk(k.size()), dv(v.size());
    for (const Part& part : request.parts) {
        const AttentionSizes n = sizes_of(request, part);
        Floats lse(static_cast<size_t>(n.queries * n.batch * n.heads));
        each_query(n, [&](int64_t b, int64_t h, int64_t i) {
            const int64_t from = copies_at(request, part, b, h, i);
            for (int64_t copy = 1; copy < kCopies; ++copy)
                require(top[from + copy] == top[from] && sum[from + copy] == sum[from],
                        "copies of a statistic differ");
            lse[Rows{n}.statistic(i, b, h)] = top[from] + std::log(sum[from]);
        });
        const int64_t query = part.first_query * n.heads * n.dim;
        const int64_t key = part.first_key * n.groups * n.dim;
        const Gradients t{q.data() + query,   k.data() + key,   v.data() + key,
                          out.data() + query, dy.data() + query, dq.data() + query,
                          dk.data() + key,    dv.data() + key};
        if (request.kept.empty())
            plugin::native().attention_backward(
                kFloat32, t.q, t.k, t.v, request.mask.empty() ? nullptr : request.mask.data(),
                t.out, lse.data(), t.dy, t.dq, t.dk, t.dv, false, &n);
        else
            backward_with_bits(request, n, t, lse.data());
    }
    call.put(0, dq);
    call.put(1, dk);
    call.put(2, dv);
}

// One query per row in layout BSH. query, key, value, mask, lengths, .. heads, layout, scale, key
// heads, block size, precision -> out; keys beyond the length of a row are not read.
OPERATION(IncreFlashAttention) {
    for (int other = 5; other < 15; ++other)
        require(!call.given(other), "shifts, quantization, pages and padding sizes");
    const int64_t heads = call.integer(15), groups = call.integer(18);
    const float scale = static_cast<float>(call.number(17));
    const Shape q = call.shape(0), k = call.shape(1);
    require(call.type(0) == "float16" || call.type(0) == "bfloat16", "storage " + call.type(0));
    require(call.type(1) == call.type(0) && call.type(2) == call.type(0), "one type for q, k, v");
    require(call.integer(16) == 0, "layout BSH");
    require(call.integer(20) == 0, "the precise mode");
    require(q.size() == 3 && q[1] == 1 && k.size() == 3 && k == call.shape(2) && q[0] == k[0] &&
                heads % groups == 0 && q[2] / heads == k[2] / groups && q[2] / heads <= 512,
            "shapes of q, k, v");
    const int64_t batch = q[0], keys = k[1], dim = q[2] / heads;
    Bytes mask;
    if (call.given(3)) {
        require(call.type(3) == "bool" && call.shape(3) == Shape{batch, keys},
                "mask " + call.type(3) + text_of(call.shape(3)));
        mask = call.bytes(3);
    }
    const Ints lengths = call.ints(4);
    require(static_cast<int64_t>(lengths.size()) == batch, "a length per row");
    const Floats query = call.floats(0), key = call.floats(1), value = call.floats(2);
    Floats out(query.size(), kUndocumented);
    for (int64_t b = 0; b < batch; ++b)
        for (int64_t h = 0; h < heads; ++h) {
            require(lengths[b] > 0 && lengths[b] <= keys, "lengths within the keys");
            Floats scores(static_cast<size_t>(lengths[b]), -INFINITY);
            const auto at = [&](int64_t j) {
                return (b * keys + j) * k[2] + h / (heads / groups) * dim;
            };
            for (int64_t j = 0; j < lengths[b]; ++j)
                if (mask.empty() || !mask[b * keys + j])
                    scores[j] = scale * dot(query.data() + (b * heads + h) * dim,
                                            key.data() + at(j), dim);
            const float top = *std::max_element(scores.begin(), scores.end());
            if (top == -INFINITY) continue;
            double total = 0.0;
            for (float score : scores) total += std::exp(score - top);
            for (int64_t d = 0; d < dim; ++d) {
                double sum = 0.0;
                for (int64_t j = 0; j < lengths[b]; ++j)
                    if (scores[j] > -INFINITY)
                        sum += std::exp(scores[j] - top) * value[at(j) + d];
                out[(b * heads + h) * dim + d] = static_cast<float>(sum / total);
            }
        }
    call.put(0, out);
}
