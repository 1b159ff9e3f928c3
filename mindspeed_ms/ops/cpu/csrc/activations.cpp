// SPDX-License-Identifier: Apache-2.0
// Pointwise activations of z = x + bias, and the gradient of a bias.
#include "simd.h"

namespace kernels {

namespace {

enum Kind : int32_t {
    kGeluErf = 0,
    kGeluTanh = 1,
    kSilu = 2,
    kSquaredRelu = 3,
    kSwiglu = 4,
    kQuickGelu = 5,
};

constexpr float kSqrtHalf = 0.70710678118654752f;
constexpr float kInverseSqrtTwoPi = 0.39894228040143268f;
constexpr float kTanhScale = 0.79788456080286536f;  // sqrt(2 / pi)
constexpr float kTanhCubic = 0.044715f;

struct GeluErf {
    static vf value(vf z) { return 0.5f * z * (1.0f + verf(z * kSqrtHalf)); }
    static vf slope(vf z) {
        const vf density = vexp(-0.5f * z * z) * kInverseSqrtTwoPi;
        return 0.5f * (1.0f + verf(z * kSqrtHalf)) + z * density;
    }
};

struct GeluTanh {
    static vf inner(vf z) { return vtanh(kTanhScale * (z + kTanhCubic * z * z * z)); }
    static vf value(vf z) { return 0.5f * z * (1.0f + inner(z)); }
    static vf slope(vf z) {
        const vf t = inner(z);
        const vf inner_slope = kTanhScale * (1.0f + 3.0f * kTanhCubic * z * z);
        return 0.5f * (1.0f + t) + 0.5f * z * (1.0f - t * t) * inner_slope;
    }
};

// A division takes as long as all other steps of a sigmoid together.
#if defined(__AVX512F__)
inline vf reciprocal(vf positive) {
    const vf x = vmin(splat(3e38f), positive);  // NaN stays
    const vf first = (vf)_mm512_rcp14_ps((__m512)x);
    return first + first * (1.0f - x * first);
}
#else
inline vf reciprocal(vf positive) { return 1.0f / positive; }
#endif

inline vf sigmoid(vf x) { return reciprocal(1.0f + vexp(-x)); }

struct Silu {
    static vf value(vf z) { return z * sigmoid(z); }
    static vf slope(vf z) {
        const vf s = sigmoid(z);
        return s * (1.0f + z * (1.0f - s));
    }
};

constexpr float kQuick = 1.702f;

struct QuickGelu {
    static vf value(vf z) { return z * sigmoid(kQuick * z); }
    static vf slope(vf z) {
        const vf s = sigmoid(kQuick * z);
        return s * (1.0f + kQuick * z * (1.0f - s));
    }
};

struct SquaredRelu {
    static vf value(vf z) {
        const vf positive = vmax(z, vf{});
        return positive * positive;
    }
    static vf slope(vf z) { return 2.0f * vmax(z, vf{}); }
};

template <class T>
vf biased(const T* x, const T* bias, int64_t i, int64_t count) {
    const vf value = load(x + i, count);
    return bias ? value + load(bias + i, count) : value;
}

template <class F, class T>
void forward(const T* x, const T* bias, T* y, int64_t rows, int64_t columns) {
    parallel_ranges(rows, columns, [=](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
            vector_loop(columns, [&](int64_t i, int64_t count) {
                const int64_t at = row * columns;
                store(y + at + i, F::value(biased(x + at, bias, i, count)), count);
            });
    });
}

// Numbers ahead of which streams of short rows are fetched, as the processor stops where a row ends.
constexpr int64_t kAhead = 512;

template <class T>
inline void fetch(const T* read) {
    __builtin_prefetch(read + kAhead);
}
template <class T>
inline void fetch_to_write(T* written) {
    __builtin_prefetch(written + kAhead, 1);
}

template <class T>
void swiglu_forward(const T* x, const T* bias, T* y, int64_t rows, int64_t half) {
    const T* up_bias = bias ? bias + half : nullptr;
    parallel_ranges(rows, half, [=](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
            vector_loop(half, [&](int64_t i, int64_t count) {
                const T* in = x + row * 2 * half;
                fetch(in + i);
                fetch(in + half + i);
                fetch_to_write(y + row * half + i);
                const vf gate = Silu::value(biased(in, bias, i, count));
                store(y + row * half + i, gate * biased(in + half, up_bias, i, count), count);
            });
    });
}

// Runs row(row, sums or null) for all rows; sums collects dbias when it is wanted.
template <class T, class Row>
void rows_with_bias(int64_t rows, int64_t columns, T* dbias, Row row_step) {
    if (!dbias) {
        parallel_ranges(rows, columns, [=](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) row_step(row, nullptr);
        });
        return;
    }
    const int64_t pieces = row_pieces(rows);
    float* partial = scratch(kPartial, pieces * columns);
    parallel_ranges(pieces, rows * columns / pieces, [=](int64_t begin, int64_t end) {
        for (int64_t piece = begin; piece < end; ++piece) {
            float* sums = partial + piece * columns;
            std::memset(sums, 0, static_cast<size_t>(columns) * sizeof(float));
            for (int64_t row = rows * piece / pieces; row < rows * (piece + 1) / pieces; ++row)
                row_step(row, sums);
        }
    });
    add_pieces(partial, pieces, columns, columns, dbias);
}

template <class T>
void put_grad(T* dx, float* sums, int64_t i, vf value, int64_t count) {
    store(dx + i, value, count);
    if (sums) store(sums + i, load(sums + i, count) + value, count);
}

template <class F, class T>
void backward(const T* x, const T* bias, const T* dy, T* dx, T* dbias, int64_t rows,
              int64_t columns) {
    rows_with_bias(rows, columns, dbias, [=](int64_t row, float* sums) {
        const int64_t at = row * columns;
        vector_loop(columns, [&](int64_t i, int64_t count) {
            const vf slope = F::slope(biased(x + at, bias, i, count));
            put_grad(dx + at, sums, i, load(dy + at + i, count) * slope, count);
        });
    });
}

template <class T>
void swiglu_backward(const T* x, const T* bias, const T* dy, T* dx, T* dbias, int64_t rows,
                     int64_t half) {
    const T* up_bias = bias ? bias + half : nullptr;
    rows_with_bias(rows, 2 * half, dbias, [=](int64_t row, float* sums) {
        const T* in = x + row * 2 * half;
        T* out = dx + row * 2 * half;
        float* up_sums = sums ? sums + half : nullptr;
        vector_loop(half, [&](int64_t i, int64_t count) {
            fetch(in + i);
            fetch(in + half + i);
            fetch(dy + row * half + i);
            fetch_to_write(out + i);
            fetch_to_write(out + half + i);
            const vf gate = biased(in, bias, i, count);
            const vf up = biased(in + half, up_bias, i, count);
            const vf grad = load(dy + row * half + i, count);
            const vf s = sigmoid(gate);
            put_grad(out, sums, i, grad * up * s * (1.0f + gate * (1.0f - s)), count);
            put_grad(out + half, up_sums, i, grad * gate * s, count);
        });
    });
}

// f(gate) * (up + offset), where gate <= limit and |up| <= limit if limit > 0.
struct Limits {
    float limit, offset;
    vf gate(vf z) const { return limit > 0 ? vmin(splat(limit), z) : z; }
    vf up(vf z) const { return limit > 0 ? vmin(splat(limit), vmax(z, splat(-limit))) : z; }
    // 1 where the value is itself, 0 where it was limited
    static vf kept(vf before, vf after) { return before == after ? splat(1.0f) : vf{}; }
};

template <class F, class T>
void gated_forward(const T* x, const T* bias, T* y, int64_t rows, int64_t half, Limits limits) {
    const T* up_bias = bias ? bias + half : nullptr;
    parallel_ranges(rows, half, [=](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
            vector_loop(half, [&](int64_t i, int64_t count) {
                const T* in = x + row * 2 * half;
                const vf gate = limits.gate(biased(in, bias, i, count));
                const vf up = limits.up(biased(in + half, up_bias, i, count));
                store(y + row * half + i, F::value(gate) * (up + limits.offset), count);
            });
    });
}

template <class F, class T>
void gated_backward(const T* x, const T* bias, const T* dy, T* dx, T* dbias, int64_t rows,
                    int64_t half, Limits limits) {
    const T* up_bias = bias ? bias + half : nullptr;
    rows_with_bias(rows, 2 * half, dbias, [=](int64_t row, float* sums) {
        const T* in = x + row * 2 * half;
        T* out = dx + row * 2 * half;
        float* up_sums = sums ? sums + half : nullptr;
        vector_loop(half, [&](int64_t i, int64_t count) {
            const vf raw_gate = biased(in, bias, i, count);
            const vf raw_up = biased(in + half, up_bias, i, count);
            const vf gate = limits.gate(raw_gate), up = limits.up(raw_up);
            const vf grad = load(dy + row * half + i, count);
            const vf to_gate = grad * (up + limits.offset) * F::slope(gate);
            put_grad(out, sums, i, to_gate * Limits::kept(raw_gate, gate), count);
            put_grad(out + half, up_sums, i, grad * F::value(gate) * Limits::kept(raw_up, up),
                     count);
        });
    });
}

// What one number p does to every element: 0: x * p, 1: p * tanh(x / p).
enum Map : int32_t { kScaled = 0, kSoftcapped = 1 };

template <class T>
void map_forward(int32_t map, const T* x, T* y, int64_t size, float p) {
    parallel_ranges(size, 1, [=](int64_t begin, int64_t end) {
        vector_loop(end - begin, [&](int64_t i, int64_t count) {
            const vf value = load(x + begin + i, count);
            store(y + begin + i, map == kScaled ? value * p : p * vtanh(value / p), count);
        });
    });
}

template <class T>
void map_backward(int32_t map, const T* x, const T* dy, T* dx, int64_t size, float p) {
    parallel_ranges(size, 1, [=](int64_t begin, int64_t end) {
        vector_loop(end - begin, [&](int64_t i, int64_t count) {
            const vf grad = load(dy + begin + i, count);
            if (map == kScaled) return store(dx + begin + i, grad * p, count);
            const vf t = vtanh(load(x + begin + i, count) / p);
            store(dx + begin + i, grad * (1.0f - t * t), count);
        });
    });
}

template <class Function>
void with_kind(int32_t kind, Function function) {
    if (kind == kGeluErf) {
        function(GeluErf{});
    } else if (kind == kGeluTanh) {
        function(GeluTanh{});
    } else if (kind == kSilu) {
        function(Silu{});
    } else if (kind == kQuickGelu) {
        function(QuickGelu{});
    } else {
        function(SquaredRelu{});
    }
}

}  // namespace

}  // namespace kernels

using namespace kernels;

// `columns` are those of x; swiglu's y has half of them. bias and dbias may be null.
EXPORT void activation_forward(int32_t storage, int32_t kind, const void* x, const void* bias,
                               void* y, int64_t rows, int64_t columns) {
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        const T *in = static_cast<const T*>(x), *shift = static_cast<const T*>(bias);
        if (kind == kSwiglu) return swiglu_forward(in, shift, static_cast<T*>(y), rows, columns / 2);
        with_kind(kind, [&](auto f) {
            forward<decltype(f)>(in, shift, static_cast<T*>(y), rows, columns);
        });
    });
}

EXPORT void activation_backward(int32_t storage, int32_t kind, const void* x, const void* bias,
                                const void* dy, void* dx, void* dbias, int64_t rows,
                                int64_t columns) {
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        const T *in = static_cast<const T*>(x), *shift = static_cast<const T*>(bias);
        const T* grad = static_cast<const T*>(dy);
        T *out = static_cast<T*>(dx), *sums = static_cast<T*>(dbias);
        if (kind == kSwiglu)
            return swiglu_backward(in, shift, grad, out, sums, rows, columns / 2);
        with_kind(kind, [&](auto f) {
            backward<decltype(f)>(in, shift, grad, out, sums, rows, columns);
        });
    });
}

// `columns` are those of x, twice those of y; limit 0: none.
EXPORT void gated_forward(int32_t storage, int32_t kind, const void* x, const void* bias, void* y,
                          int64_t rows, int64_t columns, float limit, float offset) {
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        const T *in = static_cast<const T*>(x), *shift = static_cast<const T*>(bias);
        with_kind(kind, [&](auto f) {
            kernels::gated_forward<decltype(f)>(in, shift, static_cast<T*>(y), rows, columns / 2,
                                                Limits{limit, offset});
        });
    });
}

EXPORT void gated_backward(int32_t storage, int32_t kind, const void* x, const void* bias,
                           const void* dy, void* dx, void* dbias, int64_t rows, int64_t columns,
                           float limit, float offset) {
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        const T *in = static_cast<const T*>(x), *shift = static_cast<const T*>(bias);
        with_kind(kind, [&](auto f) {
            kernels::gated_backward<decltype(f)>(in, shift, static_cast<const T*>(dy),
                                                 static_cast<T*>(dx), static_cast<T*>(dbias), rows,
                                                 columns / 2, Limits{limit, offset});
        });
    });
}

EXPORT void map_forward(int32_t storage, int32_t map, const void* x, void* y, int64_t size,
                        float p) {
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        kernels::map_forward(map, static_cast<const T*>(x), static_cast<T*>(y), size, p);
    });
}

EXPORT void map_backward(int32_t storage, int32_t map, const void* x, const void* dy, void* dx,
                         int64_t size, float p) {
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        kernels::map_backward(map, static_cast<const T*>(x), static_cast<const T*>(dy),
                              static_cast<T*>(dx), size, p);
    });
}

// result [columns] = sum over rows
EXPORT void bias_grad(int32_t storage, const void* dy, void* result, int64_t rows,
                      int64_t columns) {
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        const T* grad = static_cast<const T*>(dy);
        rows_with_bias(rows, columns, static_cast<T*>(result), [=](int64_t row, float* sums) {
            vector_loop(columns, [&](int64_t i, int64_t count) {
                const vf value = load(grad + row * columns + i, count);
                store(sums + i, load(sums + i, count) + value, count);
            });
        });
    });
}
