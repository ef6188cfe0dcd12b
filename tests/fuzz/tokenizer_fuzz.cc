// A tokenizer.json from outside and a text: the first zero byte, which JSON has none of, is between
// them.
#include <cstddef>
#include <cstdint>

#include "common/check.h"
#include "common/utf8.h"
#include "model/tokenizer.h"

namespace {

// Whatever the file: ids are tokens, encoding repeats itself, streams decode like the whole.
void check(const moiety::Tokenizer& tokenizer, std::string_view text) {
  const auto encoded = tokenizer.encode(text);
  const auto whole = tokenizer.encode(text, true);
  MOIETY_CHECK(encoded.has_value() == whole.has_value(), "fails with special tokens only");
  if (!encoded) {
    MOIETY_CHECK(!encoded.error().message.empty(), "failed without a reason");
    return;
  }
  const auto& ids = *encoded;
  MOIETY_CHECK(*tokenizer.encode(text) == ids, "other ids with a warm cache");
  for (const std::int32_t id : *whole) {
    MOIETY_CHECK(id >= 0 && id < tokenizer.vocab_size(), "not a token");
  }
  for (const bool skip_special : {false, true}) {
    moiety::StreamDecoder stream(tokenizer, skip_special);
    std::string streamed;
    for (const std::int32_t id : ids) {
      const std::string part = stream.push(id);
      MOIETY_CHECK(moiety::is_valid_utf8(part), "part of a character");
      streamed += part;
    }
    streamed += stream.finish();
    MOIETY_CHECK(streamed == tokenizer.decode(ids, skip_special), "streamed text differs");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::size_t end = std::min(input.find('\0'), size);
  const auto tokenizer = moiety::Tokenizer::parse(input.substr(0, end));
  if (!tokenizer) {
    MOIETY_CHECK(!tokenizer.error().message.empty(), "refused without a reason");
    return 0;
  }
  check(*tokenizer, input.substr(std::min(end + 1, size)));
  return 0;
}
