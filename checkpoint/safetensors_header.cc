#include "checkpoint/safetensors_header.h"

#include <simdjson.h>

#include <algorithm>
#include <optional>

namespace moiety {

namespace dom = simdjson::dom;

std::int64_t TensorInfo::num_elements() const {
  std::int64_t count = 1;
  for (std::int64_t size : shape) count *= size;
  return count;
}

namespace {

constexpr std::size_t kMaxRank = 8;

Error malformed(std::string_view name, std::string_view what) {
  return fail(ErrorCode::kInvalidArgument,
              "tensor '" + std::string(name) + "': " + std::string(what));
}

Result<DType> read_dtype(std::string_view name, const dom::element& value) {
  std::string_view text;
  if (value.get_string().get(text) != simdjson::SUCCESS) {
    return malformed(name, "dtype must be a string");
  }
  auto dtype = parse_dtype(text);
  if (!dtype) return malformed(name, dtype.error().message);
  return dtype;
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

// The product of the shape and the element's size; nothing when it does not fit in 63 bits.
std::optional<std::uint64_t> count_bytes(const std::vector<std::int64_t>& shape, DType dtype) {
  std::int64_t bytes = static_cast<std::int64_t>(dtype_bytes(dtype));
  for (std::int64_t size : shape) {
    if (__builtin_mul_overflow(bytes, size, &bytes)) return {};
  }
  return static_cast<std::uint64_t>(bytes);
}

// `offset` of the result counts from the start of the data, not yet of the file.
Result<TensorInfo> read_tensor(std::string_view name, const dom::element& value) {
  dom::object entry;
  if (value.get_object().get(entry) != simdjson::SUCCESS) {
    return malformed(name, "its entry must be an object");
  }
  std::optional<DType> dtype;
  std::optional<std::vector<std::int64_t>> shape;
  std::optional<Offsets> offsets;
  for (const auto& field : entry) {
    const bool repeated = (field.key == "dtype" && dtype) || (field.key == "shape" && shape) ||
                          (field.key == "data_offsets" && offsets);
    if (repeated) return malformed(name, "has " + std::string(field.key) + " twice");
    if (field.key == "dtype") {
      MOIETY_ASSIGN(dtype, read_dtype(name, field.value));
    } else if (field.key == "shape") {
      MOIETY_ASSIGN(shape, read_shape(name, field.value));
    } else if (field.key == "data_offsets") {
      MOIETY_ASSIGN(offsets, read_offsets(name, field.value));
    }
  }
  if (!dtype || !shape || !offsets) {
    return malformed(name, "needs dtype, shape and data_offsets");
  }
  const auto bytes = count_bytes(*shape, *dtype);
  if (!bytes) return malformed(name, "its shape is impossibly large");
  if (offsets->end - offsets->begin != *bytes) {
    return malformed(name, "dtype and shape make " + std::to_string(*bytes) +
                               " bytes, but data_offsets span " +
                               std::to_string(offsets->end - offsets->begin));
  }
  return TensorInfo{*dtype, std::move(*shape), 0, offsets->begin, *bytes};
}

// Checks that the tensors follow each other without hole or overlap and end where the data ends.
Result<void> check_layout(const std::map<std::string, TensorInfo, std::less<>>& tensors,
                          std::uint64_t data_bytes) {
  struct Span {
    std::uint64_t begin, end;
    std::string_view name;
  };
  std::vector<Span> spans;
  for (const auto& [name, info] : tensors) {
    const std::uint64_t end = info.offset + info.num_bytes;
    if (end > data_bytes) {
      return fail(ErrorCode::kDataLoss,
                  "tensor '" + name + "' ends at byte " + std::to_string(end) +
                      " of the data, but the file has only " + std::to_string(data_bytes) +
                      ": it is truncated, copy or download it again");
    }
    spans.push_back({info.offset, end, name});
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

Result<std::map<std::string, TensorInfo, std::less<>>> parse_safetensors_header(
    std::string_view header, std::uint64_t data_begin, std::uint64_t file_bytes) {
  dom::parser parser;
  dom::object root;
  const auto error = parser.parse(header.data(), header.size()).get_object().get(root);
  if (error != simdjson::SUCCESS) {
    return fail(ErrorCode::kInvalidArgument,
                std::string("its header is not a JSON object: ") + simdjson::error_message(error));
  }
  std::map<std::string, TensorInfo, std::less<>> tensors;
  for (const auto& field : root) {
    if (field.key == "__metadata__") continue;
    MOIETY_ASSIGN(TensorInfo info, read_tensor(field.key, field.value));
    if (!tensors.emplace(std::string(field.key), std::move(info)).second) {
      return malformed(field.key, "stands in the header twice");
    }
  }
  if (data_begin > file_bytes) {
    return fail(ErrorCode::kDataLoss, "the file ends inside its header: it is truncated");
  }
  MOIETY_TRY(check_layout(tensors, file_bytes - data_begin));
  for (auto& [name, info] : tensors) info.offset += data_begin;
  return tensors;
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
