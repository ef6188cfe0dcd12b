#pragma once

#include <boost/json/fwd.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "common/result.h"
#include "http/server.h"
#include "model/tokenizer.h"
#include "router/choice_text.h"

namespace moiety {

/// OpenAI's error envelope: {"error": {message, type, param, code}}; `param` and `code` null when
/// empty.
std::string error_envelope(std::string_view message,
                           std::string_view type,
                           std::string_view param,
                           std::string_view code);

http::Response error_response(int status,
                              std::string_view message,
                              std::string_view param,
                              std::string_view code);
/// By the table of error codes.
http::Response error_response(const Error& error);

/// The envelope of errors that the HTTP server itself makes.
std::string http_error_body(int status, std::string_view message);

/// A piece of one choice, or all of it.
struct ChoicePart {
  std::int32_t index = 0;
  TextPiece piece;
  bool begins = false;             ///< the choice's first part
  std::string_view finish_reason;  ///< empty: more comes
  StopReason stop_reason;
};

/// How an endpoint writes its answers: the object that a choice is, in plain answers and in chunks.
class AnswerFormat {
 public:
  virtual ~AnswerFormat() = default;
  virtual std::string_view id_prefix() const = 0;
  virtual std::string_view object(bool chunk) const = 0;
  virtual boost::json::object choice(const ChoicePart& part, bool chunk) const = 0;
};

/// `tokenizer` outlives the format. `logprobs`: choices report log-probabilities.
std::unique_ptr<AnswerFormat> completion_format(const Tokenizer& tokenizer, bool logprobs);
std::unique_ptr<AnswerFormat> chat_format(const Tokenizer& tokenizer, bool logprobs);

}  // namespace moiety
