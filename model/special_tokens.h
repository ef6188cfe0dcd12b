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

/// Where tokenizer_config.json (given as text) has add_bos_token or add_eos_token, they overrule
/// the post_processor of tokenizer.json, which `tokens` are from. `token_id` gives the id of a
/// token's text, or -1. kInvalidArgument names the part that is not understood.
Result<void> apply_tokenizer_config(std::string_view config,
                                    const std::function<std::int32_t(std::string_view)>& token_id,
                                    SpecialTokens& tokens);

}  // namespace moiety
