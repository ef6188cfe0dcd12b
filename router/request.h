#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/ids.h"
#include "common/result.h"
#include "model/sampler.h"

namespace moiety {

struct GenerateRequest {
  std::string deployment;            ///< "" = the full model
  std::vector<std::int32_t> prompt;  ///< at least one token
  SamplingParams sampling;
  std::int32_t max_tokens = 16;
  std::vector<std::int32_t>
      stop_ids;  ///< generation ends at one of these (it is reported, not part of the text)
  Deadline deadline = Deadline::max();
};

enum class FinishReason : std::uint8_t { kStop, kLength, kCancelled, kError };
std::string_view finish_reason_name(FinishReason reason);

/// How a request ended.
struct Finish {
  FinishReason reason = FinishReason::kStop;
  Error error;  ///< kError only
  std::int32_t prompt_tokens = 0;
  std::int32_t cached_tokens = 0;      ///< of the prompt: taken from the prefix cache
  std::int32_t completion_tokens = 0;  ///< the stop token included
  /// Mean over MoE layers and all tokens that went through the model, now or (cached ones) when
  /// they were computed: the same whether cached or not. Absent for physically pruned checkpoints.
  std::optional<double> masked_mass;
  /// Experts of its deployment, over all layers, that it went without because no worker in reach
  /// held them (MissingPolicy::kMask); the most at any time.
  std::int32_t masked_experts = 0;
};

/// What a request wants after a token: more, or its end with FinishReason::kStop (a stop string).
enum class TokenAction : std::uint8_t { kContinue, kStop };

/// What a request hears, on the step loop's thread; must not block. After on_finish nothing more
/// comes.
struct RequestCallbacks {
  std::function<TokenAction(const SampledToken& token)> on_token;
  std::function<void(const Finish&)> on_finish;
};

}  // namespace moiety
