#pragma once

#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace moiety {

/// The special tokens that a checkpoint's tokenizer puts around a text (PyPI tokenizers' encode
/// with add_special_tokens=True): for most decoders none, or one that begins the text.
struct SpecialTokens {
  std::vector<std::int32_t> before, after;
};

/// tokenizer_config.json (given as text) of a tokenizer_class that goes by add_bos_token and
/// add_eos_token (those of Llama, Code Llama, Gemma, Cohere and GPT-NeoX, as in transformers 4)
/// replaces `tokens`, which are from the post_processor of tokenizer.json. With other classes, and
/// in files of transformers 5 ("backend"), the flags are of no effect, as there. `token_id` gives
/// the id of a token's text, or -1. kInvalidArgument names the part that is not understood.
Result<void> apply_tokenizer_config(std::string_view config,
                                    const std::function<std::int32_t(std::string_view)>& token_id,
                                    SpecialTokens& tokens);

}  // namespace moiety
