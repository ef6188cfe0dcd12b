#include "model/tokenizer.h"

namespace moiety {

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(&tokenizer), skip_special_(skip_special) {}

std::string StreamDecoder::push(std::int32_t id) {
  std::string text;
  state_.earlier_bytes = 0;
  if (!(skip_special_ && tokenizer_->is_special(id))) tokenizer_->push(id, state_, text);
  return text;
}

std::string StreamDecoder::finish() {
  std::string text;
  tokenizer_->finish(state_, text);
  return text;
}

}  // namespace moiety
