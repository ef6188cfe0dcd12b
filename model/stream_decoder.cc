#include "model/tokenizer.h"
#include "model/utf8.h"

namespace moiety {

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(&tokenizer), skip_special_(skip_special) {}

std::string StreamDecoder::push(std::int32_t id) {
  if (skip_special_ && tokenizer_->is_special(id)) return {};
  pending_ += tokenizer_->token_bytes(id);
  const std::size_t certain = pending_.size() - unfinished_utf8_suffix(pending_);
  std::string text;
  append_replacing_invalid(std::string_view(pending_).substr(0, certain), text);
  pending_.erase(0, certain);
  return text;
}

std::string StreamDecoder::finish() {
  std::string text;
  append_replacing_invalid(pending_, text);
  pending_.clear();
  return text;
}

}  // namespace moiety
