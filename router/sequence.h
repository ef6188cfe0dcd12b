#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/attention.h"
#include "model/model.h"
#include "model/prefix_cache.h"
#include "router/request.h"

namespace moiety {

/// One request between submit and its end. Belongs to the step loop once it is queued.
struct Sequence {
  std::uint64_t id = 0;     ///< ascending in order of arrival
  GenerateRequest request;  ///< its prompt has moved to `tokens`
  RequestCallbacks callbacks;
  std::shared_ptr<const GateMask> deployed;  ///< the deployment's at the start; null: every expert
  /// What it computes under: `deployed`, or less while experts are missing (MissingPolicy::kMask).
  std::shared_ptr<const GateMask> mask;
  BlockKey root{};  ///< prefix_root(mask)
  MissingPolicy on_missing = MissingPolicy::kWait;
  std::int32_t masked_experts = 0;  ///< of `deployed`, the most that `mask` ever left out
  Clock::time_point submitted;

  std::vector<std::int32_t> tokens;  ///< prompt, then generated; never shrinks
  std::int32_t prompt_size = 0;

  enum class State : std::uint8_t { kWaiting, kRunning, kParked, kEnded };

  // What the scheduler keeps. Preemption clears the first three.
  std::vector<std::int32_t> blocks;  ///< block table
  std::int32_t computed = 0;         ///< tokens whose k and v are in the cache
  /// By block: masked mass summed over its computed tokens in order of position, so that the sum
  /// over blocks has the same bits whatever was cached, chunked or computed again.
  std::vector<double> masked_mass;
  std::vector<BlockKey> keys;      ///< of leading full blocks, as far as they were asked for
  std::int32_t cached_tokens = 0;  ///< prompt tokens that this request never computed
  State state = State::kWaiting;
  bool started = false;    ///< it had rows in a step
  bool preempted = false;  ///< at least once
  /// Its blocks were computed under several masks: they are its own, never shared.
  bool mixed_masks = false;

  Clock::time_point last_token;  ///< when the last one was handed out

  std::int32_t size() const { return static_cast<std::int32_t>(tokens.size()); }
  std::int32_t generated() const { return size() - prompt_size; }
  std::int32_t pending() const { return size() - computed; }
  /// All but the newest token is computed: a step of one token gives the next.
  bool decodes() const { return generated() > 0 && pending() == 1; }
};

}  // namespace moiety
