#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "model/prefix_cache.h"
#include "router/sequence.h"

namespace moiety {

struct SchedulerOptions {
  std::int32_t max_num_seqs = 64;
  std::int32_t max_num_batched_tokens = 512;
  bool prefix_cache = true;
};

/// Counters since the start, and the state of the KV cache now.
struct SchedulerStats {
  std::uint64_t preemptions = 0;
  std::uint64_t prefix_query_tokens = 0;  ///< prompt tokens of requests that started
  std::uint64_t prefix_hit_tokens = 0;    ///< of those, taken from the prefix cache
  std::uint64_t prefix_evictions = 0;     ///< cached blocks whose place was needed
  std::int32_t kv_blocks = 0;
  std::int32_t kv_blocks_used = 0;    ///< held by running sequences
  std::int32_t kv_blocks_cached = 0;  ///< held by nobody, kept for later sequences
};

/// Decides which rows the next step computes, and owns the sequences and their KV blocks.
///
/// First come, first served. A step has
///   1. one token of every sequence that decodes, whatever the budget;
///   2. prompt tokens in order of arrival, with what is left of the budget, but with an eighth of
///      it at least: sequences that decode cannot starve a prompt that was admitted.
/// A sequence is admitted when it is the first that waits, fewer than max_num_seqs run, the budget
/// has a token for it, and there are blocks for the tokens that it has and one for each sequence
/// that runs. Nothing is reserved for max_tokens: blocks are taken as it grows. When there is none
/// left, the youngest by arrival is preempted: it gives its blocks back, keeps its tokens, waits at
/// the head of the queue and computes its tokens again later (kernels are batch-invariant, so the
/// bits are the same; what was sampled stays).
///
/// Everybody finishes. Those who run are older than those who wait: the queue is in order of
/// arrival, its first is admitted, the youngest goes back to its head. So while anybody waits or
/// runs, the oldest of all runs: if it waited, nobody would run, and then it is admitted. It is
/// never preempted, for only a sequence alone could push out itself, and alone it has every block,
/// which suffices (submit refuses what does not fit). Each step takes it one token further, or
/// some of its prompt. It ends; then another is the oldest.
///
/// Full blocks are published to the prefix cache as they are computed, and looked up when a
/// sequence starts and before each chunk of its prompt (another may have computed them meanwhile).
/// The last token is never taken from there: its logits are needed. Not thread-safe.
class Scheduler {
 public:
  /// Rows of the next step: `count` tokens from sequence->computed on.
  struct Part {
    Sequence* sequence = nullptr;
    std::int32_t count = 0;
    bool wants_token = false;  ///< the newest token is among them
    bool starts = false;       ///< the sequence never ran before
  };

  Scheduler(std::int32_t num_blocks, const SchedulerOptions& options);

  /// Puts a sequence at the end of the queue. Ids ascend; its tokens and all that it may generate
  /// fit in the cache.
  void add(std::unique_ptr<Sequence> sequence);

  /// The rows of the next step, those of each sequence together; empty when nothing waits or runs.
  /// Valid until the next call. Destroys ended sequences.
  std::span<const Part> plan();

  /// The rows of a part were computed without failure; `masked_mass` has one value for each.
  /// Called before the token that they gave is appended.
  void complete(const Part& part, std::span<const float> masked_mass);

  /// Gives back the blocks of a sequence that waits or runs. It is destroyed by the next plan().
  void end(Sequence& sequence);

  /// Calls visit(Sequence&) for every sequence that has not ended, in order of arrival; visit may
  /// end it.
  template <class Visit>
  void for_each(Visit&& visit) {
    for (auto& sequence : running_) {
      if (sequence->state != Sequence::State::kEnded) visit(*sequence);
    }
    for (auto& sequence : waiting_) {
      if (sequence->state != Sequence::State::kEnded) visit(*sequence);
    }
  }

  std::size_t num_waiting() const { return num_waiting_; }
  std::int32_t num_blocks() const { return cache_.num_blocks(); }
  SchedulerStats stats() const;

 private:
  void collect();
  bool grow_decodes();
  void preempt_youngest();
  bool admit_first();
  void adopt_cached(Sequence& sequence);
  const BlockKey& key(Sequence& sequence, std::size_t index);
  void plan_chunk(Sequence& sequence, std::int32_t& budget, bool starts);

  const SchedulerOptions options_;
  PrefixCache cache_;
  std::vector<std::unique_ptr<Sequence>> running_;  // in order of arrival
  std::deque<std::unique_ptr<Sequence>> waiting_;   // likewise; all younger than those who run
  std::size_t num_waiting_ = 0;                     // without ended ones
  std::size_t num_ended_ = 0;                       // not destroyed yet
  std::vector<Part> parts_;
  // The last admission that failed for lack of blocks: not tried again before more are available.
  std::uint64_t refused_id_ = 0;
  std::int32_t refused_available_ = 0;
  std::uint64_t preemptions_ = 0;
  std::uint64_t prefix_query_tokens_ = 0;
  std::uint64_t prefix_hit_tokens_ = 0;
};

}  // namespace moiety
