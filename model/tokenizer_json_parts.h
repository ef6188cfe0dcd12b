#pragma once

#include "common/result.h"
#include "model/tokenizer_json.h"
#include "model/tokenizer_json_value.h"

namespace moiety {

/// Adds the steps of a `normalizer`.
Result<void> parse_normalizer(const JsonValue& part, Normalizer& normalizer);

/// Adds the steps of a `pre_tokenizer`.
Result<void> parse_pre_tokenizer(const JsonValue& part, PreTokenizer& pre_tokenizer);

/// The `decoder`.
Result<TokenDecoder> parse_decoder(const JsonValue& part);

/// The `post_processor`; whether its ids are those of tokens is not checked.
Result<SpecialTokens> parse_post_processor(const JsonValue& part);

}  // namespace moiety
