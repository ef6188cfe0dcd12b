#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "model/generation_config.h"
#include "model/sampler.h"
#include "router/field_reader.h"

namespace moiety {

/// The fields that both endpoints have. What is left out takes the checkpoint's default where it
/// has one, and the API's otherwise.
struct GenerationFields {
  std::string model;
  std::optional<std::int32_t> max_tokens;
  std::int32_t n = 1;
  bool stream = false;
  bool include_usage = false;

  std::optional<float> temperature, top_p, min_p, repetition_penalty;
  std::optional<std::int32_t> top_k;  ///< 0 = all
  float presence_penalty = 0;
  float frequency_penalty = 0;
  std::vector<std::pair<std::int32_t, float>> logit_bias;  ///< ascending ids
  std::optional<std::uint64_t> seed;
  std::int32_t logprobs = -1;  ///< as SamplingParams::logprobs; each endpoint reads its own field

  std::optional<std::vector<std::string>> stop;
  std::vector<std::int32_t> stop_token_ids;
  bool include_stop_str_in_output = false;
  bool ignore_eos = false;
  std::int32_t min_tokens = 0;
  bool skip_special_tokens = true;
};

inline constexpr std::int32_t kMostTokens = 1 << 30;  // of max_tokens and min_tokens
inline constexpr std::int32_t kMaxLogprobs = 20;      // as OpenAI's chat completions
inline constexpr std::int32_t kMaxN = 128;            // as OpenAI's
inline constexpr std::size_t kMaxChoices = 1024;      // prompts times n
inline constexpr std::size_t kMaxStopStrings = 16;
inline constexpr std::size_t kMaxStopBytes = 1024;  // of each

/// Reads them; errors stay in `reader`. Token ids are checked against `vocab_size`.
GenerationFields read_generation_fields(FieldReader& reader, std::int32_t vocab_size);

/// What ends the text: the request's `stop`, also an empty list, or else the checkpoint's.
std::vector<std::string> stop_strings(const GenerationFields& fields,
                                      const GenerationDefaults& defaults);

/// Sampling as `fields` and `defaults` say. `seed` is that of this choice; `end_ids` are what
/// min_tokens keeps away.
SamplingParams sampling_params(const GenerationFields& fields,
                               const GenerationDefaults& defaults,
                               std::uint64_t seed,
                               const std::vector<std::int32_t>& end_ids);

}  // namespace moiety
