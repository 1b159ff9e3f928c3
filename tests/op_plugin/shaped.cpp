// SPDX-License-Identifier: Apache-2.0
// Matrix products, reductions, gathering and joining, by plain loops.
#include <algorithm>
#include <cmath>

#include "call.h"

using plugin::Around;
using plugin::Call;
using plugin::count_of;
using plugin::Floats;
using plugin::Ints;
using plugin::require;
using plugin::Shape;
using plugin::text_of;

namespace {

// [rows, depth] x [depth, columns], or with the second one stored as [columns, depth].
struct Sizes {
    int64_t rows, depth, columns;
};

void multiply(const float* a, const float* b, float* c, Sizes n, bool b_is_transposed) {
    for (int64_t row = 0; row < n.rows; ++row)
        for (int64_t column = 0; column < n.columns; ++column) {
            double sum = 0.0;
            for (int64_t i = 0; i < n.depth; ++i)
                sum += static_cast<double>(a[row * n.depth + i]) *
                       b[b_is_transposed ? column * n.depth + i : i * n.columns + column];
            c[row * n.columns + column] = static_cast<float>(sum);
        }
}

void require_one_type(const Call& call, int a, int b) {
    require(call.type(a) == call.type(b), "types " + call.type(a) + " and " + call.type(b));
}

// Leading dimensions of the first tensor may be any when the second is a matrix.
void matrix_product(const Call& call) {
    require_one_type(call, 0, 1);
    const Shape a = call.shape(0), b = call.shape(1);
    require(a.size() >= 2 && b.size() >= 2, "product of " + text_of(a) + " and " + text_of(b));
    const Sizes n{a[a.size() - 2], a.back(), b.back()};
    require(b[b.size() - 2] == n.depth, "product of " + text_of(a) + " and " + text_of(b));
    const int64_t batch = count_of(a) / std::max<int64_t>(1, n.rows * n.depth);
    require(b.size() == 2 || count_of(b) / std::max<int64_t>(1, n.depth * n.columns) == batch,
            "product of " + text_of(a) + " and " + text_of(b));
    const Floats left = call.floats(0), right = call.floats(1);
    Floats result(static_cast<size_t>(batch * n.rows * n.columns));
    for (int64_t i = 0; i < batch; ++i)
        multiply(left.data() + i * n.rows * n.depth,
                 right.data() + (b.size() == 2 ? 0 : i * n.depth * n.columns),
                 result.data() + i * n.rows * n.columns, n, false);
    call.put(0, result);
}

}  // namespace

OPERATION(MatMulExt) { matrix_product(call); }
OPERATION(BatchMatMulExt) {
    require(call.shape(0).size() == 3 && call.shape(1).size() == 3, "bmm takes three dimensions");
    matrix_product(call);
}

OPERATION(Dense) {
    require_one_type(call, 0, 1);
    const Shape x = call.shape(0), weight = call.shape(1);
    require(weight.size() == 2 && x.back() == weight[1],
            "linear of " + text_of(x) + " and " + text_of(weight));
    const Sizes n{count_of(x) / std::max<int64_t>(1, x.back()), x.back(), weight[0]};
    Floats result(static_cast<size_t>(n.rows * n.columns));
    multiply(call.floats(0).data(), call.floats(1).data(), result.data(), n, true);
    if (call.given(2)) {
        require_one_type(call, 0, 2);
        require(call.shape(2) == Shape{weight[0]}, "bias " + text_of(call.shape(2)));
        const Floats bias = call.floats(2);
        for (size_t i = 0; i < result.size(); ++i) result[i] += bias[i % bias.size()];
    }
    call.put(0, result);
}

namespace {

// Whether each dimension is reduced, from the second input: none given means all.
std::vector<bool> reduced_dims(const Call& call, const Shape& shape) {
    const Ints dims = call.given(1) ? call.integers(1) : Ints{};
    std::vector<bool> reduced(shape.size(), dims.empty());
    for (int64_t dim : dims)
        reduced.at(static_cast<size_t>(dim < 0 ? dim + static_cast<int64_t>(shape.size()) : dim)) =
            true;
    return reduced;
}

template <class T, class Function>
std::vector<T> folded(const Call& call, const Floats& values, T first, Function function) {
    const Shape shape = call.shape(0);
    const std::vector<bool> reduced = reduced_dims(call, shape);
    Shape to = shape;
    for (size_t dim = 0; dim < to.size(); ++dim)
        if (reduced[dim]) to[dim] = 1;
    std::vector<T> result(static_cast<size_t>(count_of(to)), first);
    for (size_t i = 0; i < values.size(); ++i) {
        int64_t left = static_cast<int64_t>(i), at = 0, step = 1;
        for (size_t dim = shape.size(); dim-- > 0; left /= shape[dim]) {
            if (!reduced[dim]) at += left % shape[dim] * step;
            step *= to[dim];
        }
        result[at] = function(result[at], values[i]);
    }
    return result;
}

}  // namespace

OPERATION(SumExt) {
    const std::vector<double> sums = folded<double>(
        call, call.floats(0), 0.0, [](double sum, float value) { return sum + value; });
    call.put(0, Floats(sums.begin(), sums.end()));
}
OPERATION(ReduceMax) {
    call.put(0, folded<float>(call, call.floats(0), -INFINITY,
                              [](float top, float value) { return std::max(top, value); }));
}

OPERATION(ReduceAll) {
    call.put(0, folded<float>(call, call.floats(0), 1.0f, [](float all, float value) {
                 return all != 0.0f && value != 0.0f ? 1.0f : 0.0f;
             }));
}

OPERATION(MeanExt) {
    const Floats values = call.floats(0);
    const std::vector<double> sums = folded<double>(
        call, values, 0.0, [](double sum, float value) { return sum + value; });
    Floats means(sums.size());
    for (size_t i = 0; i < sums.size(); ++i)
        means[i] = static_cast<float>(sums[i] * sums.size() / values.size());
    call.put(0, means);
}

// x, k, dim, largest, sorted -> the largest of each row, their columns
OPERATION(TopkExt) {
    const Around n(call.shape(0), call.integer(2));
    const int64_t k = call.integer(1);
    require(n.after == 1 && k <= n.size && call.flag(3) && call.flag(4), "options of topk");
    const Floats values = call.floats(0);
    Floats top(static_cast<size_t>(n.before * k));
    Ints columns(top.size());
    for (int64_t row = 0; row < n.before; ++row) {
        const float* line = values.data() + row * n.size;
        Ints order(static_cast<size_t>(n.size));
        for (int64_t i = 0; i < n.size; ++i) order[i] = i;
        std::stable_sort(order.begin(), order.end(),
                         [line](int64_t a, int64_t b) { return line[a] > line[b]; });
        for (int64_t i = 0; i < k; ++i) {
            columns[row * k + i] = order[i];
            top[row * k + i] = line[order[i]];
        }
    }
    call.put(0, top);
    call.put(1, columns);
}

// x, dim, keepdim -> the largest along a dimension, their places
OPERATION(MaxDim) {
    const Around n(call.shape(0), call.integer(1));
    const Floats values = call.floats(0);
    Floats top(static_cast<size_t>(n.before * n.after));
    Ints place(top.size());
    for (int64_t i = 0; i < n.before * n.after; ++i) {
        const float* line = values.data() + i / n.after * n.size * n.after + i % n.after;
        int64_t best = 0;
        for (int64_t k = 1; k < n.size; ++k)
            if (line[k * n.after] > line[best * n.after]) best = k;
        top[i] = line[best * n.after];
        place[i] = best;
    }
    call.put(0, top);
    call.put(1, place);
}

OPERATION(Softmax) {
    const Ints dims = call.integers(1);
    require(dims.size() == 1, "softmax over one dimension");
    const Around n(call.shape(0), dims[0]);
    require(n.after == 1, "softmax over the last dimension");
    Floats values = call.floats(0);
    for (int64_t row = 0; row < n.before; ++row) {
        float* line = values.data() + row * n.size;
        const float top = *std::max_element(line, line + n.size);
        double total = 0.0;
        for (int64_t i = 0; i < n.size; ++i) total += line[i] = std::exp(line[i] - top);
        for (int64_t i = 0; i < n.size; ++i) line[i] = static_cast<float>(line[i] / total);
    }
    call.put(0, values);
}

// dx = y * (dy - sum(dy * y)); inputs dy, y, dim
OPERATION(SoftmaxBackward) {
    const Around n(call.shape(0), call.integer(2));
    require(n.after == 1, "softmax over the last dimension");
    Floats grad = call.floats(0);
    const Floats probs = call.floats(1);
    for (int64_t row = 0; row < n.before; ++row) {
        float* line = grad.data() + row * n.size;
        const float* prob = probs.data() + row * n.size;
        double dot = 0.0;
        for (int64_t i = 0; i < n.size; ++i) dot += static_cast<double>(line[i]) * prob[i];
        for (int64_t i = 0; i < n.size; ++i)
            line[i] = prob[i] * (line[i] - static_cast<float>(dot));
    }
    call.put(0, grad);
}

namespace {

// For each element of an index, the element of a tensor that it names along a dimension.
Ints gathered_places(const Call& call, const Shape& from, int64_t dim, int index_at) {
    const Shape to = call.shape(index_at);
    const Around source(from, dim), target(to, dim);
    require(source.before == target.before && source.after == target.after,
            "gather of " + text_of(from) + " by " + text_of(to));
    Ints places = call.ints(index_at);
    for (int64_t i = 0; i < static_cast<int64_t>(places.size()); ++i) {
        const int64_t before = i / (target.size * target.after), after = i % target.after;
        require(places[i] >= 0 && places[i] < source.size, "index out of range");
        places[i] = (before * source.size + places[i]) * source.after + after;
    }
    return places;
}

}  // namespace

// x, dim, index
OPERATION(GatherD) {
    const Ints places = gathered_places(call, call.shape(0), call.integer(1), 2);
    const auto picked = [&](auto values) {
        decltype(values) result;
        for (int64_t place : places) result.push_back(values[place]);
        return result;
    };
    if (call.is_floating(0))
        call.put(0, picked(call.floats(0)));
    else
        call.put(0, picked(call.ints(0)));
}

// x, dim, index, dy -> dx
OPERATION(GatherDGradV2) {
    const Shape shape = call.shape(0);
    const Ints places = gathered_places(call, shape, call.integer(1), 2);
    const Floats grad = call.floats(3);
    Floats result(static_cast<size_t>(count_of(shape)), 0.0f);
    for (size_t i = 0; i < places.size(); ++i) result[places[i]] += grad[i];
    call.put(0, result);
}

// input + alpha * source added at the rows of index; inputs: input, dim, index, source, alpha
OPERATION(IndexAddExt) {
    require(call.type(2) == "int32" || call.type(2) == "int64", "index of type " + call.type(2));
    require_one_type(call, 0, 3);
    const Around to(call.shape(0), call.integer(1)), from(call.shape(3), call.integer(1));
    const Ints index = call.ints(2);
    require(static_cast<int64_t>(index.size()) == from.size && to.after == from.after &&
                to.before == from.before,
            "rows " + text_of(call.shape(3)) + " for " + text_of(call.shape(0)));
    Floats result = call.floats(0);
    const Floats source = call.floats(3);
    const float alpha = static_cast<float>(call.number(4));
    for (int64_t i = 0; i < static_cast<int64_t>(source.size()); ++i) {
        const int64_t row = index[i / from.after % from.size];
        require(row >= 0 && row < to.size, "row out of range");
        const int64_t before = i / (from.after * from.size);
        result[(before * to.size + row) * to.after + i % from.after] += alpha * source[i];
    }
    call.put(0, result);
}

namespace {

// The tensors of a list come one by one, the dimension after them.
template <class T, class Read>
std::vector<T> joined(const Call& call, int parts, Read read) {
    const int64_t dim = call.integer(parts);
    const Around to(call.shape(call.out(0)), dim);
    std::vector<T> result(static_cast<size_t>(count_of(call.shape(call.out(0)))));
    int64_t first = 0;
    for (int part = 0; part < parts; ++part) {
        const Around from(call.shape(part), dim);
        const std::vector<T> values = read(part);
        for (int64_t i = 0; i < from.before; ++i)
            std::copy_n(values.data() + i * from.size * from.after, from.size * from.after,
                        result.data() + (i * to.size + first) * to.after);
        first += from.size;
    }
    require(first == to.size, "parts do not fill the result");
    return result;
}

}  // namespace

OPERATION(Tile) {
    Shape from = call.shape(0), times = call.integers(1);
    const Shape to = call.shape(call.out(0));
    require(times.size() == to.size() && from.size() <= to.size(), "repetitions of a tile");
    from.insert(from.begin(), to.size() - from.size(), 1);
    const Floats values = call.floats(0);
    Floats result(static_cast<size_t>(count_of(to)));
    for (size_t i = 0; i < result.size(); ++i) {
        int64_t left = static_cast<int64_t>(i), at = 0, step = 1;
        for (size_t dim = to.size(); dim-- > 0; left /= to[dim]) {
            at += left % to[dim] % from[dim] * step;
            step *= from[dim];
        }
        result[i] = values[at];
    }
    call.put(0, result);
}

OPERATION(Concat) {
    const int parts = call.inputs() - 1;
    if (call.is_floating(0))
        call.put(0, joined<float>(call, parts, [&](int part) { return call.floats(part); }));
    else
        call.put(0, joined<int64_t>(call, parts, [&](int part) { return call.ints(part); }));
}

// values, dimension, indices
OPERATION(IndexSelect) {
    const Shape from = call.shape(0);
    const Around around(from, call.integer(1));
    const Floats values = call.floats(0);
    const Ints indices = call.ints(2);
    const int64_t count = static_cast<int64_t>(indices.size());
    Floats result(static_cast<size_t>(around.before * count * around.after));
    for (int64_t before = 0; before < around.before; ++before)
        for (int64_t i = 0; i < count; ++i) {
            require(indices[i] >= 0 && indices[i] < around.size, "an index beyond the dimension");
            std::copy_n(&values[(before * around.size + indices[i]) * around.after], around.after,
                        &result[(before * count + i) * around.after]);
        }
    call.put(0, result);
}
