#include "router/generation_fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>

namespace moiety {
namespace json = boost::json;
namespace {

void read_model(FieldReader& reader, GenerationFields& fields) {
  const json::value* model = reader.find("model");
  if (model == nullptr || !model->is_string()) {
    return reader.fail("model", "model is missing: name one of GET /v1/models");
  }
  fields.model = std::string(model->get_string());
}

void read_max_tokens(FieldReader& reader, GenerationFields& fields) {
  std::optional<std::int32_t> newer;
  reader.read("max_tokens", 1, kMostTokens, fields.max_tokens);
  reader.read("max_completion_tokens", 1, kMostTokens, newer);
  if (newer && fields.max_tokens && *newer != *fields.max_tokens) {
    reader.fail("max_tokens", "max_tokens and max_completion_tokens contradict each other");
  }
  if (newer) fields.max_tokens = newer;
}

void read_logit_bias(FieldReader& reader, std::int32_t vocab_size, GenerationFields& fields) {
  static constexpr std::string_view kName = "logit_bias";
  const json::value* value = reader.find(kName);
  if (value == nullptr) return;
  if (!value->is_object()) {
    return reader.fail(kName, "logit_bias must be an object of token ids and numbers");
  }
  for (const auto& [key, bias] : value->get_object()) {
    std::int32_t id = -1;
    const char* end = key.data() + key.size();
    const auto [stopped, error] = std::from_chars(key.data(), end, id);
    if (error != std::errc() || stopped != end || id < 0 || id >= vocab_size) {
      return reader.fail(kName,
                         fmt::format("logit_bias: '{}' is no token id of this model (0 to {})",
                                     std::string_view(key), vocab_size - 1));
    }
    const double number = bias.is_number() ? bias.to_number<double>() : 1e9;
    if (!(number >= -100 && number <= 100)) {
      return reader.fail(
          kName,
          fmt::format("logit_bias: the bias of token {} must be a number from -100 to 100", id));
    }
    fields.logit_bias.emplace_back(id, static_cast<float>(number));
  }
  std::sort(fields.logit_bias.begin(), fields.logit_bias.end());
  const auto twice =
      std::adjacent_find(fields.logit_bias.begin(), fields.logit_bias.end(),
                         [](const auto& a, const auto& b) { return a.first == b.first; });
  if (twice != fields.logit_bias.end()) {
    reader.fail(kName, fmt::format("logit_bias names token {} twice", twice->first));
  }
}

void read_seed(FieldReader& reader, GenerationFields& fields) {
  const json::value* value = reader.find("seed");
  if (value == nullptr) return;
  if (value->is_int64()) {
    fields.seed = static_cast<std::uint64_t>(value->get_int64());
  } else if (value->is_uint64()) {
    fields.seed = value->get_uint64();
  } else {
    reader.fail("seed", "seed must be a whole number of 64 bits");
  }
}

void read_stop(FieldReader& reader, GenerationFields& fields) {
  const json::value* value = reader.find("stop");
  if (value == nullptr) return;
  std::vector<std::string>& stops = fields.stop.emplace();
  const auto add = [&](const json::value& text) {
    if (!text.is_string()) {
      return reader.fail("stop", "stop must be a string or an array of strings");
    }
    if (text.get_string().empty() || text.get_string().size() > kMaxStopBytes) {
      return reader.fail("stop",
                         fmt::format("each stop string must have 1 to {} bytes", kMaxStopBytes));
    }
    stops.emplace_back(text.get_string());
  };
  if (!value->is_array()) return add(*value);
  if (value->get_array().size() > kMaxStopStrings) {
    return reader.fail("stop", fmt::format("stop takes at most {} strings", kMaxStopStrings));
  }
  for (const json::value& text : value->get_array()) add(text);
}

void read_stop_token_ids(FieldReader& reader, std::int32_t vocab_size, GenerationFields& fields) {
  const json::value* value = reader.find("stop_token_ids");
  if (value == nullptr) return;
  const auto ids = value->is_array() ? token_ids(value->get_array()) : std::nullopt;
  if (!ids || std::any_of(ids->begin(), ids->end(), [&](auto id) { return id >= vocab_size; })) {
    return reader.fail(
        "stop_token_ids",
        fmt::format("stop_token_ids must be an array of token ids from 0 to {}", vocab_size - 1));
  }
  fields.stop_token_ids = *ids;
}

void read_stream_options(FieldReader& reader, GenerationFields& fields) {
  static constexpr std::string_view kName = "stream_options";
  const json::value* options = reader.find(kName);
  if (options == nullptr) return;
  if (!options->is_object()) return reader.fail(kName, "stream_options must be an object");
  if (!fields.stream && !options->get_object().empty()) {
    return reader.fail(kName, "stream_options goes with stream: true only");
  }
  for (const auto& [name, value] : options->get_object()) {
    const bool is_flag = value.is_bool() || value.is_null();
    const bool on = value.is_bool() && value.get_bool();
    if (name == "include_usage" && is_flag) {
      fields.include_usage = on;
    } else if (!(name == "include_obfuscation" && is_flag && !on)) {
      reader.fail(kName, fmt::format("stream_options.{} is not understood: include_usage (true or "
                                     "false) is",
                                     std::string_view(name)));
    }
  }
}

}  // namespace

GenerationFields read_generation_fields(FieldReader& reader, std::int32_t vocab_size) {
  GenerationFields fields;
  read_model(reader, fields);
  read_max_tokens(reader, fields);
  reader.read("n", 1, kMaxN, fields.n);
  reader.read("stream", fields.stream);
  read_stream_options(reader, fields);
  reader.read("temperature", 0, 2, fields.temperature);
  reader.read("top_p", 0, 1, fields.top_p);
  reader.read("min_p", 0, 1, fields.min_p);
  reader.read("top_k", -1, INT32_MAX, fields.top_k);
  if (fields.top_k == -1) fields.top_k = 0;
  reader.read("repetition_penalty", 0.01, 100, fields.repetition_penalty);
  reader.read("presence_penalty", -2, 2, fields.presence_penalty);
  reader.read("frequency_penalty", -2, 2, fields.frequency_penalty);
  read_logit_bias(reader, vocab_size, fields);
  read_seed(reader, fields);
  read_stop(reader, fields);
  read_stop_token_ids(reader, vocab_size, fields);
  reader.read("include_stop_str_in_output", fields.include_stop_str_in_output);
  reader.read("ignore_eos", fields.ignore_eos);
  reader.read("min_tokens", 0, kMostTokens, fields.min_tokens);
  reader.read("skip_special_tokens", fields.skip_special_tokens);
  // About the client, its caches and its bookkeeping.
  reader.ignore({"user", "metadata", "safety_identifier", "prompt_cache_key",
                 "prompt_cache_retention", "service_tier"});
  return fields;
}

std::vector<std::string> stop_strings(const GenerationFields& fields,
                                      const GenerationDefaults& defaults) {
  return fields.stop.value_or(defaults.stop);
}

SamplingParams sampling_params(const GenerationFields& fields,
                               const GenerationDefaults& defaults,
                               std::uint64_t seed,
                               const std::vector<std::int32_t>& end_ids) {
  SamplingParams params;
  const auto choose = [](const auto& field, const auto& fallback, auto& out) {
    if (field) {
      out = *field;
    } else if (fallback) {
      out = *fallback;
    }
  };
  choose(fields.temperature, defaults.temperature, params.temperature);
  choose(fields.top_p, defaults.top_p, params.top_p);
  choose(fields.top_k, defaults.top_k, params.top_k);
  choose(fields.min_p, defaults.min_p, params.min_p);
  choose(fields.repetition_penalty, defaults.repetition_penalty, params.repetition_penalty);
  params.presence_penalty = fields.presence_penalty;
  params.frequency_penalty = fields.frequency_penalty;
  params.logit_bias = fields.logit_bias;
  params.seed = seed;
  params.logprobs = fields.logprobs;
  params.min_tokens = fields.min_tokens;
  if (fields.min_tokens > 0) {
    params.min_tokens_ids = end_ids;
    params.min_tokens_ids.insert(params.min_tokens_ids.end(), fields.stop_token_ids.begin(),
                                 fields.stop_token_ids.end());
  }
  return params;
}

}  // namespace moiety
