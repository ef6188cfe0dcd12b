#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "common/dtype.h"
#include "common/result.h"

namespace moiety::bench {

/// A size and architecture of model to measure: everything of it is its config.json, with the
/// first token (id 0) as the end of text.
struct Shape {
  std::string_view name;
  std::string_view description;
  std::string_view config_json;
};

/// Every shape, of each architecture a realistic one and one that takes seconds.
std::span<const Shape> all_shapes();

/// kNotFound lists the names.
Result<Shape> find_shape(std::string_view name);

/// What config.json calls an element type: "float32", "bfloat16", "float16".
std::string_view torch_name(DType dtype);

/// The shape's config.json with `dtype` (as torch_name says) as its element type and, unless 0,
/// `num_layers` layers. Ends with a newline.
std::string shape_config(const Shape& shape, std::string_view dtype, std::int32_t num_layers);

}  // namespace moiety::bench
