#include "router/completion_request.h"

#include <array>
#include <boost/json.hpp>
#include <cmath>

namespace moiety {
namespace json = boost::json;
namespace {

/// Fields of OpenAI's completions API that we accept only when they change nothing.
struct NeutralField {
  std::string_view name;
  double number;  // the neutral number, besides null, false and empty containers
};
constexpr std::array kNeutralFields = {
    NeutralField{"n", 1},
    NeutralField{"best_of", 1},
    NeutralField{"echo", 0},
    NeutralField{"logprobs", NAN},
    NeutralField{"presence_penalty", 0},
    NeutralField{"frequency_penalty", 0},
    NeutralField{"logit_bias", NAN},
    NeutralField{"stop", NAN},
    NeutralField{"suffix", NAN},
};

bool is_neutral(const json::value& value, double number) {
  switch (value.kind()) {
    case json::kind::null:
      return true;
    case json::kind::bool_:
      return !value.get_bool();
    case json::kind::string:
      return value.get_string().empty();
    case json::kind::array:
      return value.get_array().empty();
    case json::kind::object:
      return value.get_object().empty();
    default:
      return value.to_number<double>() == number;
  }
}

class Reader {
 public:
  explicit Reader(const json::object& object) : object_(object) {}
  std::optional<FieldError> error;

  void fail(std::string_view field, std::string message) {
    if (!error) error = FieldError{std::string(field), std::move(message)};
  }

  const json::value* find(std::string_view field) const {
    const json::value* value = object_.if_contains(field);
    return value == nullptr || value->is_null() ? nullptr : value;
  }

  void read_bool(std::string_view field, bool& out) {
    const json::value* value = find(field);
    if (value == nullptr) return;
    if (!value->is_bool()) return fail(field, std::string(field) + " must be true or false");
    out = value->get_bool();
  }

  void read_float(std::string_view field, double min, double max, float& out) {
    const json::value* value = find(field);
    if (value == nullptr) return;
    const double number = value->is_number() ? value->to_number<double>() : NAN;
    if (!(number >= min && number <= max)) {
      return fail(field, std::string(field) + " must be a number from " +
                             std::to_string(min).substr(0, 4) + " to " +
                             std::to_string(max).substr(0, 4));
    }
    out = static_cast<float>(number);
  }

 private:
  const json::object& object_;
};

std::optional<std::vector<std::int32_t>> token_ids(const json::array& array) {
  std::vector<std::int32_t> ids;
  for (const json::value& value : array) {
    const std::int64_t* id = value.if_int64();
    if (id == nullptr || *id < 0 || *id > INT32_MAX) return std::nullopt;
    ids.push_back(static_cast<std::int32_t>(*id));
  }
  return ids;
}

void read_prompt(Reader& reader, CompletionRequest& request) {
  static constexpr const char* kForms = "prompt must be a string or an array of token ids";
  const json::value* value = reader.find("prompt");
  if (value == nullptr)
    return reader.fail("prompt", "prompt is missing: give a string or an array of token ids");
  if (value->is_array() && value->get_array().size() == 1 && !value->get_array()[0].is_int64()) {
    value = &value->get_array()[0];  // a list of one prompt
  }
  if (value->is_string()) {
    request.prompt = std::string(value->get_string());
    return;
  }
  if (!value->is_array()) return reader.fail("prompt", kForms);
  const json::array& array = value->get_array();
  if (array.size() > 1 && !array[0].is_int64()) {
    return reader.fail("prompt",
                       "only one prompt per request is supported: send one request for each");
  }
  auto ids = token_ids(array);
  if (!ids) return reader.fail("prompt", kForms);
  request.prompt = std::move(*ids);
}

}  // namespace

std::variant<CompletionRequest, FieldError> parse_completion_request(std::string_view body) {
  boost::system::error_code ec;
  const json::value parsed = json::parse(json::string_view(body.data(), body.size()), ec);
  if (ec) return FieldError{"", "the body is not valid JSON: " + ec.message()};
  if (!parsed.is_object()) return FieldError{"", "the body must be a JSON object"};
  const json::object& object = parsed.get_object();
  Reader reader(object);
  CompletionRequest request;

  if (const json::value* model = reader.find("model"); model == nullptr || !model->is_string()) {
    reader.fail("model", "model is missing: name one of GET /v1/models");
  } else {
    request.model = std::string(model->get_string());
  }
  read_prompt(reader, request);
  if (const json::value* value = reader.find("max_tokens")) {
    const std::int64_t* number = value->if_int64();
    if (number == nullptr || *number < 1 || *number > (1 << 24)) {
      reader.fail("max_tokens", "max_tokens must be a whole number of at least 1");
    } else {
      request.max_tokens = static_cast<std::int32_t>(*number);
    }
  }
  reader.read_float("temperature", 0, 2, request.temperature);
  reader.read_float("top_p", 0, 1, request.top_p);
  if (const json::value* value = reader.find("seed")) {
    if (!value->is_int64() && !value->is_uint64()) {
      reader.fail("seed", "seed must be a whole number");
    } else {
      request.seed =
          value->is_int64() ? static_cast<std::uint64_t>(value->get_int64()) : value->get_uint64();
    }
  }
  reader.read_bool("stream", request.stream);
  reader.read_bool("ignore_eos", request.ignore_eos);
  if (const json::value* options = reader.find("stream_options")) {
    if (!options->is_object()) {
      reader.fail("stream_options", "stream_options must be an object");
    } else {
      for (const auto& [name, value] : options->get_object()) {
        if (name == "include_usage" && value.is_bool()) {
          request.include_usage = value.get_bool();
        } else {
          reader.fail("stream_options", "stream_options." + std::string(name) +
                                            " is not understood: include_usage (true or false) is");
        }
      }
    }
  }
  for (const auto& [key, value] : object) {
    const std::string_view name(key.data(), key.size());
    bool known = name == "model" || name == "prompt" || name == "max_tokens" ||
                 name == "temperature" || name == "top_p" || name == "seed" || name == "stream" ||
                 name == "ignore_eos" || name == "stream_options" || name == "user";
    for (const NeutralField& field : kNeutralFields) {
      if (field.name != name) continue;
      known = true;
      if (!is_neutral(value, field.number)) {
        reader.fail(name, std::string(name) + " is not supported yet at this value: leave it out");
      }
    }
    if (!known) reader.fail(name, "there is no field '" + std::string(name) + "' in this API");
  }
  if (reader.error) return *reader.error;
  return request;
}

}  // namespace moiety
