#pragma once

#include <boost/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/offline.h"
#include "model/chat_template.h"
#include "model/generation_config.h"
#include "router/choice_text.h"
#include "router/request.h"

namespace moiety::cli {

/// One thing to generate.
struct GenerateJob {
  GenerateRequest request;
  ChoiceTextOptions text;  ///< without a tokenizer only stop_token_ids means something
};

/// Makes jobs from objects with the fields of a completion request: `prompt` (text), `ids` (token
/// ids) or `messages` (a chat), and max_tokens, temperature, stop, ... as the HTTP API has them.
/// What an object leaves out is taken from generation_config.json; without a temperature there,
/// decoding is greedy.
class JobMaker {
 public:
  /// Reads what the checkpoint's folder has of generation_config.json. `offline` outlives the
  /// maker.
  static Result<JobMaker> make(const OfflineModel& offline, std::string deployment);

  /// Errors begin with `where` ("FILE:3"), if it says something, and name the field.
  Result<GenerateJob> job(const boost::json::object& fields, const std::string& where);

 private:
  JobMaker(const OfflineModel& offline, std::string deployment, GenerationDefaults defaults)
      : offline_(&offline), deployment_(std::move(deployment)), defaults_(std::move(defaults)) {}
  Result<std::vector<std::int32_t>> encode(std::string_view text, bool add_special_tokens) const;
  Result<std::vector<std::int32_t>> encode_chat(boost::json::object variables,
                                                bool add_special_tokens);

  const OfflineModel* offline_;
  std::string deployment_;
  GenerationDefaults defaults_;
  std::optional<ChatTemplate> chat_template_;  // once a chat was asked for
};

/// One line of a batch.
struct BatchLine {
  boost::json::object fields;
  std::string where;  ///< "FILE:3"
};

/// The objects of a JSONL text, each on top of `defaults` (its own fields win). kInvalidArgument:
/// "FILE:3: ...".
Result<std::vector<BatchLine>> parse_batch(std::string_view text,
                                           const std::string& file,
                                           const boost::json::object& defaults);

/// All of standard input.
Result<std::string> read_stdin();

/// "1,2,3" or "[1, 2, 3]". kInvalidArgument names the flag.
Result<boost::json::array> parse_ids(const std::string& flag, const std::string& text);

/// A whole number of 64 bits, with or without a sign; nullopt: it is none.
std::optional<std::uint64_t> parse_seed(std::string_view text);

/// "ID=BIAS" each, as the field logit_bias. kInvalidArgument names --logit-bias and the entry.
Result<boost::json::object> parse_logit_bias(const std::vector<std::string>& entries);

}  // namespace moiety::cli
