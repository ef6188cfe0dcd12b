#include "router/scheduler.h"

#include <algorithm>

#include "common/check.h"
#include "model/kv_cache.h"

namespace moiety {
namespace {

constexpr std::int32_t kBlock = kernels::kKvBlockSize;
constexpr std::int32_t kLeastPromptShare = 8;  // an eighth of the budget

}  // namespace

Scheduler::Scheduler(std::int32_t num_blocks, const SchedulerOptions& options)
    : options_(options), cache_(num_blocks, options.prefix_cache) {}

void Scheduler::add(std::unique_ptr<Sequence> sequence) {
  MOIETY_CHECK(waiting_.empty() || waiting_.back()->id < sequence->id, "arrivals out of order");
  waiting_.push_back(std::move(sequence));
  ++num_waiting_;
}

void Scheduler::end(Sequence& sequence) {
  MOIETY_CHECK(sequence.state != Sequence::State::kEnded, "a sequence ends twice");
  cache_.release(sequence.blocks);
  sequence.blocks.clear();
  if (sequence.state == Sequence::State::kWaiting) --num_waiting_;
  sequence.state = Sequence::State::kEnded;
  ++num_ended_;
}

void Scheduler::collect() {
  if (num_ended_ == 0) return;
  const auto ended = [](const auto& sequence) {
    return sequence->state == Sequence::State::kEnded;
  };
  std::erase_if(running_, ended);
  std::erase_if(waiting_, ended);
  num_ended_ = 0;
}

void Scheduler::preempt_youngest() {
  Sequence& sequence = *running_.back();
  cache_.release(sequence.blocks);
  sequence.blocks.clear();
  sequence.masked_mass.clear();
  sequence.computed = 0;
  sequence.preempted = true;
  sequence.state = Sequence::State::kWaiting;
  waiting_.push_front(std::move(running_.back()));
  running_.pop_back();
  ++num_waiting_;
  ++preemptions_;
}

/// Adds one token of each sequence that decodes, oldest first, so that only sequences without a
/// part yet are preempted. True when one was.
bool Scheduler::grow_decodes() {
  const std::uint64_t preemptions_before = preemptions_;
  for (std::size_t i = 0; i < running_.size(); ++i) {
    Sequence& sequence = *running_[i];
    if (!sequence.decodes()) continue;
    if (sequence.computed == static_cast<std::int32_t>(sequence.blocks.size()) * kBlock) {
      auto block = cache_.take();
      while (!block && running_.size() > i + 1) {
        preempt_youngest();
        block = cache_.take();
      }
      if (!block) {  // it is the youngest itself
        MOIETY_CHECK(i > 0, "the oldest sequence does not fit in the KV cache");
        preempt_youngest();
        break;
      }
      sequence.blocks.push_back(*block);
    }
    parts_.push_back({&sequence, 1, true, false});
  }
  return preemptions_ > preemptions_before;
}

const BlockKey& Scheduler::key(Sequence& sequence, std::size_t index) {
  for (std::size_t i = sequence.keys.size(); i <= index; ++i) {
    sequence.keys.push_back(next_block_key(
        i == 0 ? sequence.root : sequence.keys[i - 1],
        std::span(sequence.tokens).subspan(i * kBlock, static_cast<std::size_t>(kBlock))));
  }
  return sequence.keys[index];
}

void Scheduler::adopt_cached(Sequence& sequence) {
  if (!cache_.keeps()) return;
  for (;;) {
    const auto index = static_cast<std::size_t>(sequence.computed / kBlock);
    const std::int32_t end = static_cast<std::int32_t>(index + 1) * kBlock;
    if (end >= sequence.size()) return;
    const auto cached = cache_.find(key(sequence, index));
    if (!cached) return;
    if (index < sequence.blocks.size()) {
      cache_.release(std::span(&sequence.blocks[index], 1));
      sequence.blocks[index] = cached->block;
    } else {
      sequence.blocks.push_back(cached->block);
    }
    sequence.masked_mass.resize(index + 1);
    sequence.masked_mass[index] = cached->masked_mass;
    // After preemption these may be tokens that this request computed before.
    if (!sequence.preempted) sequence.cached_tokens += end - sequence.computed;
    sequence.computed = end;
  }
}

bool Scheduler::admit_first() {
  if (waiting_.empty() || running_.size() >= static_cast<std::size_t>(options_.max_num_seqs)) {
    return false;
  }
  Sequence& sequence = *waiting_.front();
  if (!running_.empty() && sequence.id == refused_id_ &&
      cache_.num_available() <= refused_available_) {
    return false;
  }
  const std::int32_t available = cache_.num_available();
  const std::int32_t cached_tokens = sequence.cached_tokens;
  adopt_cached(sequence);
  const auto held = static_cast<std::int32_t>(sequence.blocks.size());
  const std::int32_t needed = KvCache::blocks_for(sequence.size()) - held;
  if (cache_.num_available() < needed + static_cast<std::int32_t>(running_.size())) {
    MOIETY_CHECK(!running_.empty(), "a sequence alone does not fit in the KV cache");
    cache_.release(sequence.blocks);
    sequence.blocks.clear();
    sequence.masked_mass.clear();
    sequence.computed = 0;
    sequence.cached_tokens = cached_tokens;
    refused_id_ = sequence.id;
    refused_available_ = available;
    return false;
  }
  for (std::int32_t i = 0; i < needed; ++i) sequence.blocks.push_back(*cache_.take());
  MOIETY_CHECK(running_.empty() || running_.back()->id < sequence.id, "admitted out of order");
  sequence.state = Sequence::State::kRunning;
  running_.push_back(std::move(waiting_.front()));
  waiting_.pop_front();
  --num_waiting_;
  return true;
}

void Scheduler::plan_chunk(Sequence& sequence, std::int32_t& budget, bool starts) {
  const std::int32_t count = std::min(budget, sequence.pending());
  parts_.push_back({&sequence, count, count == sequence.pending(), starts});
  budget -= count;
}

std::span<const Scheduler::Part> Scheduler::plan() {
  collect();
  parts_.clear();
  const bool preempted = grow_decodes();
  const std::int32_t budget_in_all = options_.max_num_batched_tokens;
  std::int32_t budget = std::max({1, budget_in_all / kLeastPromptShare,
                                  budget_in_all - static_cast<std::int32_t>(parts_.size())});
  for (const auto& sequence : running_) {
    if (budget == 0) break;
    if (sequence->decodes()) continue;
    const std::int32_t before = sequence->cached_tokens;
    adopt_cached(*sequence);
    prefix_hit_tokens_ += static_cast<std::uint64_t>(sequence->cached_tokens - before);
    plan_chunk(*sequence, budget, false);
  }
  // Who was pushed out in this step would only push out again.
  while (!preempted && budget > 0 && admit_first()) {
    Sequence& sequence = *running_.back();
    if (!sequence.preempted) {
      prefix_query_tokens_ += static_cast<std::uint64_t>(sequence.prompt_size);
      prefix_hit_tokens_ += static_cast<std::uint64_t>(sequence.cached_tokens);
    }
    plan_chunk(sequence, budget, !sequence.preempted);
  }
  return parts_;
}

void Scheduler::complete(const Part& part, std::span<const float> masked_mass) {
  Sequence& sequence = *part.sequence;
  MOIETY_CHECK(masked_mass.size() == static_cast<std::size_t>(part.count), "one value per row");
  const std::int32_t first_open = sequence.computed / kBlock;
  sequence.masked_mass.resize(sequence.blocks.size());
  for (const float mass : masked_mass) {
    sequence.masked_mass[static_cast<std::size_t>(sequence.computed++ / kBlock)] += mass;
  }
  if (!cache_.keeps()) return;
  for (std::int32_t i = first_open; i < sequence.computed / kBlock; ++i) {
    const auto index = static_cast<std::size_t>(i);
    sequence.blocks[index] =
        cache_.publish(sequence.blocks[index], key(sequence, index), sequence.masked_mass[index]);
  }
}

SchedulerStats Scheduler::stats() const {
  SchedulerStats stats;
  stats.preemptions = preemptions_;
  stats.prefix_query_tokens = prefix_query_tokens_;
  stats.prefix_hit_tokens = prefix_hit_tokens_;
  stats.prefix_evictions = cache_.num_evicted();
  stats.kv_blocks = cache_.num_blocks();
  stats.kv_blocks_used = cache_.num_used();
  stats.kv_blocks_cached = cache_.num_cached();
  return stats;
}

}  // namespace moiety
