#include "planner/subset.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/value.hpp>
#include <limits>
#include <numeric>

#include "planner/json_fields.h"

namespace moiety::planner {

namespace json = boost::json;

namespace {

constexpr std::string_view kFormat = "moiety.subset/1";

std::string layer_field(std::size_t layer) {
  return "experts_kept_per_layer[" + std::to_string(layer) + "]";
}

Error invalid(std::string message) { return fail(ErrorCode::kInvalidArgument, std::move(message)); }

Result<std::vector<std::int32_t>> parse_ids(const json::array& array, std::size_t layer) {
  std::vector<std::int32_t> ids;
  ids.reserve(array.size());
  for (const json::value& value : array) {
    if (!value.is_int64() || value.get_int64() < 0 ||
        value.get_int64() > std::numeric_limits<std::int32_t>::max()) {
      return invalid(layer_field(layer) + "[" + std::to_string(ids.size()) +
                     "]: expected an expert id, found " + std::string(kind_of(value)));
    }
    ids.push_back(static_cast<std::int32_t>(value.get_int64()));
  }
  return ids;
}

/// The routed experts of one MoE layer's kept ids.
Result<std::vector<std::int32_t>> resolve_layer(const std::vector<std::int32_t>& ids,
                                                const ModelShape::Layer& layer,
                                                std::size_t index) {
  const std::int32_t num_experts = layer.num_routed + layer.num_shared;
  std::vector<std::int32_t> routed;
  std::int32_t num_shared = 0;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const std::string where = layer_field(index) + "[" + std::to_string(i) + "]: ";
    if (ids[i] < 0 || ids[i] >= num_experts) {
      return invalid(where + "expert " + std::to_string(ids[i]) +
                     " does not exist; the layer has experts 0 to " +
                     std::to_string(num_experts - 1));
    }
    if (i > 0 && ids[i] <= ids[i - 1]) {
      return invalid(where + "expert " + std::to_string(ids[i]) + " follows " +
                     std::to_string(ids[i - 1]) + "; list each id once, in ascending order");
    }
    if (ids[i] < layer.num_routed) {
      routed.push_back(ids[i]);
    } else {
      ++num_shared;
    }
  }
  if (num_shared != layer.num_shared) {
    std::int32_t missing = layer.num_routed;
    while (std::find(ids.begin(), ids.end(), missing) != ids.end()) ++missing;
    return invalid(layer_field(index) + ": shared expert " + std::to_string(missing) +
                   " is missing; every token needs it, so add its id");
  }
  const std::int32_t at_least = std::min(layer.top_k, layer.num_routed);
  if (static_cast<std::int32_t>(routed.size()) < at_least) {
    return invalid(layer_field(index) + ": keeps " + std::to_string(routed.size()) +
                   " routed experts, but a token selects " + std::to_string(at_least) +
                   "; keep at least that many");
  }
  return routed;
}

}  // namespace

Result<Subset> parse_subset(std::string_view text) {
  MOIETY_ASSIGN(const json::object object, parse_file_object(text, kFormat));
  if (const json::value* denominator = object.if_contains("denominator")) {
    if (!denominator->is_string() || denominator->get_string() != "kept") {
      const std::string found = denominator->is_string()
                                    ? quoted(std::string(denominator->get_string()))
                                    : std::string(kind_of(*denominator));
      return invalid(
          "denominator: " + found +
          " is not supported; leave the field out or use \"kept\" (the softmax runs over "
          "the kept experts)");
    }
  }
  Subset subset;
  MOIETY_ASSIGN(subset.checkpoint, string_field(object, "", "checkpoint"));
  if (object.contains("domains")) {
    MOIETY_ASSIGN(const json::array* domains, array_field(object, "", "domains"));
    for (const json::value& domain : *domains) {
      if (!domain.is_string()) {
        return invalid("domains[" + std::to_string(subset.domains.size()) +
                       "]: expected a string, found " + std::string(kind_of(domain)));
      }
      subset.domains.emplace_back(domain.get_string());
    }
  }
  if (object.contains("method")) {
    MOIETY_ASSIGN(subset.method, string_field(object, "", "method"));
  }
  MOIETY_ASSIGN(const json::array* layers, array_field(object, "", "experts_kept_per_layer"));
  for (const json::value& layer : *layers) {
    const std::size_t index = subset.experts_kept_per_layer.size();
    if (layer.is_null()) {
      subset.experts_kept_per_layer.emplace_back(std::nullopt);
      continue;
    }
    if (!layer.is_array()) {
      return invalid(layer_field(index) +
                     ": expected an array of expert ids, or null for a dense layer, found " +
                     std::string(kind_of(layer)));
    }
    MOIETY_ASSIGN(std::vector<std::int32_t> ids, parse_ids(layer.get_array(), index));
    subset.experts_kept_per_layer.emplace_back(std::move(ids));
  }
  return subset;
}

std::string subset_to_json(const Subset& subset) {
  std::vector<std::string> domains;
  for (const std::string& domain : subset.domains) domains.push_back(quoted(domain));
  std::string out = "{\n  \"format\": " + quoted(kFormat) +
                    ",\n  \"checkpoint\": " + quoted(subset.checkpoint) + ",\n  \"domains\": [" +
                    join(domains) + "],\n  \"method\": " + quoted(subset.method) +
                    ",\n  \"experts_kept_per_layer\": [";
  std::string_view separator = "\n    ";
  for (const auto& layer : subset.experts_kept_per_layer) {
    out += separator;
    separator = ",\n    ";
    if (!layer) {
      out += "null";
      continue;
    }
    std::vector<std::string> ids;
    for (std::int32_t id : *layer) ids.push_back(std::to_string(id));
    out.append("[").append(join(ids)).append("]");
  }
  return out + "\n  ]\n}\n";
}

Result<KeptExperts> resolve_subset(const Subset& subset, const ModelShape& model) {
  if (subset.checkpoint != model.fingerprint) {
    return invalid("checkpoint: the subset was made for " + subset.checkpoint +
                   ", this checkpoint is " + model.fingerprint +
                   "; select again from a profile of this checkpoint");
  }
  if (subset.experts_kept_per_layer.size() != model.layers.size()) {
    return invalid("experts_kept_per_layer: has " +
                   std::to_string(subset.experts_kept_per_layer.size()) +
                   " layers, the checkpoint has " + std::to_string(model.layers.size()) +
                   "; give one entry per layer (null for a dense one)");
  }
  KeptExperts kept{.full = true, .layers = {}};
  kept.layers.resize(model.layers.size());
  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    const ModelShape::Layer& layer = model.layers[i];
    const auto& ids = subset.experts_kept_per_layer[i];
    if (layer.num_routed == 0) {
      if (ids) return invalid(layer_field(i) + ": the layer is dense; use null");
      continue;
    }
    if (!ids) {
      return invalid(layer_field(i) + ": null, but the layer has " +
                     std::to_string(layer.num_routed + layer.num_shared) +
                     " experts; list those to keep");
    }
    MOIETY_ASSIGN(kept.layers[i], resolve_layer(*ids, layer, i));
    if (static_cast<std::int32_t>(kept.layers[i].size()) != layer.num_routed) kept.full = false;
  }
  return kept;
}

KeptExperts keep_all(const ModelShape& model) {
  KeptExperts kept{.full = true, .layers = {}};
  for (const ModelShape::Layer& layer : model.layers) {
    auto& ids = kept.layers.emplace_back(static_cast<std::size_t>(layer.num_routed));
    std::iota(ids.begin(), ids.end(), 0);
  }
  return kept;
}

}  // namespace moiety::planner
