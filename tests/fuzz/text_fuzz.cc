// Any bytes as text for the bundled tokenizer and, after the first byte, as ids of tokens.
#include <cstddef>
#include <cstdint>

#include "common/check.h"
#include "common/utf8.h"
#include "model/tokenizer.h"

namespace {

const moiety::Tokenizer& tokenizer() {
  static const moiety::Tokenizer instance = [] {
    auto loaded = moiety::Tokenizer::load(MOIETY_SOURCE_DIR "/models/moiety-tiny-emo");
    MOIETY_CHECK(loaded, loaded.error().message);
    return std::move(*loaded);
  }();
  return instance;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  std::string repaired;
  moiety::append_replacing_invalid(text, repaired);
  MOIETY_CHECK(moiety::is_valid_utf8(repaired), "not repaired");
  const auto ids = *tokenizer().encode(text);
  MOIETY_CHECK(tokenizer().decode(ids, false) == repaired, "the text does not come back");

  std::vector<std::int32_t> drawn;
  for (std::size_t i = 0; i + 1 < size; i += 2) drawn.push_back(data[i] * 33 + data[i + 1] - 1);
  moiety::StreamDecoder stream(tokenizer());
  std::string streamed;
  for (const std::int32_t id : drawn) streamed += stream.push(id);
  streamed += stream.finish();
  MOIETY_CHECK(streamed == tokenizer().decode(drawn), "streamed text differs");
  return 0;
}
