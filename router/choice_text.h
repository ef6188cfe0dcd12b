#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "model/sampler.h"
#include "model/tokenizer.h"
#include "router/stop_matcher.h"

namespace moiety {

/// What an answer's text is made of, and where it ends.
struct ChoiceTextOptions {
  std::vector<std::string> stop = {};
  bool include_stop = false;  ///< the stop string is part of the text
  std::vector<std::int32_t> stop_token_ids = {};
  std::int32_t min_tokens = 0;  ///< stop strings count only in what comes after so many tokens
  bool skip_special = true;
  bool keep_tokens = false;  ///< for log-probabilities
};

/// A token and where its text begins, in characters of the choice's text.
struct AnswerToken {
  SampledToken sampled;
  std::size_t text_offset = 0;
};

/// A piece of a choice's text and the tokens whose text begins in it.
struct TextPiece {
  std::string text;
  std::vector<AnswerToken> tokens;
};

/// The stop string or stop token that ended a text; monostate: neither did.
using StopReason = std::variant<std::monostate, std::string, std::int32_t>;

/// Turns the tokens of one choice into text, up to the stop string or stop token that ends it.
/// Tokens that lie wholly behind the end are dropped.
class ChoiceText {
 public:
  /// `tokenizer` outlives it.
  ChoiceText(const Tokenizer& tokenizer, ChoiceTextOptions options);

  /// Takes a token; true: the text ends with it.
  bool push(const SampledToken& sampled);
  /// There are no more tokens: what was held back becomes certain.
  void finish();
  /// What became certain since the last call.
  TextPiece take();

  const StopReason& stop_reason() const { return stop_reason_; }

 private:
  struct Pending {
    AnswerToken token;
    std::size_t begin;  // in bytes
  };

  const ChoiceTextOptions options_;
  StreamDecoder decoder_;
  StopMatcher matcher_;
  StopReason stop_reason_;
  std::int32_t num_tokens_ = 0;
  std::size_t decoded_bytes_ = 0;
  std::size_t decoded_characters_ = 0;
  std::size_t certain_bytes_ = 0;
  std::string certain_;           // since take()
  std::vector<Pending> pending_;  // tokens, since take()
  bool finished_ = false;
};

}  // namespace moiety
