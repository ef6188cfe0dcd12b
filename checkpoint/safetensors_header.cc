#include "checkpoint/safetensors_header.h"

#include <simdjson.h>

#include <algorithm>
#include <iterator>
#include <optional>
#include <tuple>
#include <variant>

namespace moiety {

namespace dom = simdjson::dom;

std::int64_t TensorInfo::num_elements() const {
  std::int64_t count = 1;
  for (std::int64_t size : shape) count *= size;
  return count;
}

namespace {

constexpr std::size_t kMaxRank = 8;

// The element types of the format that DType leaves out.
struct OtherType {
  std::string_view name;
  std::int64_t bits;
};
constexpr OtherType kOtherTypes[] = {
    {"BOOL", 8},        {"U8", 8},          {"I8", 8},   {"F8_E5M2", 8}, {"F8_E4M3", 8},
    {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"F4", 4},   {"F6_E2M3", 6}, {"F6_E3M2", 6},
    {"F8_E8M0", 8},     {"I16", 16},        {"U16", 16}, {"U32", 32},    {"U64", 64},
    {"F64", 64},        {"C64", 64},
};

// `bits` of one element is absent when the name is unknown to us.
struct ElementType {
  std::optional<DType> dtype;  // absent: we do not read it
  std::string name;
  std::optional<std::int64_t> bits;
};

Error malformed(std::string_view name, std::string_view what) {
  return fail(ErrorCode::kInvalidArgument,
              "tensor '" + std::string(name) + "': " + std::string(what));
}

bool spelled_like_a_type(std::string_view text) {
  constexpr std::size_t kLongest = 32;
  const auto good = [](char c) {
    return (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
  };
  return !text.empty() && text.size() <= kLongest && std::all_of(text.begin(), text.end(), good);
}

Result<ElementType> read_dtype(std::string_view name, const dom::element& value) {
  std::string_view text;
  if (value.get_string().get(text) != simdjson::SUCCESS || !spelled_like_a_type(text)) {
    return malformed(name, "dtype must be a string that names an element type, like \"F32\"");
  }
  if (const auto dtype = parse_dtype(text)) {
    return ElementType{*dtype, std::string(text),
                       static_cast<std::int64_t>(8 * dtype_bytes(*dtype))};
  }
  const auto other = std::find_if(std::begin(kOtherTypes), std::end(kOtherTypes),
                                  [&](const OtherType& type) { return type.name == text; });
  ElementType type{{}, std::string(text), {}};
  if (other != std::end(kOtherTypes)) type.bits = other->bits;
  return type;
}

Result<std::vector<std::int64_t>> read_shape(std::string_view name, const dom::element& value) {
  dom::array list;
  if (value.get_array().get(list) != simdjson::SUCCESS) {
    return malformed(name, "shape must be a list");
  }
  std::vector<std::int64_t> shape;
  for (const dom::element& element : list) {
    std::int64_t size = 0;
    if (element.get_int64().get(size) != simdjson::SUCCESS || size < 0) {
      return malformed(name, "shape must hold whole numbers that are not negative");
    }
    if (shape.size() == kMaxRank) {
      return malformed(name, "has more than " + std::to_string(kMaxRank) + " dimensions");
    }
    shape.push_back(size);
  }
  return shape;
}

struct Offsets {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

Result<Offsets> read_offsets(std::string_view name, const dom::element& value) {
  dom::array list;
  std::uint64_t numbers[2] = {};
  std::size_t count = 0;
  bool good = value.get_array().get(list) == simdjson::SUCCESS;
  if (good) {
    for (const dom::element& element : list) {
      good = good && count < 2 && element.get_uint64().get(numbers[count]) == simdjson::SUCCESS;
      if (!good) break;
      ++count;
    }
  }
  if (!good || count != 2 || numbers[0] > numbers[1]) {
    return malformed(name, "data_offsets must be two whole numbers [begin, end], begin <= end");
  }
  return Offsets{numbers[0], numbers[1]};
}

// Compares the bytes that shape and element type make with those that the offsets span.
Result<void> check_size(std::string_view name,
                        const std::vector<std::int64_t>& shape,
                        std::int64_t element_bits,
                        const Offsets& offsets) {
  std::int64_t bits = element_bits;
  for (std::int64_t size : shape) {
    if (__builtin_mul_overflow(bits, size, &bits)) {
      return malformed(name, "its shape is impossibly large");
    }
  }
  if (bits % 8 != 0) return malformed(name, "dtype and shape make no whole number of bytes");
  if (offsets.end - offsets.begin != static_cast<std::uint64_t>(bits / 8)) {
    return malformed(name, "dtype and shape make " + std::to_string(bits / 8) +
                               " bytes, but data_offsets span " +
                               std::to_string(offsets.end - offsets.begin));
  }
  return {};
}

// `offset` of the result counts from the start of the data, not yet of the file.
Result<std::variant<TensorInfo, OtherTensor>> read_tensor(std::string_view name,
                                                          const dom::element& value) {
  dom::object entry;
  if (value.get_object().get(entry) != simdjson::SUCCESS) {
    return malformed(name, "its entry must be an object");
  }
  std::optional<ElementType> type;
  std::optional<std::vector<std::int64_t>> shape;
  std::optional<Offsets> offsets;
  for (const auto& field : entry) {
    const bool repeated = (field.key == "dtype" && type) || (field.key == "shape" && shape) ||
                          (field.key == "data_offsets" && offsets);
    if (repeated) return malformed(name, "has " + std::string(field.key) + " twice");
    if (field.key == "dtype") {
      MOIETY_ASSIGN(type, read_dtype(name, field.value));
    } else if (field.key == "shape") {
      MOIETY_ASSIGN(shape, read_shape(name, field.value));
    } else if (field.key == "data_offsets") {
      MOIETY_ASSIGN(offsets, read_offsets(name, field.value));
    }
  }
  if (!type || !shape || !offsets) {
    return malformed(name, "needs dtype, shape and data_offsets");
  }
  if (type->bits) MOIETY_TRY(check_size(name, *shape, *type->bits, *offsets));
  const std::uint64_t bytes = offsets->end - offsets->begin;
  if (!type->dtype) return OtherTensor{std::move(type->name), 0, offsets->begin, bytes};
  return TensorInfo{*type->dtype, std::move(*shape), 0, offsets->begin, bytes};
}

// Checks that the tensors follow each other without hole or overlap and end where the data ends.
Result<void> check_layout(const SafetensorsHeader& header, std::uint64_t data_bytes) {
  struct Span {
    std::uint64_t begin, end;
    std::string_view name;
  };
  std::vector<Span> spans;
  for (const auto& [name, info] : header.tensors) {
    spans.push_back({info.offset, info.offset + info.num_bytes, name});
  }
  for (const auto& [name, info] : header.others) {
    spans.push_back({info.offset, info.offset + info.num_bytes, name});
  }
  for (const Span& span : spans) {
    if (span.end <= data_bytes) continue;
    return fail(ErrorCode::kDataLoss,
                "tensor '" + std::string(span.name) + "' ends at byte " + std::to_string(span.end) +
                    " of the data, but the file has only " + std::to_string(data_bytes) +
                    ": it is truncated, copy or download it again");
  }
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) {
    return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
  });
  std::uint64_t position = 0;
  std::string_view before;
  for (const Span& span : spans) {
    if (span.begin < position) {
      return malformed(span.name, "overlaps tensor '" + std::string(before) + "'");
    }
    if (span.begin > position) {
      return malformed(span.name, "no tensor covers the " + std::to_string(span.begin - position) +
                                      " bytes of data before it");
    }
    position = span.end;
    before = span.name;
  }
  if (position != data_bytes) {
    return fail(ErrorCode::kInvalidArgument, "no tensor covers the last " +
                                                 std::to_string(data_bytes - position) +
                                                 " bytes of the file");
  }
  return {};
}

}  // namespace

Result<SafetensorsHeader> parse_safetensors_header(std::string_view header,
                                                   std::uint64_t data_begin,
                                                   std::uint64_t file_bytes) {
  dom::parser parser;
  dom::object root;
  const auto error = parser.parse(header.data(), header.size()).get_object().get(root);
  if (error != simdjson::SUCCESS) {
    return fail(ErrorCode::kInvalidArgument,
                std::string("its header is not a JSON object: ") + simdjson::error_message(error));
  }
  SafetensorsHeader result;
  for (const auto& field : root) {
    if (field.key == "__metadata__") continue;
    if (result.tensors.contains(field.key) || result.others.contains(field.key)) {
      return malformed(field.key, "stands in the header twice");
    }
    MOIETY_ASSIGN(auto tensor, read_tensor(field.key, field.value));
    if (auto* info = std::get_if<TensorInfo>(&tensor)) {
      result.tensors.emplace(field.key, std::move(*info));
    } else {
      result.others.emplace(field.key, std::get<OtherTensor>(std::move(tensor)));
    }
  }
  if (data_begin > file_bytes) {
    return fail(ErrorCode::kDataLoss, "the file ends inside its header: it is truncated");
  }
  MOIETY_TRY(check_layout(result, file_bytes - data_begin));
  for (auto& [name, info] : result.tensors) info.offset += data_begin;
  for (auto& [name, info] : result.others) info.offset += data_begin;
  return result;
}

Result<std::map<std::string, std::string, std::less<>>> parse_shard_index(std::string_view json) {
  dom::parser parser;
  dom::element root;
  const auto error = parser.parse(json.data(), json.size()).get(root);
  if (error != simdjson::SUCCESS) {
    return fail(ErrorCode::kInvalidArgument,
                std::string("is not JSON: ") + simdjson::error_message(error));
  }
  dom::object weight_map;
  if (root["weight_map"].get_object().get(weight_map) != simdjson::SUCCESS) {
    return fail(ErrorCode::kInvalidArgument, "has no object weight_map (tensor name -> file name)");
  }
  std::map<std::string, std::string, std::less<>> shards;
  for (const auto& field : weight_map) {
    std::string_view file;
    if (field.value.get_string().get(file) != simdjson::SUCCESS) {
      return malformed(field.key, "weight_map must name a file");
    }
    if (file.empty() || file == "." || file.find("..") != file.npos ||
        file.find_first_of(std::string_view("/\\\0", 3)) != file.npos) {
      return malformed(field.key, "its shard is '" + std::string(file) +
                                      "', but only a plain name of a file beside the index is "
                                      "understood");
    }
    if (!shards.emplace(std::string(field.key), std::string(file)).second) {
      return malformed(field.key, "stands in weight_map twice");
    }
  }
  if (shards.empty()) return fail(ErrorCode::kInvalidArgument, "weight_map is empty");
  return shards;
}

}  // namespace moiety
