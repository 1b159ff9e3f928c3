// SPDX-License-Identifier: Apache-2.0
// Norms, activations, rotary, embedding and AdamW: the documented calls of the Ascend kernels,
// forwarded to the native library in fp32.
#include <dlfcn.h>

#include <cmath>

#include "native.h"

using plugin::Call;
using plugin::count_of;
using plugin::Floats;
using plugin::Ints;
using plugin::kFloat32;
using plugin::native;
using plugin::require;
using plugin::Shape;
using plugin::text_of;

namespace plugin {

namespace {
Native g_native;
bool g_is_ready = false;
}  // namespace

const Native& native() {
    require(g_is_ready, "use_kernels was not called");
    return g_native;
}

}  // namespace plugin

// Take the kernels from the native library at `path`; 0 when an entry point is missing.
extern "C" int use_kernels(const char* path) {
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    plugin::Native& n = plugin::g_native;
    plugin::g_is_ready = library != nullptr;
    const auto find = [library](const char* name, auto& function) {
        if (!plugin::g_is_ready) return;
        function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
        plugin::g_is_ready = function != nullptr;
    };
    find("norm_forward", n.norm_forward);
    find("norm_backward", n.norm_backward);
    find("activation_forward", n.activation_forward);
    find("activation_backward", n.activation_backward);
    find("rotary", n.rotary);
    find("embedding_forward", n.embedding_forward);
    find("embedding_accumulate", n.embedding_accumulate);
    find("attention_forward", n.attention_forward);
    find("attention_backward", n.attention_backward);
    find("adamw", n.adamw);
    return plugin::g_is_ready;
}

namespace {

void require_type(const Call& call, int index, const std::string& type) {
    require(call.type(index) == type,
            "argument " + std::to_string(index) + " is " + call.type(index) + ", not " + type);
}

void require_shape(const Call& call, int index, const Shape& shape) {
    require(call.shape(index) == shape, "argument " + std::to_string(index) + " is " +
                                            text_of(call.shape(index)) + ", not " + text_of(shape));
}

// Rows and columns of a tensor normalised over its last dimensions, which are those of the weight.
struct Rows {
    int64_t rows, columns;
    Rows(const Call& call, int x, int weight) {
        const Shape shape = call.shape(x), tail = call.shape(weight);
        require(tail.size() <= shape.size() &&
                    std::equal(tail.rbegin(), tail.rend(), shape.rbegin()),
                "weight " + text_of(tail) + " for " + text_of(shape));
        columns = count_of(tail);
        rows = columns ? count_of(shape) / columns : 0;
    }
};

}  // namespace

// x, gamma, epsilon -> y, rstd
OPERATION(RmsNorm) {
    require_type(call, 1, call.type(0));
    const Rows n(call, 0, 1);
    const Floats x = call.floats(0), weight = call.floats(1);
    Floats y(x.size()), rstd(static_cast<size_t>(n.rows));
    native().norm_forward(kFloat32, x.data(), weight.data(), nullptr, y.data(), nullptr,
                          rstd.data(), n.rows, n.columns, static_cast<float>(call.number(2)));
    require_type(call, call.out(1), "float32");
    call.put(0, y);
    call.put(1, rstd);
}

// dy, x, rstd, gamma -> dx, dgamma
OPERATION(RmsNormGrad) {
    require_type(call, 0, call.type(1));
    require_shape(call, 0, call.shape(1));
    const Rows n(call, 1, 3);
    const Floats dy = call.floats(0), x = call.floats(1), rstd = call.floats(2);
    const Floats weight = call.floats(3);
    Floats dx(x.size()), dweight(weight.size());
    native().norm_backward(kFloat32, x.data(), dy.data(), weight.data(), nullptr, rstd.data(),
                           dx.data(), dweight.data(), nullptr, n.rows, n.columns);
    call.put(0, dx);
    call.put(1, dweight);
}

// x, normalized_shape, weight, bias, eps -> y, mean, rstd
OPERATION(LayerNormExt) {
    require_type(call, 2, call.type(0));
    require_type(call, 3, call.type(0));
    require_shape(call, 2, call.integers(1));
    require_shape(call, 3, call.integers(1));
    const Rows n(call, 0, 2);
    const Floats x = call.floats(0), weight = call.floats(2), bias = call.floats(3);
    Floats y(x.size()), mean(static_cast<size_t>(n.rows)), rstd(mean.size());
    native().norm_forward(kFloat32, x.data(), weight.data(), bias.data(), y.data(), mean.data(),
                          rstd.data(), n.rows, n.columns, static_cast<float>(call.number(4)));
    require_type(call, call.out(1), "float32");
    call.put(0, y);
    call.put(1, mean);
    call.put(2, rstd);
}

// dy, x, normalized_shape, mean, rstd, weight, bias, .. -> dx, dweight, dbias
OPERATION(LayerNormGradExt) {
    require_type(call, 0, call.type(1));
    require_shape(call, 0, call.shape(1));
    require_shape(call, 5, call.integers(2));
    const Rows n(call, 1, 5);
    const Floats dy = call.floats(0), x = call.floats(1), mean = call.floats(3);
    const Floats rstd = call.floats(4), weight = call.floats(5);
    Floats dx(x.size()), dweight(weight.size()), dbias(weight.size());
    native().norm_backward(kFloat32, x.data(), dy.data(), weight.data(), mean.data(), rstd.data(),
                           dx.data(), dweight.data(), dbias.data(), n.rows, n.columns);
    call.put(0, dx);
    call.put(1, dweight);
    call.put(2, dbias);
}

namespace {

void activate(const Call& call, int32_t kind) {
    const Floats x = call.floats(0);
    const int64_t columns = call.shape(0).back();
    Floats y(kind == plugin::kSwiglu ? x.size() / 2 : x.size());
    native().activation_forward(kFloat32, kind, x.data(), nullptr, y.data(),
                                static_cast<int64_t>(x.size()) / columns, columns);
    call.put(0, y);
}

// dy, x -> dx
void activate_backward(const Call& call, int32_t kind) {
    require_type(call, 0, call.type(1));
    const Floats dy = call.floats(0), x = call.floats(1);
    require(dy.size() == (kind == plugin::kSwiglu ? x.size() / 2 : x.size()),
            "gradient " + text_of(call.shape(0)) + " for " + text_of(call.shape(1)));
    const int64_t columns = call.shape(1).back();
    Floats dx(x.size());
    native().activation_backward(kFloat32, kind, x.data(), nullptr, dy.data(), dx.data(), nullptr,
                                 static_cast<int64_t>(x.size()) / columns, columns);
    call.put(0, dx);
}

int32_t gelu_kind(const Call& call, int approximate) {
    const int64_t mode = call.integer(approximate);
    require(mode == 0 || mode == 1, "gelu of mode " + std::to_string(mode));
    return mode ? plugin::kGeluTanh : plugin::kGelu;
}

void require_last_dim(const Call& call, int tensor, int dim) {
    const int64_t rank = static_cast<int64_t>(call.shape(tensor).size()), given = call.integer(dim);
    require(given == -1 || given == rank - 1, "swiglu over dimension " + std::to_string(given));
    require(call.shape(tensor).back() % 2 == 0, "swiglu of an odd number of columns");
}

}  // namespace

OPERATION(GeluExt) { activate(call, gelu_kind(call, 1)); }
OPERATION(GeluGradExt) { activate_backward(call, gelu_kind(call, 2)); }
OPERATION(SiLU) { activate(call, plugin::kSilu); }
OPERATION(SiLUGrad) { activate_backward(call, plugin::kSilu); }
OPERATION(Swiglu) {
    require_last_dim(call, 0, 1);
    activate(call, plugin::kSwiglu);
}
OPERATION(SwigluGrad) {
    require_last_dim(call, 1, 2);
    activate_backward(call, plugin::kSwiglu);
}

namespace {

// Documented for x [S, B, N, D]: tables [S, 1, 1, D], without pairs also [S, B, 1, D]; one type.
void rotate(const Call& call, int mode_at, bool backward) {
    const Shape x = call.shape(0), tables = call.shape(1);
    const int64_t mode = call.integer(mode_at);
    require(mode == 0 || mode == 1, "mode " + std::to_string(mode));
    require(x.size() == 4 && tables.size() == 4 && tables[0] == x[0] && tables[2] == 1 &&
                tables[3] == x[3] && x[3] % 2 == 0,
            "tables " + text_of(tables) + " for " + text_of(x));
    require(tables[1] == 1 || (mode == 0 && tables[1] == x[1]),
            "tables " + text_of(tables) + " for " + text_of(x) + " in this mode");
    require_shape(call, 2, tables);
    for (int table : {1, 2}) require_type(call, table, call.type(0));
    const Floats t = call.floats(0), cos = call.floats(1), sin = call.floats(2);
    Floats y(t.size());
    native().rotary(kFloat32, t.data(), cos.data(), sin.data(), y.data(), x[0], x[1], x[2], x[3],
                    x[3], tables[1], static_cast<int32_t>(mode), backward);
    call.put(0, y);
}

}  // namespace

// x, cos, sin, mode -> y
OPERATION(RotaryPositionEmbedding) { rotate(call, 3, false); }

// dy, cos, sin, x (only for gradients of the tables), mode -> dx, dcos, dsin
OPERATION(RotaryPositionEmbeddingGrad) { rotate(call, 4, true); }

// ids, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq -> y
OPERATION(Embedding) {
    require(!call.given(2) && !call.given(3) && !call.flag(5), "options of the table");
    require(call.type(0) == "int32" || call.type(0) == "int64", "ids of type " + call.type(0));
    const Ints ids = call.ints(0);
    const Floats weight = call.floats(1);
    const Shape table = call.shape(1);
    for (int64_t id : ids) require(id >= 0 && id < table.at(0), "id out of range");
    Floats y(ids.size() * static_cast<size_t>(table.at(1)));
    native().embedding_forward(kFloat32, weight.data(), ids.data(), y.data(),
                               static_cast<int64_t>(ids.size()), table[0], table[1], 0);
    call.put(0, y);
}

// dy, ids, number of rows, padding_idx, scale_grad_by_freq -> dweight
OPERATION(EmbeddingDenseBackward) {
    require(!call.given(3) && !call.flag(4), "options of the table");
    const Floats dy = call.floats(0);
    const Ints ids = call.ints(1);
    const int64_t rows = call.integer(2), columns = call.shape(0).back();
    require(dy.size() == ids.size() * static_cast<size_t>(columns), "one row per id");
    Floats grad(static_cast<size_t>(rows * columns), 0.0f);
    native().embedding_accumulate(kFloat32, dy.data(), ids.data(), grad.data(),
                                  static_cast<int64_t>(ids.size()), rows, columns, 0);
    call.put(0, grad);
}

// var, m, v, max_v, gradient, step, lr, beta1, beta2, decay, eps, amsgrad, maximize; in place
OPERATION(AdamW) {
    require(!call.flag(11) && !call.flag(12), "amsgrad and maximize");
    require_type(call, 5, "float32");
    for (int tensor : {0, 1, 2, 3, 4}) {
        require_type(call, tensor, "float32");
        require_shape(call, tensor, call.shape(0));
    }
    Floats param = call.floats(0), m = call.floats(1), v = call.floats(2);
    const Floats grad = call.floats(4);
    const double step = call.number(5), lr = call.number(6), decay = call.number(9);
    const double beta1 = call.number(7), beta2 = call.number(8);
    native().adamw(param.data(), grad.data(), m.data(), v.data(),
                   static_cast<int64_t>(param.size()), static_cast<float>(beta1),
                   static_cast<float>(beta2), static_cast<float>(1 - beta1),
                   static_cast<float>(1 - beta2), static_cast<float>(call.number(10)),
                   static_cast<float>(1 - lr * decay),
                   static_cast<float>(lr / (1 - std::pow(beta1, step))),
                   static_cast<float>(std::sqrt(1 - std::pow(beta2, step))), 1.0f);
    call.overwrite(0, param);
    call.overwrite(1, m);
    call.overwrite(2, v);
}
