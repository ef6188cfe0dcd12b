#include "router/choice_text.h"

#include <algorithm>

namespace moiety {
namespace {

std::size_t count_characters(std::string_view utf8) {
  return static_cast<std::size_t>(std::count_if(utf8.begin(), utf8.end(), [](char byte) {
    return (static_cast<unsigned char>(byte) & 0xc0u) != 0x80u;
  }));
}

}  // namespace

ChoiceText::ChoiceText(const Tokenizer& tokenizer, ChoiceTextOptions options)
    : options_(std::move(options)),
      decoder_(tokenizer, options_.skip_special),
      matcher_(options_.stop, options_.include_stop) {}

bool ChoiceText::push(const SampledToken& sampled) {
  ++num_tokens_;
  const auto& stops = options_.stop_token_ids;
  if (std::find(stops.begin(), stops.end(), sampled.token) != stops.end()) {
    stop_reason_ = sampled.token;
    return true;
  }
  const std::string piece = decoder_.push(sampled.token);
  if (options_.keep_tokens) {
    const std::string_view earlier = std::string_view(piece).substr(0, decoder_.earlier_bytes());
    pending_.push_back({{sampled, decoded_characters_ + count_characters(earlier)},
                        decoded_bytes_ + earlier.size()});
  }
  decoded_bytes_ += piece.size();
  decoded_characters_ += count_characters(piece);
  const std::string text =
      num_tokens_ > options_.min_tokens ? matcher_.push(piece) : matcher_.pass(piece);
  certain_ += text;
  certain_bytes_ += text.size();
  if (!matcher_.matched()) return false;
  stop_reason_ = *matcher_.matched();
  return true;
}

void ChoiceText::finish() {
  if (finished_) return;
  finished_ = true;
  if (matcher_.matched()) {
    std::erase_if(pending_, [&](const Pending& token) { return token.begin >= certain_bytes_; });
    return;
  }
  const std::string text = matcher_.pass(decoder_.finish());
  certain_ += text;
  certain_bytes_ += text.size();
}

TextPiece ChoiceText::take() {
  TextPiece piece;
  piece.text.swap(certain_);
  const auto waits = std::find_if(pending_.begin(), pending_.end(), [&](const Pending& token) {
    return !finished_ && token.begin >= certain_bytes_;
  });
  for (auto it = pending_.begin(); it != waits; ++it) piece.tokens.push_back(std::move(it->token));
  pending_.erase(pending_.begin(), waits);
  return piece;
}

}  // namespace moiety
