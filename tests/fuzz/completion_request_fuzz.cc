// Bodies of POST /v1/completions.
#include "router/completion_request.h"

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "common/check.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr std::int32_t kVocabSize = 1000;
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  const auto parsed = moiety::parse_completion_request(body, kVocabSize);
  const auto* request = std::get_if<moiety::CompletionRequest>(&parsed);
  if (request == nullptr) return 0;
  const moiety::GenerationFields& fields = request->fields;
  MOIETY_CHECK(!request->prompts.empty(), "no prompt");
  MOIETY_CHECK(fields.n >= 1 && fields.n <= moiety::kMaxN, "bad n");
  MOIETY_CHECK(request->prompts.size() * static_cast<std::size_t>(fields.n) <= moiety::kMaxChoices,
               "too many choices");
  // The engine checks the ids of prompts.
  for (const auto& [id, bias] : fields.logit_bias) {
    MOIETY_CHECK(id >= 0 && id < kVocabSize && std::isfinite(bias), "bad bias");
  }
  MOIETY_CHECK(!fields.temperature || *fields.temperature >= 0, "bad temperature");
  MOIETY_CHECK(std::isfinite(fields.presence_penalty), "bad penalty");
  MOIETY_CHECK(std::isfinite(fields.frequency_penalty), "bad penalty");
  MOIETY_CHECK(!fields.stop || fields.stop->size() <= moiety::kMaxStopStrings,
               "too many stop strings");
  return 0;
}
