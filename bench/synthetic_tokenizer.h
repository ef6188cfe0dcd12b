#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "common/result.h"

namespace moiety::bench {

/// The text of a tokenizer.json with exactly `vocab_size` tokens, made from another byte-level BPE
/// one (`base_json`, ids without gaps, in the order: special tokens, bytes, merges).
///
/// Smaller: the first ones, and the merges that make them. Larger: filler tokens that no text
/// encodes to, which decode to " w<id>". kInvalidArgument: fewer than its special tokens and
/// bytes, or a base that is not of this kind.
Result<std::string> resize_tokenizer(std::string_view base_json, std::int32_t vocab_size);

}  // namespace moiety::bench
