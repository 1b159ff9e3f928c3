// SPDX-License-Identifier: Apache-2.0
// One launch of a primitive through MindSpore's CPU op-plugin hook: its tensors, whatever their
// strides and types, as dense arrays of floats or integers, and its scalar arguments.
//
// A body registered with OPERATION throws Rejected when the call breaks a documented rule of the
// Ascend kernel of that name; MindSpore then raises at the Python call.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "custom_kernel_input_info.h"

namespace plugin {

using Shape = std::vector<int64_t>;
using Floats = std::vector<float>;
using Ints = std::vector<int64_t>;
using Bytes = std::vector<uint8_t>;
using mindspore::kernel::op_plugin::KernelInputInfo;

struct Rejected : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline void require(bool holds, const char* rule) {
    if (!holds) throw Rejected(rule);
}

inline void require(bool holds, const std::string& rule) {
    if (!holds) throw Rejected(rule);
}

inline int64_t count_of(const Shape& shape) {
    int64_t count = 1;
    for (int64_t size : shape) count *= size;
    return count;
}

std::string text_of(const Shape& shape);

// What MindSpore hands to an entry point; inputs come first among the tensors, then outputs.
struct Raw {
    int count;
    void** tensors;
    int* ranks;
    int64_t** shapes;
    const char** types;
    KernelInputInfo* info;
};

class Call {
  public:
    explicit Call(const Raw& raw)
        : raw_(raw), inputs_(static_cast<int>(raw.info->GetInputSize())) {}

    int inputs() const { return inputs_; }
    int outputs() const { return raw_.count - inputs_; }
    bool given(int input) const { return type(input) != "none"; }

    // `index` counts the inputs, then the outputs; see out().
    int out(int number) const { return inputs_ + number; }
    std::string type(int index) const { return raw_.types[index] ? raw_.types[index] : "none"; }
    Shape shape(int index) const {
        return Shape(raw_.shapes[index], raw_.shapes[index] + raw_.ranks[index]);
    }
    bool is_floating(int index) const;
    bool is_scalar(int input) const { return raw_.info->IsScalarInput(static_cast<size_t>(input)); }

    // Elements in row-major order; a scalar gives one element.
    Floats floats(int input) const;
    Ints ints(int input) const;
    Bytes bytes(int input) const;

    double number(int input) const;
    int64_t integer(int input) const;
    bool flag(int input) const { return raw_.info->GetBoolInput(static_cast<size_t>(input)); }
    Ints integers(int input) const;  // a tuple of integers

    // Rounds to the type of the output; the size must be that of the output.
    void put(int output, const Floats& values) const;
    void put(int output, const Ints& values) const;
    // Writes into the memory of an input, whatever its strides.
    void overwrite(int input, const Floats& values) const;
    void overwrite(int input, const Ints& values) const;

    std::string description(const char* name) const;

  private:
    template <class T>
    std::vector<T> read(int index) const;
    template <class T>
    void write(int index, const std::vector<T>& values) const;

    Raw raw_;
    int inputs_;
};

using Body = void (*)(const Call&);

int launch(const char* name, Body body, const Raw& raw);

struct Registration {
    explicit Registration(const char* name);
};

// For element `number` of an array of shape `to`, the element of a dense array of shape `from` that
// is broadcast to it.
class Broadcast {
  public:
    Broadcast(const Shape& from, const Shape& to);
    int64_t operator()(int64_t number) const;

  private:
    Shape to_, strides_;
    bool is_same_, is_one_;
};

// A dense array seen as [before, size, after] around a dimension; negative ones count from the end.
struct Around {
    int64_t before = 1, size = 1, after = 1;
    Around(const Shape& shape, int64_t dim);
};

}  // namespace plugin

#define OPERATION(name)                                                                          \
    static void name##_body(const plugin::Call& call);                                           \
    static const plugin::Registration name##_registration(#name);                                \
    extern "C" int name(int count, void** tensors, int* ranks, int64_t** shapes,                 \
                        const char** types, void*, void* info) {                                 \
        return plugin::launch(                                                                   \
            #name, name##_body,                                                                  \
            {count, tensors, ranks, shapes, types, static_cast<plugin::KernelInputInfo*>(info)}); \
    }                                                                                            \
    static void name##_body(const plugin::Call& call)
