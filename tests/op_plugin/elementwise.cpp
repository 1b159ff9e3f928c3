// SPDX-License-Identifier: Apache-2.0
// Arithmetic with broadcasting, also in place; fp32 inside, rounded to the type of the result.
#include <algorithm>
#include <cmath>

#include "call.h"

using plugin::Broadcast;
using plugin::Call;
using plugin::count_of;
using plugin::Floats;
using plugin::Ints;
using plugin::require;
using plugin::Shape;

namespace {

template <class T>
std::vector<T> values_of(const Call& call, int input);
template <>
Floats values_of<float>(const Call& call, int input) {
    return call.floats(input);
}
template <>
Ints values_of<int64_t>(const Call& call, int input) {
    return call.ints(input);
}

Shape shape_of(const Call& call, int input) {
    return call.is_scalar(input) ? Shape{} : call.shape(input);
}

// function(a, b) for all elements of `to`, computed in T.
template <class T, class Function>
auto combined(const Call& call, const Shape& to, Function function) {
    const std::vector<T> a = values_of<T>(call, 0), b = values_of<T>(call, 1);
    const Broadcast at_a(shape_of(call, 0), to), at_b(shape_of(call, 1), to);
    std::vector<T> result(static_cast<size_t>(count_of(to)));
    for (int64_t i = 0; i < count_of(to); ++i)
        result[i] = static_cast<T>(function(a[at_a(i)], b[at_b(i)]));
    return result;
}

// Floats when one of both is, else 64-bit integers, which wrap around.
template <class Function>
void binary(const Call& call, Function function) {
    const Shape to = call.shape(call.out(0));
    if (call.is_floating(0) || call.is_floating(1))
        call.put(0, combined<float>(call, to, function));
    else
        call.put(0, combined<int64_t>(call, to, function));
}

template <class Function>
void binary_in_place(const Call& call, Function function) {
    require(call.is_floating(0), "in place on " + call.type(0) + " is not served");
    call.overwrite(0, combined<float>(call, call.shape(0), function));
}

template <class Function>
void unary(const Call& call, Function function) {
    Floats values = call.floats(0);
    for (float& value : values) value = function(value);
    call.put(0, values);
}

int64_t wrapped(uint64_t bits) { return static_cast<int64_t>(bits); }

struct Product {
    float operator()(float a, float b) const { return a * b; }
    int64_t operator()(int64_t a, int64_t b) const {
        return wrapped(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
    }
};

struct Sum {
    double alpha = 1.0;
    float operator()(float a, float b) const { return a + static_cast<float>(alpha) * b; }
    int64_t operator()(int64_t a, int64_t b) const { return a + static_cast<int64_t>(alpha) * b; }
};

double alpha_of(const Call& call) { return call.number(2); }

}  // namespace

OPERATION(Add) { binary(call, Sum{}); }
OPERATION(AddExt) { binary(call, Sum{alpha_of(call)}); }
OPERATION(SubExt) { binary(call, Sum{-alpha_of(call)}); }
OPERATION(SubScalar) { binary(call, Sum{-alpha_of(call)}); }
OPERATION(Mul) { binary(call, Product{}); }
OPERATION(Muls) { binary(call, Product{}); }
OPERATION(Div) {
    call.put(0, combined<float>(call, call.shape(call.out(0)),
                                [](float a, float b) { return a / b; }));
}
OPERATION(Divs) { Div_body(call); }
OPERATION(Maximum) {
    binary(call, [](auto a, auto b) { return a > b ? a : b; });
}
OPERATION(GreaterEqual) {
    binary(call, [](auto a, auto b) { return a >= b; });
}
OPERATION(GreaterEqualScalar) {
    binary(call, [](auto a, auto b) { return a >= b; });
}
OPERATION(LessScalar) {
    binary(call, [](auto a, auto b) { return a < b; });
}
OPERATION(Equal) {
    binary(call, [](auto a, auto b) { return a == b; });
}
OPERATION(LogicalAnd) {
    binary(call, [](auto a, auto b) { return a != 0 && b != 0; });
}
OPERATION(LogicalOr) {
    binary(call, [](auto a, auto b) { return a != 0 || b != 0; });
}

namespace {

template <class Function>
void bits(const Call& call, Function function) {
    require(!call.is_floating(0) && !call.is_floating(1), "bits of floating numbers");
    call.put(0, combined<int64_t>(call, call.shape(call.out(0)), function));
}

}  // namespace

OPERATION(BitwiseAnd) {
    bits(call, [](int64_t a, int64_t b) { return a & b; });
}
OPERATION(BitwiseXor) {
    bits(call, [](int64_t a, int64_t b) { return a ^ b; });
}
OPERATION(RightShift) {
    bits(call, [](int64_t a, int64_t b) { return a >> b; });
}

OPERATION(Neg) {
    unary(call, [](float value) { return -value; });
}
OPERATION(Exp) {
    unary(call, [](float value) { return std::exp(value); });
}
OPERATION(Log) {
    unary(call, [](float value) { return std::log(value); });
}
OPERATION(Tanh) {
    unary(call, [](float value) { return std::tanh(value); });
}
OPERATION(Square) {
    unary(call, [](float value) { return value * value; });
}
OPERATION(ReLU) {
    unary(call, [](float value) { return value > 0.0f ? value : 0.0f; });
}
OPERATION(ReluGrad) {
    binary(call, [](auto grad, auto y) { return y > 0 ? grad : 0; });
}
OPERATION(Sigmoid) {
    unary(call, [](float value) { return 1.0f / (1.0f + std::exp(-value)); });
}
// y, dy -> dx
OPERATION(SigmoidGrad) {
    binary(call, [](auto y, auto grad) { return grad * y * (1 - y); });
}
OPERATION(LogicalNot) {
    Ints values = call.ints(0);
    for (int64_t& value : values) value = value == 0;
    call.put(0, values);
}
OPERATION(Cast) {
    if (call.is_floating(0))
        call.put(0, call.floats(0));
    else
        call.put(0, call.ints(0));
}
OPERATION(Clone) { Cast_body(call); }
OPERATION(Contiguous) { Cast_body(call); }
OPERATION(Zeros) {
    call.put(0, Floats(static_cast<size_t>(count_of(call.shape(call.out(0)))), 0.0f));
}
OPERATION(Ones) {
    call.put(0, Floats(static_cast<size_t>(count_of(call.shape(call.out(0)))), 1.0f));
}
OPERATION(Pow) {
    binary(call, [](auto base, auto power) { return std::pow(base, power); });
}
OPERATION(ClampScalar) {
    const float low = call.given(1) ? static_cast<float>(call.number(1)) : -INFINITY;
    const float high = call.given(2) ? static_cast<float>(call.number(2)) : INFINITY;
    unary(call, [=](float value) { return std::min(std::max(value, low), high); });
}

OPERATION(MaskedFill) {
    const Shape to = call.shape(call.out(0));
    const Floats values = call.floats(0);
    const Ints hidden = call.ints(1);
    const float fill = static_cast<float>(call.number(2));
    const Broadcast at_value(call.shape(0), to), at_hidden(call.shape(1), to);
    Floats result(static_cast<size_t>(count_of(to)));
    for (int64_t i = 0; i < count_of(to); ++i)
        result[i] = hidden[at_hidden(i)] ? fill : values[at_value(i)];
    call.put(0, result);
}

OPERATION(InplaceAddExt) { binary_in_place(call, Sum{alpha_of(call)}); }
OPERATION(InplaceMuls) { binary_in_place(call, Product{}); }
OPERATION(InplaceCopy) {
    binary_in_place(call, [](float, float source) { return source; });
}
