#include "model/special_tokens.h"

#include <fmt/format.h>

#include <boost/json.hpp>
#include <optional>

namespace moiety {
namespace {

namespace json = boost::json;

/// A token is a text or an object with a "content"; null where there is none.
std::optional<std::string_view> token_text(const json::value* token) {
  if (token != nullptr && token->is_object()) token = token->get_object().if_contains("content");
  if (token == nullptr || !token->is_string()) return std::nullopt;
  return std::string_view(token->get_string());
}

/// `ids` becomes the token that `name` holds, or nothing, where `flag` is there to say so.
Result<void> apply_flag(const json::object& config,
                        std::string_view flag,
                        std::string_view name,
                        const std::function<std::int32_t(std::string_view)>& token_id,
                        std::vector<std::int32_t>& ids) {
  const json::value* add = config.if_contains(flag);
  if (add == nullptr || !add->is_bool()) return {};
  ids.clear();
  const auto text = token_text(config.if_contains(name));
  if (!add->get_bool() || !text) return {};
  const std::int32_t id = token_id(*text);
  if (id < 0) {
    return fail(ErrorCode::kInvalidArgument,
                fmt::format("{}: '{}' is no token of tokenizer.json", name, *text));
  }
  ids.push_back(id);
  return {};
}

}  // namespace

Result<void> apply_tokenizer_config(std::string_view config,
                                    const std::function<std::int32_t(std::string_view)>& token_id,
                                    SpecialTokens& tokens) {
  // Not simdjson: many files have integers beyond 64 bits (model_max_length), which it refuses.
  boost::system::error_code error;
  const json::value parsed = json::parse(config, error);
  if (error) return fail(ErrorCode::kInvalidArgument, "not JSON: " + error.message());
  const json::object* fields = parsed.if_object();
  if (fields == nullptr) return fail(ErrorCode::kInvalidArgument, "is not a JSON object");
  MOIETY_TRY(apply_flag(*fields, "add_bos_token", "bos_token", token_id, tokens.before));
  return apply_flag(*fields, "add_eos_token", "eos_token", token_id, tokens.after);
}

}  // namespace moiety
