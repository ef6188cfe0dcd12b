#pragma once

#include <string_view>
#include <vector>

#include "common/result.h"
#include "model/special_tokens.h"
#include "model/tokenizer_added.h"
#include "model/tokenizer_bpe.h"
#include "model/tokenizer_decoder.h"
#include "model/tokenizer_normalizer.h"
#include "model/tokenizer_split.h"

namespace moiety {

/// What a BPE tokenizer.json describes.
struct TokenizerParts {
  BpeModel model;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  TokenDecoder decoder;
  SpecialTokens special;  ///< of the post_processor
  std::vector<AddedToken>
      added_tokens;  ///< contents and ids are unique and agree with the vocabulary
};

/// Reads the text of a tokenizer.json. kInvalidArgument names the place and the part that is wrong
/// or not supported. `truncation` and `padding` are ignored (callers bound lengths themselves).
Result<TokenizerParts> parse_tokenizer_json(std::string_view json);

}  // namespace moiety
