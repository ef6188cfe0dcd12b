#include "planner/profile.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <charconv>
#include <cmath>
#include <numeric>
#include <set>

#include "common/check.h"
#include "planner/json_fields.h"

namespace moiety::planner {

namespace json = boost::json;

namespace {

constexpr std::string_view kFormat = "moiety.profile/1";

Error invalid(std::string message) { return fail(ErrorCode::kInvalidArgument, std::move(message)); }

Result<std::vector<double>> parse_numbers(const json::array& array, const std::string& path) {
  std::vector<double> numbers;
  numbers.reserve(array.size());
  for (const json::value& value : array) {
    double number = -1.0;
    if (value.is_double()) number = value.get_double();
    if (value.is_int64()) number = static_cast<double>(value.get_int64());
    // A mean of rounded probabilities may exceed 1 by a rounding error.
    if (!(number >= 0.0 && number <= 1.0 + 1e-6)) {
      return invalid(path + "[" + std::to_string(numbers.size()) +
                     "]: expected a probability from 0 to 1, found " +
                     (value.is_number() ? json::serialize(value) : std::string(kind_of(value))));
    }
    numbers.push_back(number);
  }
  return numbers;
}

Result<DomainProfile> parse_domain(const json::object& object, const std::string& path) {
  DomainProfile domain;
  MOIETY_ASSIGN(domain.tokens, count_field(object, path, "tokens"));
  MOIETY_ASSIGN(domain.text_sha256, string_field(object, path, "text_sha256"));
  MOIETY_ASSIGN(const json::array* layers, array_field(object, path, "mean_prob"));
  for (const json::value& layer : *layers) {
    if (layer.is_null()) {
      domain.mean_prob.emplace_back(std::nullopt);
      continue;
    }
    const std::string where = path + "mean_prob[" + std::to_string(domain.mean_prob.size()) + "]";
    if (!layer.is_array()) {
      return invalid(where + ": expected an array of numbers, or null for a dense layer, found " +
                     std::string(kind_of(layer)));
    }
    MOIETY_ASSIGN(std::vector<double> numbers, parse_numbers(layer.get_array(), where));
    domain.mean_prob.emplace_back(std::move(numbers));
  }
  return domain;
}

/// The shortest text that reads back as the same double.
std::string number_to_json(double number) {
  MOIETY_CHECK(std::isfinite(number), "a profile holds a number that JSON cannot");
  char buffer[32];
  const auto result = std::to_chars(std::begin(buffer), std::end(buffer), number);
  return std::string(buffer, result.ptr);
}

Error wrong_shape(const std::string& where, const std::string& found, const std::string& expected) {
  return invalid(where + ": " + found + ", but the checkpoint has " + expected +
                 "; profile this checkpoint again");
}

Result<void> check_domain(const std::string& name,
                          const DomainProfile& domain,
                          const ModelShape& model) {
  const std::string path = "domains." + name + ".";
  if (domain.tokens <= 0) {
    return invalid(path + "tokens: no token was profiled; give the domain some text");
  }
  if (domain.mean_prob.size() != model.layers.size()) {
    return wrong_shape(path + "mean_prob", std::to_string(domain.mean_prob.size()) + " layers",
                       std::to_string(model.layers.size()));
  }
  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    const auto num_routed = static_cast<std::size_t>(model.layers[i].num_routed);
    const auto& prob = domain.mean_prob[i];
    const std::string where = path + "mean_prob[" + std::to_string(i) + "]";
    if (prob.has_value() != (num_routed > 0)) {
      return wrong_shape(where, prob ? "has experts" : "null",
                         num_routed > 0 ? "experts there" : "a dense layer there");
    }
    if (prob && prob->size() != num_routed) {
      return wrong_shape(where, std::to_string(prob->size()) + " numbers",
                         std::to_string(num_routed) + " routed experts there");
    }
  }
  return {};
}

Result<void> check_keep(const ModelShape& model, std::int32_t keep) {
  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    const ModelShape::Layer& layer = model.layers[i];
    if (layer.num_routed == 0) continue;
    const std::int32_t low = layer.num_shared + std::min(layer.top_k, layer.num_routed);
    const std::int32_t high = layer.num_shared + layer.num_routed;
    if (keep < low || keep > high) {
      return invalid("keep: " + std::to_string(keep) + " is out of range; layer " +
                     std::to_string(i) + " can keep " + std::to_string(low) + " to " +
                     std::to_string(high) + " experts (" + std::to_string(layer.num_shared) +
                     " shared included)");
    }
  }
  return {};
}

/// The `count` ids with the highest values; ties go to the lower id.
std::vector<std::int32_t> top_ids(const std::vector<double>& values, std::int32_t count) {
  std::vector<std::int32_t> ids(values.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::partial_sort(ids.begin(), ids.begin() + count, ids.end(),
                    [&](std::int32_t a, std::int32_t b) {
                      const double value_a = values[static_cast<std::size_t>(a)];
                      const double value_b = values[static_cast<std::size_t>(b)];
                      return value_a != value_b ? value_a > value_b : a < b;
                    });
  ids.resize(static_cast<std::size_t>(count));
  return ids;
}

/// One entry of "layers": {"num_routed", "num_shared", "top_k"}, or null for a dense layer.
Result<ModelShape::Layer> parse_layer(const json::value& value, const std::string& path) {
  ModelShape::Layer layer;
  if (value.is_null()) return layer;
  if (!value.is_object()) {
    return invalid(path + ": expected an object, or null for a dense layer, found " +
                   std::string(kind_of(value)));
  }
  const auto count = [&](std::string_view key, std::int32_t& out) -> Result<void> {
    MOIETY_ASSIGN(const std::int64_t number, count_field(value.get_object(), path + ".", key));
    if (number > (1 << 20)) return invalid(path + "." + std::string(key) + ": is too large");
    out = static_cast<std::int32_t>(number);
    return {};
  };
  MOIETY_TRY(count("num_routed", layer.num_routed));
  MOIETY_TRY(count("num_shared", layer.num_shared));
  MOIETY_TRY(count("top_k", layer.top_k));
  return layer;
}

}  // namespace

Result<Profile> parse_profile(std::string_view text) {
  MOIETY_ASSIGN(const json::object object, parse_file_object(text, kFormat));
  Profile profile;
  MOIETY_ASSIGN(profile.checkpoint, string_field(object, "", "checkpoint"));
  if (object.contains("layers")) {
    MOIETY_ASSIGN(const json::array* layers, array_field(object, "", "layers"));
    for (const json::value& value : *layers) {
      std::string path = "layers[";
      path += std::to_string(profile.layers.size());
      path += "]";
      MOIETY_ASSIGN(const ModelShape::Layer layer, parse_layer(value, path));
      profile.layers.push_back(layer);
    }
  }
  MOIETY_ASSIGN(const json::object* domains, object_field(object, "", "domains"));
  for (const auto& [key, value] : *domains) {
    const std::string name(key);
    MOIETY_ASSIGN(const json::object* fields, object_field(*domains, "domains.", name));
    MOIETY_ASSIGN(profile.domains[name], parse_domain(*fields, "domains." + name + "."));
  }
  return profile;
}

std::string profile_to_json(const Profile& profile) {
  std::string out = "{\n  \"format\": " + quoted(kFormat) +
                    ",\n  \"checkpoint\": " + quoted(profile.checkpoint) + ",\n  \"layers\": [";
  std::string_view layer_separator = "\n";
  for (const ModelShape::Layer& layer : profile.layers) {
    out += layer_separator;
    layer_separator = ",\n";
    if (layer.num_routed == 0) {
      out += "    null";
      continue;
    }
    out += "    {\"num_routed\": " + std::to_string(layer.num_routed) +
           ", \"num_shared\": " + std::to_string(layer.num_shared) +
           ", \"top_k\": " + std::to_string(layer.top_k) + "}";
  }
  out += "\n  ],\n  \"domains\": {";
  std::string_view domain_separator = "\n";
  for (const auto& [name, domain] : profile.domains) {
    out += domain_separator;
    domain_separator = ",\n";
    out += "    " + quoted(name) + ": {\n      \"tokens\": " + std::to_string(domain.tokens) +
           ",\n      \"text_sha256\": " + quoted(domain.text_sha256) + ",\n      \"mean_prob\": [";
    std::string_view separator = "\n        ";
    for (const auto& layer : domain.mean_prob) {
      out += separator;
      separator = ",\n        ";
      if (!layer) {
        out += "null";
        continue;
      }
      std::vector<std::string> numbers;
      for (double number : *layer) numbers.push_back(number_to_json(number));
      out.append("[").append(join(numbers)).append("]");
    }
    out += "\n      ]\n    }";
  }
  return out + "\n  }\n}\n";
}

Result<ModelShape> shape_of(const Profile& profile) {
  if (profile.layers.empty()) {
    return invalid(
        "layers: missing, so the numbers of experts are unknown; profile the checkpoint again");
  }
  return ModelShape{profile.checkpoint, profile.layers};
}

Result<Subset> select_experts(const Profile& profile,
                              const ModelShape& model,
                              const std::vector<std::string>& domains,
                              std::int32_t keep) {
  if (profile.checkpoint != model.fingerprint) {
    return invalid("checkpoint: the profile was made for " + profile.checkpoint +
                   ", this checkpoint is " + model.fingerprint + "; profile this checkpoint");
  }
  if (domains.empty()) return invalid("domains: none given; name at least one of the profile's");
  MOIETY_TRY(check_keep(model, keep));

  Subset subset{.checkpoint = profile.checkpoint,
                .domains = {},
                .method = "mean_prob",
                .experts_kept_per_layer = {}};
  std::vector<const DomainProfile*> chosen;
  for (const std::string& name : domains) {
    const auto found = profile.domains.find(name);
    if (found == profile.domains.end()) {
      std::vector<std::string> known;
      for (const auto& [other, unused] : profile.domains) known.push_back(other);
      return fail(ErrorCode::kNotFound, "domains: the profile has no " + quoted(name) +
                                            "; it has " +
                                            (known.empty() ? "no domain" : join(known)));
    }
    if (std::find(subset.domains.begin(), subset.domains.end(), name) != subset.domains.end()) {
      continue;
    }
    MOIETY_TRY(check_domain(name, found->second, model));
    subset.domains.push_back(name);
    chosen.push_back(&found->second);
  }

  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    const ModelShape::Layer& layer = model.layers[i];
    if (layer.num_routed == 0) {
      subset.experts_kept_per_layer.emplace_back(std::nullopt);
      continue;
    }
    std::set<std::int32_t> kept;
    for (const DomainProfile* domain : chosen) {
      const auto ids = top_ids(*domain->mean_prob[i], keep - layer.num_shared);
      kept.insert(ids.begin(), ids.end());
    }
    for (std::int32_t id = 0; id < layer.num_shared; ++id) kept.insert(layer.num_routed + id);
    subset.experts_kept_per_layer.emplace_back(std::in_place, kept.begin(), kept.end());
  }
  return subset;
}

}  // namespace moiety::planner
