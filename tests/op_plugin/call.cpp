// SPDX-License-Identifier: Apache-2.0
// Strides, storage types, the list of operations and what the tests ask about it.
#include "call.h"

#include <cmath>
#include <cstdio>

namespace plugin {
namespace {

std::vector<const char*>& names() {
    static std::vector<const char*> list;
    return list;
}

std::string& journal() {
    static std::string text;
    return text;
}

float float_of_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

float float_of_bf16(uint16_t bits) { return float_of_bits(static_cast<uint32_t>(bits) << 16); }

uint16_t bf16_of(float value) {
    const uint32_t bits = bits_of(value);
    if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float float_of_fp16(uint16_t bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float value;
    if (exponent == 31)
        value = fraction ? NAN : INFINITY;
    else
        value = std::ldexp(static_cast<float>(exponent ? 1024 + fraction : fraction),
                           (exponent ? exponent : 1) - 25);
    return bits >> 15 ? -value : value;
}

uint16_t fp16_of(float value) {
    const uint16_t sign = static_cast<uint16_t>(bits_of(value) >> 16 & 0x8000);
    if (value != value) return sign | 0x7e00;
    const float size = std::fabs(value);
    if (size >= 65520.0f) return sign | 0x7c00;
    int exponent;
    std::frexp(size, &exponent);  // size = fraction * 2^exponent with fraction in [0.5, 1)
    if (exponent < -13 || size == 0.0f) exponent = -13;
    const int steps = static_cast<int>(std::nearbyint(std::ldexp(size, 11 - exponent)));
    // `steps` is in [1024, 2048] for normal numbers, below for subnormal ones; carries are right.
    return static_cast<uint16_t>(sign | (((exponent + 13) << 10) + steps));
}

enum class Type { kBool, kUint8, kInt32, kInt64, kFloat32, kFloat64, kBFloat16, kFloat16 };

Type type_of(const std::string& name) {
    static const std::pair<const char*, Type> known[] = {
        {"bool", Type::kBool},       {"uint8", Type::kUint8},       {"int32", Type::kInt32},
        {"int64", Type::kInt64},     {"float32", Type::kFloat32},   {"float64", Type::kFloat64},
        {"bfloat16", Type::kBFloat16}, {"float16", Type::kFloat16},
    };
    for (const auto& [text, type] : known)
        if (name == text) return type;
    throw Rejected("type " + name + " is not served");
}

template <class T>
T load(const void* base, int64_t at, Type type) {
    switch (type) {
        case Type::kBool:
        case Type::kUint8: return static_cast<T>(static_cast<const uint8_t*>(base)[at]);
        case Type::kInt32: return static_cast<T>(static_cast<const int32_t*>(base)[at]);
        case Type::kInt64: return static_cast<T>(static_cast<const int64_t*>(base)[at]);
        case Type::kFloat32: return static_cast<T>(static_cast<const float*>(base)[at]);
        case Type::kFloat64: return static_cast<T>(static_cast<const double*>(base)[at]);
        case Type::kBFloat16:
            return static_cast<T>(float_of_bf16(static_cast<const uint16_t*>(base)[at]));
        default: return static_cast<T>(float_of_fp16(static_cast<const uint16_t*>(base)[at]));
    }
}

template <class T>
void store(void* base, int64_t at, Type type, T value) {
    switch (type) {
        case Type::kBool: static_cast<uint8_t*>(base)[at] = value != T{0}; return;
        case Type::kUint8: static_cast<uint8_t*>(base)[at] = static_cast<uint8_t>(value); return;
        case Type::kInt32: static_cast<int32_t*>(base)[at] = static_cast<int32_t>(value); return;
        case Type::kInt64: static_cast<int64_t*>(base)[at] = static_cast<int64_t>(value); return;
        case Type::kFloat32: static_cast<float*>(base)[at] = static_cast<float>(value); return;
        case Type::kFloat64: static_cast<double*>(base)[at] = static_cast<double>(value); return;
        case Type::kBFloat16:
            static_cast<uint16_t*>(base)[at] = bf16_of(static_cast<float>(value));
            return;
        default: static_cast<uint16_t*>(base)[at] = fp16_of(static_cast<float>(value));
    }
}

Shape dense_strides(const Shape& shape) {
    Shape strides(shape.size(), 1);
    for (size_t dim = shape.size(); dim-- > 1;) strides[dim - 1] = strides[dim] * shape[dim];
    return strides;
}

// Where the elements of a tensor lie in its memory; MindSpore hands over views as they are.
struct Layout {
    Shape shape, strides;
    int64_t offset = 0;

    template <class Visit>
    void each(Visit visit) const {
        const int64_t count = count_of(shape);
        if (strides == dense_strides(shape)) {
            for (int64_t number = 0; number < count; ++number) visit(number, offset + number);
            return;
        }
        Shape index(shape.size(), 0);
        int64_t at = offset;
        for (int64_t number = 0; number < count; ++number) {
            visit(number, at);
            for (size_t dim = shape.size(); dim-- > 0;) {
                at += strides[dim];
                if (++index[dim] < shape[dim]) break;
                at -= strides[dim] * shape[dim];
                index[dim] = 0;
            }
        }
    }
};

Layout layout_of(const Raw& raw, int index) {
    Layout layout;
    layout.shape.assign(raw.shapes[index], raw.shapes[index] + raw.ranks[index]);
    layout.strides = dense_strides(layout.shape);
    if (index < static_cast<int>(raw.info->GetInputSize())) {
        const auto view = raw.info->GetInputTensorLayout(static_cast<size_t>(index));
        if (view) {
            layout.strides = view->strides;
            layout.offset = static_cast<int64_t>(view->storage_offset);
        }
    }
    return layout;
}

}  // namespace

std::string text_of(const Shape& shape) {
    std::string text = "[";
    for (size_t dim = 0; dim < shape.size(); ++dim)
        text += (dim ? ", " : "") + std::to_string(shape[dim]);
    return text + "]";
}

bool Call::is_floating(int index) const {
    return type(index).find("float") != std::string::npos;
}

template <class T>
std::vector<T> Call::read(int index) const {
    const Type kind = type_of(type(index));
    const Layout layout = layout_of(raw_, index);
    std::vector<T> values(static_cast<size_t>(count_of(layout.shape)));
    const void* base = raw_.tensors[index];
    layout.each([&](int64_t number, int64_t at) { values[number] = load<T>(base, at, kind); });
    return values;
}

template <class T>
void Call::write(int index, const std::vector<T>& values) const {
    const Type kind = type_of(type(index));
    const Layout layout = layout_of(raw_, index);
    require(static_cast<int64_t>(values.size()) == count_of(layout.shape),
            "result has " + std::to_string(values.size()) + " elements, the tensor is " +
                text_of(layout.shape));
    void* base = raw_.tensors[index];
    layout.each([&](int64_t number, int64_t at) { store<T>(base, at, kind, values[number]); });
}

Floats Call::floats(int input) const {
    if (is_scalar(input)) return {static_cast<float>(number(input))};
    return read<float>(input);
}

Ints Call::ints(int input) const {
    if (is_scalar(input)) return {integer(input)};
    return read<int64_t>(input);
}

Bytes Call::bytes(int input) const {
    const Layout layout = layout_of(raw_, input);
    if (type(input) != "uint8" || layout.strides != dense_strides(layout.shape))
        return read<uint8_t>(input);
    const uint8_t* first = static_cast<const uint8_t*>(raw_.tensors[input]) + layout.offset;
    return Bytes(first, first + count_of(layout.shape));  // masks are large
}

double Call::number(int input) const {
    if (!is_scalar(input)) return read<double>(input).at(0);
    if (is_floating(input)) return raw_.info->GetFloatInput(static_cast<size_t>(input));
    return static_cast<double>(integer(input));
}

int64_t Call::integer(int input) const {
    if (!is_scalar(input)) return read<int64_t>(input).at(0);
    if (type(input) == "bool") return flag(input);
    return raw_.info->GetIntInput(static_cast<size_t>(input));
}

Ints Call::integers(int input) const {
    return raw_.info->GetIntVecInput(static_cast<size_t>(input));
}

void Call::put(int output, const Floats& values) const { write(out(output), values); }
void Call::put(int output, const Ints& values) const { write(out(output), values); }
void Call::overwrite(int input, const Floats& values) const { write(input, values); }
void Call::overwrite(int input, const Ints& values) const { write(input, values); }

std::string Call::description(const char* name) const {
    std::string text = name;
    for (int index = 0; index < raw_.count; ++index) {
        text += index == inputs_ ? " -> " : (index ? ", " : " ");
        text += type(index);
        if (index >= inputs_ || !is_scalar(index)) text += text_of(shape(index));
    }
    return text;
}

int launch(const char* name, Body body, const Raw& raw) {
    const Call call(raw);
    const std::string description = call.description(name);
    journal() += description + "\n";
    try {
        body(call);
        return 0;
    } catch (const std::exception& error) {
        const std::string reason = error.what();
        journal() += std::string("rejected ") + name + ": ";
        journal() += reason.substr(0, reason.find('\n')) + "\n";
        std::fprintf(stderr, "op plugin: %s: %s\n", description.c_str(), error.what());
        return 1;
    }
}

Registration::Registration(const char* name) { names().push_back(name); }

Broadcast::Broadcast(const Shape& from, const Shape& to)
    : to_(to), strides_(to.size(), 0), is_same_(from == to), is_one_(count_of(from) == 1) {
    require(from.size() <= to.size(), text_of(from) + " does not broadcast to " + text_of(to));
    const Shape dense = dense_strides(from);
    const size_t first = to.size() - from.size();
    for (size_t dim = 0; dim < from.size(); ++dim) {
        require(from[dim] == to[first + dim] || from[dim] == 1,
                text_of(from) + " does not broadcast to " + text_of(to));
        if (from[dim] != 1) strides_[first + dim] = dense[dim];
    }
}

int64_t Broadcast::operator()(int64_t number) const {
    if (is_same_ || is_one_) return is_same_ ? number : 0;
    int64_t at = 0;
    for (size_t dim = to_.size(); dim-- > 0;) {
        at += number % to_[dim] * strides_[dim];
        number /= to_[dim];
    }
    return at;
}

Around::Around(const Shape& shape, int64_t dim) {
    const int64_t rank = static_cast<int64_t>(shape.size());
    if (dim < 0) dim += rank;
    require(dim >= 0 && (dim < rank || rank == 0), "no dimension " + std::to_string(dim));
    for (int64_t other = 0; other < rank; ++other)
        (other < dim ? before : other > dim ? after : size) *= shape[static_cast<size_t>(other)];
}

}  // namespace plugin

extern "C" bool IsKernelRegistered(const char* name) {
    for (const char* known : plugin::names())
        if (std::strcmp(known, name) == 0) return true;
    return false;
}

extern "C" int GetRegisteredOpCount() { return static_cast<int>(plugin::names().size()); }

extern "C" const char** GetAllRegisteredOps() { return plugin::names().data(); }

// Every launch since take_journal was last called, one per line.
extern "C" const char* take_journal() {
    static std::string taken;
    taken.swap(plugin::journal());
    plugin::journal().clear();
    return taken.c_str();
}
