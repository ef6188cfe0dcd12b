#include "model/special_tokens.h"

#include <fmt/format.h>
#include <simdjson.h>

namespace moiety {
namespace {

/// `ids` becomes the token that `name` holds, or nothing, where `flag` is there to say so.
Result<void> apply_flag(const simdjson::dom::element& config,
                        std::string_view flag,
                        std::string_view name,
                        const std::function<std::int32_t(std::string_view)>& token_id,
                        std::vector<std::int32_t>& ids) {
  bool add = false;
  if (config[flag].get(add) != simdjson::SUCCESS) return {};
  ids.clear();
  if (!add) return {};
  std::string_view text;
  if (config[name].get(text) != simdjson::SUCCESS &&
      config[name]["content"].get(text) != simdjson::SUCCESS) {
    return {};  // no such token: there is nothing to add
  }
  const std::int32_t id = token_id(text);
  if (id < 0) {
    return fail(ErrorCode::kInvalidArgument,
                fmt::format("{}: '{}' is no token of tokenizer.json", name, text));
  }
  ids.push_back(id);
  return {};
}

}  // namespace

Result<void> apply_tokenizer_config(std::string_view config,
                                    const std::function<std::int32_t(std::string_view)>& token_id,
                                    SpecialTokens& tokens) {
  simdjson::dom::parser parser;
  simdjson::dom::element fields;
  if (const auto error = parser.parse(config.data(), config.size()).get(fields)) {
    return fail(ErrorCode::kInvalidArgument,
                fmt::format("not JSON: {}", simdjson::error_message(error)));
  }
  if (!fields.is_object()) return fail(ErrorCode::kInvalidArgument, "is not a JSON object");
  MOIETY_TRY(apply_flag(fields, "add_bos_token", "bos_token", token_id, tokens.before));
  return apply_flag(fields, "add_eos_token", "eos_token", token_id, tokens.after);
}

}  // namespace moiety
