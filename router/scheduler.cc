#include "router/scheduler.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "model/kv_cache.h"

namespace moiety {
namespace {

constexpr std::int32_t kBlock = kernels::kKvBlockSize;
constexpr std::int32_t kLeastPromptShare = 8;  // an eighth of the budget

/// Takes a sequence out of a list that is in order of arrival.
std::unique_ptr<Sequence> take_out(std::vector<std::unique_ptr<Sequence>>& list,
                                   const Sequence& sequence) {
  const auto it = std::find_if(list.begin(), list.end(),
                               [&](const auto& each) { return each.get() == &sequence; });
  MOIETY_CHECK(it != list.end(), "a sequence is not where its state says");
  std::unique_ptr<Sequence> out = std::move(*it);
  list.erase(it);
  return out;
}

/// Puts a sequence at its place by arrival, mostly the end or the beginning.
template <class List>
void put_in(List& list, std::unique_ptr<Sequence> sequence) {
  auto at = list.begin();
  if (!list.empty() && list.back()->id < sequence->id) {
    at = list.end();
  } else {
    while (at != list.end() && (*at)->id < sequence->id) ++at;
  }
  list.insert(at, std::move(sequence));
}

}  // namespace

Scheduler::Scheduler(std::int32_t num_blocks, const SchedulerOptions& options)
    : options_(options),
      cache_(num_blocks, options.prefix_cache),
      seats_(static_cast<std::size_t>(options.max_num_seqs)) {}

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
  if (sequence.state == Sequence::State::kParked) --num_parked_;
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
  std::erase_if(parked_, ended);
  num_ended_ = 0;
}

void Scheduler::park(Sequence& sequence) {
  MOIETY_CHECK(sequence.state == Sequence::State::kRunning, "parks what does not run");
  sequence.state = Sequence::State::kParked;
  put_in(parked_, take_out(running_, sequence));
  ++num_parked_;
  refused_id_ = 0;  // its blocks may be had
}

void Scheduler::unpark_all() {
  for (std::unique_ptr<Sequence>& sequence : parked_) {
    if (sequence->state == Sequence::State::kEnded) continue;
    sequence->state = Sequence::State::kWaiting;
    put_in(waiting_, std::move(sequence));
    ++num_waiting_;
  }
  std::erase(parked_, nullptr);
  num_parked_ = 0;
  refused_id_ = 0;
}

void Scheduler::set_mask(Sequence& sequence, std::shared_ptr<const GateMask> mask) {
  sequence.mask = std::move(mask);
  if (sequence.computed > 0) {
    sequence.mixed_masks = true;
    return;
  }
  sequence.root = prefix_root(sequence.mask.get());
  sequence.keys.clear();
}

/// Takes a sequence's blocks: it computes its tokens again later.
void Scheduler::give_back(Sequence& sequence) {
  cache_.release(sequence.blocks);
  sequence.blocks.clear();
  sequence.masked_mass.clear();
  sequence.computed = 0;
  sequence.preempted = true;
  if (sequence.mixed_masks) {
    sequence.mixed_masks = false;
    sequence.root = prefix_root(sequence.mask.get());
    sequence.keys.clear();
  }
  ++preemptions_;
}

/// Takes the blocks of the youngest parked sequence that has some, else of the youngest that waits
/// with some; of another one than `but`. False: there is none.
bool Scheduler::reclaim(const Sequence* but) {
  const auto try_list = [&](auto& list) {
    for (auto it = list.rbegin(); it != list.rend(); ++it) {
      if ((*it)->blocks.empty() || it->get() == but) continue;
      give_back(**it);
      return true;
    }
    return false;
  };
  return try_list(parked_) || try_list(waiting_);
}

void Scheduler::preempt_youngest() {
  give_back(*running_.back());
  running_.back()->state = Sequence::State::kWaiting;
  put_in(waiting_, std::move(running_.back()));
  running_.pop_back();
  ++num_waiting_;
}

/// Adds one token of each sequence that decodes, oldest first, so that only sequences without a
/// part yet are preempted. True when one was.
bool Scheduler::grow_decodes() {
  const std::size_t waiting_before = num_waiting_;
  for (std::size_t i = 0; i < running_.size(); ++i) {
    Sequence& sequence = *running_[i];
    if (!sequence.decodes()) continue;
    if (sequence.computed == static_cast<std::int32_t>(sequence.blocks.size()) * kBlock) {
      auto block = cache_.take();
      while (!block && reclaim(nullptr)) block = cache_.take();
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
  return num_waiting_ > waiting_before;
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
  if (!cache_.keeps() || sequence.mixed_masks) return;
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

/// Admits the first of those who wait; null when there is none, or no room for it.
Sequence* Scheduler::admit_first() {
  if (waiting_.empty() || running_.size() >= static_cast<std::size_t>(options_.max_num_seqs)) {
    return nullptr;
  }
  Sequence& sequence = *waiting_.front();
  if (!running_.empty() && sequence.id == refused_id_ &&
      cache_.num_available() <= refused_available_) {
    return nullptr;
  }
  const std::int32_t available = cache_.num_available();
  const bool held = !sequence.blocks.empty();  // it was parked
  const std::int32_t cached_tokens = sequence.cached_tokens;
  adopt_cached(sequence);
  const auto needed = [&] {
    return KvCache::blocks_for(sequence.size()) - static_cast<std::int32_t>(sequence.blocks.size());
  };
  const auto missing = [&] {
    return cache_.num_available() < needed() + static_cast<std::int32_t>(running_.size());
  };
  while (missing() && reclaim(&sequence)) continue;
  if (missing()) {
    MOIETY_CHECK(!running_.empty(), "a sequence alone does not fit in the KV cache");
    refused_id_ = sequence.id;
    refused_available_ = held ? cache_.num_available() : available;
    if (held) return nullptr;
    cache_.release(sequence.blocks);
    sequence.blocks.clear();
    sequence.masked_mass.clear();
    sequence.computed = 0;
    sequence.cached_tokens = cached_tokens;
    return nullptr;
  }
  for (std::int32_t i = needed(); i > 0; --i) sequence.blocks.push_back(*cache_.take());
  sequence.state = Sequence::State::kRunning;
  put_in(running_, std::move(waiting_.front()));
  waiting_.pop_front();
  --num_waiting_;
  return &sequence;
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
  const auto max_num_seqs = static_cast<std::size_t>(options_.max_num_seqs);
  bool lacks_blocks = preempted;
  // Who was pushed out in this step would only push out again.
  while (!preempted && budget > 0) {
    Sequence* const sequence = admit_first();
    if (sequence == nullptr) {
      lacks_blocks = !waiting_.empty() && running_.size() < max_num_seqs;
      break;
    }
    const bool starts = !std::exchange(sequence->started, true);
    if (starts) {
      prefix_query_tokens_ += static_cast<std::uint64_t>(sequence->prompt_size);
      prefix_hit_tokens_ += static_cast<std::uint64_t>(sequence->cached_tokens);
    }
    plan_chunk(*sequence, budget, starts);
  }
  if (lacks_blocks) {
    seats_ = running_.size();
  } else if (waiting_.empty() || budget > 0) {
    seats_ = max_num_seqs;
  } else {  // whether there are blocks for the first that waits was not tried
    seats_ = std::max(seats_, running_.size());
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
  if (!cache_.keeps() || sequence.mixed_masks) return;
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
