#include "router/openai_json.h"

#include <algorithm>
#include <boost/json.hpp>

#include "common/utf8.h"

namespace moiety {
namespace json = boost::json;
namespace {

constexpr float kLowestLogprob = -9999.0f;  // as OpenAI writes what has hardly any probability

json::value number(float logprob) { return static_cast<double>(std::max(logprob, kLowestLogprob)); }

std::string as_text(std::string_view bytes) {
  std::string text;
  append_replacing_invalid(bytes, text);
  return text;
}

json::value stop_reason_value(const StopReason& reason) {
  if (const auto* text = std::get_if<std::string>(&reason)) return json::string(*text);
  if (const auto* token = std::get_if<std::int32_t>(&reason)) return *token;
  return nullptr;
}

/// What both endpoints say of a choice.
json::object common_fields(const ChoicePart& part) {
  json::object choice;
  choice["index"] = part.index;
  choice["finish_reason"] =
      part.finish_reason.empty() ? json::value(nullptr) : json::value(part.finish_reason);
  if (!part.finish_reason.empty()) choice["stop_reason"] = stop_reason_value(part.stop_reason);
  return choice;
}

class CompletionFormat final : public AnswerFormat {
 public:
  CompletionFormat(const Tokenizer& tokenizer, bool logprobs)
      : tokenizer_(tokenizer), logprobs_(logprobs) {}

  std::string_view id_prefix() const override { return "cmpl-"; }
  std::string_view object(bool) const override { return "text_completion"; }

  json::object choice(const ChoicePart& part, bool) const override {
    json::object choice = common_fields(part);
    choice["text"] = part.piece.text;
    choice["logprobs"] =
        logprobs_ ? json::value(logprobs_object(part.piece.tokens)) : json::value(nullptr);
    return choice;
  }

 private:
  /// A token that is part of a character only is named by its bytes, as OpenAI does, so that the
  /// names in a map differ.
  std::string name(std::int32_t token) const {
    const std::string_view bytes = tokenizer_.token_bytes(token);
    if (is_valid_utf8(bytes)) return std::string(bytes);
    static constexpr char kHex[] = "0123456789abcdef";
    std::string text = "bytes:";
    for (const char byte : bytes) {
      const auto value = static_cast<unsigned char>(byte);
      text += "\\x";
      text += kHex[value >> 4];
      text += kHex[value & 15];
    }
    return text;
  }

  json::object logprobs_object(const std::vector<AnswerToken>& answer_tokens) const {
    json::array tokens, token_logprobs, top_logprobs, text_offset;
    for (const auto& [sampled, offset] : answer_tokens) {
      tokens.push_back(json::string(name(sampled.token)));
      token_logprobs.push_back(number(sampled.logprob));
      json::object top;
      for (const TokenLogprob& other : sampled.top) {
        top.emplace(name(other.token), number(other.logprob));  // the more probable of equal names
      }
      top.emplace(name(sampled.token), number(sampled.logprob));
      top_logprobs.push_back(std::move(top));
      text_offset.push_back(offset);
    }
    return {{"tokens", std::move(tokens)},
            {"token_logprobs", std::move(token_logprobs)},
            {"top_logprobs", std::move(top_logprobs)},
            {"text_offset", std::move(text_offset)}};
  }

  const Tokenizer& tokenizer_;
  const bool logprobs_;
};

class ChatFormat final : public AnswerFormat {
 public:
  ChatFormat(const Tokenizer& tokenizer, bool logprobs)
      : tokenizer_(tokenizer), logprobs_(logprobs) {}

  std::string_view id_prefix() const override { return "chatcmpl-"; }
  std::string_view object(bool chunk) const override {
    return chunk ? "chat.completion.chunk" : "chat.completion";
  }

  json::object choice(const ChoicePart& part, bool chunk) const override {
    json::object choice = common_fields(part);
    json::object message;
    if (!chunk || part.begins) message["role"] = "assistant";
    if (!chunk || part.begins || !part.piece.text.empty()) message["content"] = part.piece.text;
    if (!chunk) message["refusal"] = nullptr;
    choice[chunk ? "delta" : "message"] = std::move(message);
    const bool has_logprobs = logprobs_ && (!chunk || !part.piece.tokens.empty());
    choice["logprobs"] =
        has_logprobs ? json::value(logprobs_object(part.piece.tokens)) : json::value(nullptr);
    return choice;
  }

 private:
  json::object entry(std::int32_t token, float logprob) const {
    const std::string_view bytes = tokenizer_.token_bytes(token);
    json::array values;
    for (const char byte : bytes) {
      values.push_back(static_cast<std::int32_t>(static_cast<unsigned char>(byte)));
    }
    return {{"token", as_text(bytes)}, {"logprob", number(logprob)}, {"bytes", std::move(values)}};
  }

  json::object logprobs_object(const std::vector<AnswerToken>& tokens) const {
    json::array content;
    for (const AnswerToken& token : tokens) {
      json::object described = entry(token.sampled.token, token.sampled.logprob);
      json::array top;
      for (const TokenLogprob& other : token.sampled.top) {
        top.push_back(entry(other.token, other.logprob));
      }
      described["top_logprobs"] = std::move(top);
      content.push_back(std::move(described));
    }
    return {{"content", std::move(content)}, {"refusal", nullptr}};
  }

  const Tokenizer& tokenizer_;
  const bool logprobs_;
};

}  // namespace

std::unique_ptr<AnswerFormat> completion_format(const Tokenizer& tokenizer, bool logprobs) {
  return std::make_unique<CompletionFormat>(tokenizer, logprobs);
}

std::unique_ptr<AnswerFormat> chat_format(const Tokenizer& tokenizer, bool logprobs) {
  return std::make_unique<ChatFormat>(tokenizer, logprobs);
}

std::string error_envelope(std::string_view message,
                           std::string_view type,
                           std::string_view param,
                           std::string_view code) {
  const auto text_or_null = [](std::string_view text) {
    return text.empty() ? json::value(nullptr) : json::value(text);
  };
  std::string readable;  // paths that messages quote need not be UTF-8
  append_replacing_invalid(message, readable);
  return json::serialize(json::object{{"error", json::object{{"message", readable},
                                                             {"type", type},
                                                             {"param", text_or_null(param)},
                                                             {"code", text_or_null(code)}}}});
}

http::Response error_response(int status,
                              std::string_view message,
                              std::string_view param,
                              std::string_view code) {
  http::Response response;
  response.status = status;
  response.body =
      error_envelope(message, status < 500 ? "invalid_request_error" : "server_error", param, code);
  if (status == 429 || status == 503) response.headers.emplace("Retry-After", "1");
  return response;
}

http::Response error_response(const Error& error) {
  const ErrorInfo& info = error_info(error.code);
  return error_response(info.http_status, error.message, "", info.name);
}

std::string http_error_body(int status, std::string_view message) {
  return error_envelope(message, status < 500 ? "invalid_request_error" : "server_error", "",
                        "http_error");
}

}  // namespace moiety
