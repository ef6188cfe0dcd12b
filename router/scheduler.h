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
  std::uint64_t preemptions = 0;          ///< parked ones that gave up their blocks included
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
/// A sequence that runs may be parked: experts that it needs are missing. It keeps its tokens and,
/// as long as nobody else needs them, its blocks, and takes no part in anything until all are
/// unparked; then it waits at its place by arrival. Blocks of those who do not run are the first
/// to be taken back: of the parked, then of the waiting, the youngest first. Parked sequences do
/// not count as running, so they stand in nobody's way.
///
/// Everybody finishes who is not parked for ever. The oldest of those who run is never preempted:
/// blocks are taken from those who do not run and from younger ones, and alone it has every block,
/// which suffices (submit refuses what does not fit). Each step takes it one token further, or
/// some of its prompt, so it ends, and then another is the oldest. Nobody overtakes the first of
/// those who wait. Sequences may run that are younger than it, if it was parked when they were
/// admitted; they are finitely many and end, one after the other, and when nobody runs it is
/// admitted. (Without parking, those who run are older than those who wait.) Parking is bounded by
/// requests' deadlines, which the caller watches.
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

  /// Sets a sequence that runs aside until unpark_all(); its tokens and blocks stay.
  void park(Sequence& sequence);
  void unpark_all();

  /// Lets a sequence compute under another mask from now on. What it has computed stays.
  void set_mask(Sequence& sequence, std::shared_ptr<const GateMask> mask);

  /// Gives back the blocks of a sequence that has not ended. It is destroyed by the next plan().
  void end(Sequence& sequence);

  /// Calls visit(Sequence&) for every sequence that has not ended: those who run, are parked, wait,
  /// each in order of arrival. visit may end it.
  template <class Visit>
  void for_each(Visit&& visit) {
    for (auto& sequence : running_) {
      if (sequence->state != Sequence::State::kEnded) visit(*sequence);
    }
    for (auto& sequence : parked_) {
      if (sequence->state != Sequence::State::kEnded) visit(*sequence);
    }
    for (auto& sequence : waiting_) {
      if (sequence->state != Sequence::State::kEnded) visit(*sequence);
    }
  }

  std::size_t num_waiting() const { return num_waiting_; }
  std::size_t num_parked() const { return num_parked_; }
  /// How many sequences may run at a time, as far as the last plan() knows: max_num_seqs, or as
  /// many as ran then if another waited for blocks. When prompts had used up the token budget
  /// before it could be said whether another lacks blocks, what was known before, but at least as
  /// many as run.
  std::size_t seats() const { return seats_; }
  std::int32_t num_blocks() const { return cache_.num_blocks(); }
  SchedulerStats stats() const;

 private:
  void collect();
  bool grow_decodes();
  void preempt_youngest();
  void give_back(Sequence& sequence);
  bool reclaim(const Sequence* but);
  Sequence* admit_first();
  void adopt_cached(Sequence& sequence);
  const BlockKey& key(Sequence& sequence, std::size_t index);
  void plan_chunk(Sequence& sequence, std::int32_t& budget, bool starts);

  const SchedulerOptions options_;
  PrefixCache cache_;
  std::vector<std::unique_ptr<Sequence>> running_;  // in order of arrival
  std::deque<std::unique_ptr<Sequence>> waiting_;   // likewise
  std::vector<std::unique_ptr<Sequence>> parked_;   // likewise
  std::size_t num_waiting_ = 0;                     // without ended ones
  std::size_t num_parked_ = 0;                      // likewise
  std::size_t num_ended_ = 0;                       // not destroyed yet
  std::size_t seats_;
  std::vector<Part> parts_;
  // The last admission that failed for lack of blocks: not tried again before more are available.
  std::uint64_t refused_id_ = 0;
  std::int32_t refused_available_ = 0;
  std::uint64_t preemptions_ = 0;
  std::uint64_t prefix_query_tokens_ = 0;
  std::uint64_t prefix_hit_tokens_ = 0;
};

}  // namespace moiety
