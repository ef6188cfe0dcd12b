#include "router/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

namespace moiety {
namespace {

constexpr std::int32_t kBlock = kernels::kKvBlockSize;

/// Stands in for the model: a "KV cache" that remembers which prefix each slot was computed for,
/// and next tokens that are a function of the whole prefix. Each step checks that every row sees
/// exactly its own prefix, so a block that is shared or overwritten wrongly is found at once.
class FakeModel {
 public:
  FakeModel(std::int32_t num_blocks, const SchedulerOptions& options)
      : scheduler_(num_blocks, options),
        slots_(static_cast<std::size_t>(num_blocks) * static_cast<std::size_t>(kBlock)) {}

  Sequence& add(std::vector<std::int32_t> prompt, std::int32_t max_tokens, std::uint8_t root = 0) {
    auto sequence = std::make_unique<Sequence>();
    sequence->id = ++last_id_;
    sequence->root = BlockKey{root};
    sequence->prompt_size = static_cast<std::int32_t>(prompt.size());
    sequence->tokens = std::move(prompt);
    sequence->request.max_tokens = max_tokens;
    Sequence& added = *sequence;
    scheduler_.add(std::move(sequence));
    return added;
  }

  /// One step; false when there was nothing to do.
  bool step() {
    parts_.clear();
    const auto parts = scheduler_.plan();
    for (const Scheduler::Part& part : parts) parts_.push_back(part);
    if (parts.empty()) return false;
    for (const Scheduler::Part& part : parts) compute(part);
    for (const Scheduler::Part& part : parts) check(part);
    for (const Scheduler::Part& part : parts) deliver(part);
    return true;
  }

  /// What is known of a sequence after its end.
  struct Ended {
    std::vector<std::int32_t> tokens;
    double masked_mass = 0;
    std::int32_t cached_tokens = 0;
    bool preempted = false;
  };

  Scheduler& scheduler() { return scheduler_; }
  /// Sequences whose rows fail: they are parked, and what they wrote is rubbish.
  std::set<std::uint64_t>& failing() { return failing_; }
  /// (id, rows) of the last step.
  std::vector<std::pair<std::uint64_t, std::int32_t>> rows() const {
    std::vector<std::pair<std::uint64_t, std::int32_t>> rows;
    for (const auto& part : parts_) rows.emplace_back(ids_.at(part.sequence), part.count);
    return rows;
  }
  const std::vector<std::uint64_t>& order_of_end() const { return order_; }
  const Ended& ended(std::uint64_t id) const { return ended_.at(id); }
  bool has_ended(std::uint64_t id) const { return ended_.contains(id); }

  void cancel(Sequence& sequence) { scheduler_.end(sequence); }

 private:
  static std::uint64_t mix(std::uint64_t hash, std::uint64_t value) {
    return (hash ^ value) * 0x9e3779b97f4a7c15u + (hash >> 29);
  }
  static std::uint64_t prefix_hash(const Sequence& sequence, std::int32_t count) {
    std::uint64_t hash = sequence.root[0] + 1u;
    for (std::int32_t i = 0; i < count; ++i)
      hash = mix(hash, static_cast<std::uint64_t>(sequence.tokens[static_cast<std::size_t>(i)]));
    return hash;
  }
  std::uint64_t& slot(const Sequence& sequence, std::int32_t position) {
    const auto block = sequence.blocks.at(static_cast<std::size_t>(position / kBlock));
    return slots_.at(static_cast<std::size_t>(block * kBlock + position % kBlock));
  }

  void compute(const Scheduler::Part& part) {
    ids_[part.sequence] = part.sequence->id;
    ASSERT_GT(part.count, 0);
    for (std::int32_t i = 0; i < part.count; ++i) {
      const std::int32_t position = part.sequence->computed + i;
      slot(*part.sequence, position) =
          failing_.contains(part.sequence->id) ? 0 : prefix_hash(*part.sequence, position + 1);
    }
  }
  void check(const Scheduler::Part& part) {
    const std::int32_t end = part.sequence->computed + part.count;
    ASSERT_EQ(part.wants_token, end == part.sequence->size());
    if (failing_.contains(part.sequence->id)) return;
    std::uint64_t hash = part.sequence->root[0] + 1u;
    for (std::int32_t position = 0; position < end; ++position) {
      hash = mix(hash, static_cast<std::uint64_t>(
                           part.sequence->tokens[static_cast<std::size_t>(position)]));
      ASSERT_EQ(slot(*part.sequence, position), hash)
          << "sequence " << part.sequence->id << " sees another's k and v at " << position;
    }
  }
  void deliver(const Scheduler::Part& part) {
    Sequence& sequence = *part.sequence;
    if (failing_.contains(sequence.id)) return scheduler_.park(sequence);
    std::vector<float> masses;
    for (std::int32_t i = 0; i < part.count; ++i) {
      masses.push_back(static_cast<float>(prefix_hash(sequence, sequence.computed + i + 1) % 1000) /
                       997.0f);
    }
    scheduler_.complete(part, masses);
    if (!part.wants_token) return;
    sequence.tokens.push_back(
        static_cast<std::int32_t>(prefix_hash(sequence, sequence.size()) % 50000));
    if (sequence.generated() < sequence.request.max_tokens) return;
    double mass = 0;
    for (double block : sequence.masked_mass) mass += block;
    ended_[sequence.id] = {sequence.tokens, mass, sequence.cached_tokens, sequence.preempted};
    order_.push_back(sequence.id);
    scheduler_.end(sequence);
  }

  Scheduler scheduler_;
  std::vector<std::uint64_t> slots_;
  std::uint64_t last_id_ = 0;
  std::vector<Scheduler::Part> parts_;
  std::map<const Sequence*, std::uint64_t> ids_;  // those of the last step may be gone
  std::map<std::uint64_t, Ended> ended_;
  std::vector<std::uint64_t> order_;
  std::set<std::uint64_t> failing_;
};

std::vector<std::int32_t> prompt(std::int32_t length, std::int32_t first = 0) {
  std::vector<std::int32_t> tokens;
  for (std::int32_t i = 0; i < length; ++i) tokens.push_back(first + i);
  return tokens;
}

using Rows = std::vector<std::pair<std::uint64_t, std::int32_t>>;

TEST(Scheduler, DecodesComeFirstAndPromptsShareTheRestInOrderOfArrival) {
  FakeModel model(100, {.max_num_batched_tokens = 10});
  model.add(prompt(4), 20);
  model.add(prompt(25, 100), 20);
  model.add(prompt(3, 200), 20);
  ASSERT_TRUE(model.step());
  EXPECT_EQ(model.rows(), (Rows{{1, 4}, {2, 6}}));
  model.step();
  EXPECT_EQ(model.rows(), (Rows{{1, 1}, {2, 9}}));
  model.step();
  EXPECT_EQ(model.rows(), (Rows{{1, 1}, {2, 9}}));
  model.step();
  EXPECT_EQ(model.rows(), (Rows{{1, 1}, {2, 1}, {3, 3}})) << "4 - 1 of 10: the third fits whole";
  model.step();
  EXPECT_EQ(model.rows(), (Rows{{1, 1}, {2, 1}, {3, 1}}));
}

TEST(Scheduler, PromptsGetAnEighthOfTheBudgetHoweverManyDecode) {
  FakeModel model(1000, {.max_num_seqs = 64, .max_num_batched_tokens = 16});
  for (std::int32_t i = 0; i < 40; ++i) model.add(prompt(1, i), 200);
  for (int i = 0; i < 30; ++i) model.step();
  EXPECT_EQ(model.rows().size(), 40u) << "all decode, beyond the budget of 16";
  model.add(prompt(9, 500), 5);
  for (int i = 0; i < 5; ++i) {
    model.step();
    EXPECT_EQ(model.rows().size(), 41u);
    EXPECT_EQ(model.rows().back(), (std::pair<std::uint64_t, std::int32_t>{41, i < 4 ? 2 : 1}));
  }
  // With the smallest budget it is one token.
  FakeModel narrow(1000, {.max_num_seqs = 64, .max_num_batched_tokens = 1});
  narrow.add(prompt(2), 50);
  narrow.add(prompt(3, 100), 1);
  for (int i = 0; i < 10 && !narrow.has_ended(2); ++i) narrow.step();
  EXPECT_TRUE(narrow.has_ended(2));
}

TEST(Scheduler, NobodyOvertakesTheOneThatWaitsForBlocks) {
  FakeModel model(6, {});
  model.add(prompt(30), 10);
  model.add(prompt(70, 100), 2);  // 5 blocks
  model.add(prompt(2, 300), 2);
  model.step();
  EXPECT_EQ(model.rows(), (Rows{{1, 30}}));
  EXPECT_EQ(model.scheduler().num_waiting(), 2u);
  while (model.step()) continue;
  EXPECT_EQ(model.order_of_end(), (std::vector<std::uint64_t>{1, 2, 3}));
}

TEST(Scheduler, AUsedUpTokenBudgetMakesNoSeats) {
  FakeModel model(4, {.max_num_seqs = 8, .max_num_batched_tokens = 16, .prefix_cache = false});
  model.add(prompt(40), 3);  // 3 blocks, 3 steps
  model.add(prompt(40, 100), 3);
  model.add(prompt(8, 200), 3);  // 1 block
  model.add(prompt(8, 300), 3);
  model.add(prompt(40, 400), 3);
  const auto seats_after = [&](Rows rows) {
    model.step();
    EXPECT_EQ(model.rows(), rows);
    return model.scheduler().seats();
  };
  EXPECT_EQ(seats_after({{1, 16}}), 8u) << "nobody was refused yet";
  EXPECT_EQ(seats_after({{1, 16}}), 8u);
  EXPECT_EQ(seats_after({{1, 8}}), 1u) << "the second lacks blocks";
  EXPECT_EQ(seats_after({{1, 1}}), 1u);
  EXPECT_EQ(seats_after({{1, 1}}), 1u);
  EXPECT_EQ(seats_after({{2, 16}}), 1u) << "it took all of the budget: the third was not tried";
  EXPECT_EQ(seats_after({{2, 16}}), 1u);
  EXPECT_EQ(seats_after({{2, 8}}), 1u);
  EXPECT_EQ(seats_after({{2, 1}}), 1u);
  EXPECT_EQ(seats_after({{2, 1}}), 1u);
  EXPECT_EQ(seats_after({{3, 8}, {4, 8}}), 2u) << "not fewer than run";
  EXPECT_EQ(seats_after({{3, 1}, {4, 1}}), 2u);
  EXPECT_EQ(seats_after({{3, 1}, {4, 1}}), 2u);
  EXPECT_EQ(seats_after({{5, 16}}), 8u) << "nobody waits";
}

TEST(Scheduler, ThePoolsEndPushesOutTheYoungestWhichGoesOnLaterWithItsTokens) {
  std::map<std::uint64_t, std::vector<std::int32_t>> alone;
  for (std::int32_t i = 0; i < 3; ++i) {
    FakeModel model(100, {});
    model.add(prompt(10, i * 100), 40);
    while (model.step()) continue;
    alone[static_cast<std::uint64_t>(i) + 1] = model.ended(1).tokens;
  }
  for (const bool prefix_cache : {false, true}) {
    FakeModel model(8, {.prefix_cache = prefix_cache});
    for (std::int32_t i = 0; i < 3; ++i) model.add(prompt(10, i * 100), 40);
    while (model.step()) continue;
    EXPECT_EQ(model.order_of_end(), (std::vector<std::uint64_t>{1, 2, 3}));
    EXPECT_GT(model.scheduler().stats().preemptions, 0u);
    EXPECT_FALSE(model.ended(1).preempted) << "the oldest is never pushed out";
    EXPECT_TRUE(model.ended(3).preempted);
    for (const auto& [id, tokens] : alone) {
      EXPECT_EQ(model.ended(id).tokens, tokens);
      EXPECT_EQ(model.ended(id).cached_tokens, 0) << "its own blocks are no gift";
    }
    EXPECT_EQ(model.scheduler().stats().kv_blocks_used, 0);
  }
}

TEST(Scheduler, APoolForBarelyOneSequenceServesAllInOrder) {
  for (const bool prefix_cache : {false, true}) {
    FakeModel model(4, {.prefix_cache = prefix_cache});
    for (std::int32_t i = 0; i < 10; ++i) {
      const std::int32_t length = 1 + i * 5;
      model.add(prompt(length, i * 100), 4 * kBlock - length);
    }
    std::size_t steps = 0;
    while (model.step()) ASSERT_LT(++steps, 10000u) << "no progress";
    std::vector<std::uint64_t> expected(10);
    for (std::size_t i = 0; i < 10; ++i) expected[i] = i + 1;
    EXPECT_EQ(model.order_of_end(), expected);
  }
}

TEST(Scheduler, CachedPromptsAreNotComputedAgainButForTheirLastToken) {
  FakeModel model(100, {});
  model.add(prompt(40), 10);
  while (model.step()) continue;
  model.add(prompt(40), 10);
  ASSERT_TRUE(model.step());
  EXPECT_EQ(model.rows(), (Rows{{2, 8}})) << "two full blocks are known";
  while (model.step()) continue;
  EXPECT_EQ(model.ended(2).cached_tokens, 32);
  EXPECT_EQ(model.ended(2).tokens, model.ended(1).tokens);
  EXPECT_EQ(model.ended(2).masked_mass, model.ended(1).masked_mass) << "the same bits";
  // Whole blocks: the last token is computed all the same, within its own block.
  model.add(prompt(32), 10);
  model.step();
  EXPECT_EQ(model.rows(), (Rows{{3, 16}}));
  while (model.step()) continue;
  EXPECT_EQ(model.ended(3).cached_tokens, 16);
  // Generated tokens are found too, as in the next turn of a chat.
  std::vector<std::int32_t> turn = model.ended(1).tokens;
  turn.push_back(7);
  model.add(turn, 10);
  model.step();
  EXPECT_EQ(model.rows(), (Rows{{4, 51 - 48}}));
  const SchedulerStats stats = model.scheduler().stats();
  EXPECT_EQ(stats.prefix_query_tokens, 40u + 40u + 32u + 51u);
  EXPECT_EQ(stats.prefix_hit_tokens, 32u + 16u + 48u);
}

TEST(Scheduler, SubsetsShareNothing) {
  FakeModel model(100, {});
  for (std::uint8_t root : {1, 2, 1}) {
    model.add(prompt(40), 1, root);
    while (model.step()) continue;
  }
  EXPECT_EQ(model.ended(2).cached_tokens, 0);
  EXPECT_EQ(model.ended(3).cached_tokens, 32);
}

TEST(Scheduler, APromptTakesUpWhatAnotherComputedMeanwhile) {
  FakeModel model(100, {.max_num_batched_tokens = 40});
  model.add(prompt(70), 5);
  model.add(prompt(70), 5);
  model.step();
  EXPECT_EQ(model.rows(), (Rows{{1, 40}}));
  model.step();
  EXPECT_EQ(model.rows(), (Rows{{1, 30}, {2, 10}})) << "after two blocks of the first";
  model.step();
  EXPECT_EQ(model.rows(), (Rows{{1, 1}, {2, 70 - 64}})) << "its half block gave way to a full one";
  while (model.step()) continue;
  EXPECT_EQ(model.ended(2).tokens, model.ended(1).tokens);
  EXPECT_EQ(model.ended(2).masked_mass, model.ended(1).masked_mass);
  EXPECT_EQ(model.scheduler().stats().kv_blocks_used, 0);
}

TEST(Scheduler, SequencesAlikeInOneStepEndUpWithTheSameBlocks) {
  FakeModel model(100, {});
  model.add(prompt(48), 20);
  model.add(prompt(48), 20);
  model.step();
  model.step();
  EXPECT_EQ(model.scheduler().stats().kv_blocks_used, 3 + 2) << "three shared, one each";
  while (model.step()) continue;
  EXPECT_EQ(model.ended(2).tokens, model.ended(1).tokens);
  EXPECT_EQ(model.ended(2).cached_tokens, 0) << "both computed all of it";
}

TEST(Scheduler, AParkedSequenceKeepsItsTokensAndBlocksAndItsPlace) {
  FakeModel model(100, {.max_num_seqs = 1, .max_num_batched_tokens = 16});
  model.add(prompt(40), 10);
  model.add(prompt(3, 500), 4);
  model.add(prompt(3, 600), 200);
  model.step();
  model.step();
  model.failing() = {1};
  model.step();
  EXPECT_EQ(model.rows(), (Rows{{1, 8}})) << "its last step fails";
  EXPECT_EQ(model.scheduler().num_parked(), 1u);
  const std::int32_t used = model.scheduler().stats().kv_blocks_used;
  EXPECT_EQ(used, 3);
  for (int i = 0; i < 5; ++i) {
    model.step();
    EXPECT_EQ(model.rows()[0].first, i < 4 ? 2u : 3u) << "it holds no place in the batch";
  }
  model.failing().clear();
  model.scheduler().unpark_all();
  EXPECT_EQ(model.scheduler().num_parked(), 0u);
  EXPECT_EQ(model.scheduler().num_waiting(), 1u) << "one place, and that is taken";
  while (model.step()) continue;
  EXPECT_EQ(model.ended(1).tokens.size(), 50u);
  EXPECT_FALSE(model.ended(1).preempted);
  FakeModel alone(100, {});
  alone.add(prompt(40), 10);
  while (alone.step()) continue;
  EXPECT_EQ(model.ended(1).tokens, alone.ended(1).tokens);
  EXPECT_EQ(model.ended(1).masked_mass, alone.ended(1).masked_mass);
}

TEST(Scheduler, BlocksOfParkedSequencesAreTakenFirstAndTheYoungestsBeforeOthers) {
  FakeModel model(6, {.prefix_cache = false});
  model.add(prompt(20), 10);
  model.add(prompt(20, 100), 10);
  model.failing() = {1, 2};
  model.step();
  EXPECT_EQ(model.scheduler().num_parked(), 2u);
  model.add(prompt(30, 200), 1);
  model.step();
  EXPECT_TRUE(model.has_ended(3));
  EXPECT_EQ(model.scheduler().stats().preemptions, 0u) << "there were two free blocks";
  model.add(prompt(33, 200), 31);
  model.step();
  EXPECT_EQ(model.scheduler().stats().preemptions, 1u) << "a third block for its prompt";
  EXPECT_EQ(model.scheduler().stats().kv_blocks_used, 2 + 3) << "of the youngest only";
  while (!model.has_ended(4)) model.step();
  EXPECT_FALSE(model.ended(4).preempted);
  model.failing().clear();
  model.scheduler().unpark_all();
  while (model.step()) continue;
  EXPECT_FALSE(model.ended(1).preempted);
  EXPECT_TRUE(model.ended(2).preempted);
}

/// Arrivals, cancellations and pools at random: FakeModel checks every row's view of the cache.
TEST(Scheduler, ServesEverybodyUnderRandomUse) {
  for (std::uint32_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    const auto below = [&](std::uint32_t n) { return static_cast<std::int32_t>(random() % n); };
    const std::int32_t num_blocks = 5 + below(12);
    FakeModel model(num_blocks, {.max_num_seqs = 1 + below(8),
                                 .max_num_batched_tokens = 1 + below(60),
                                 .prefix_cache = seed % 4 != 0});
    struct Wanted {
      std::vector<std::int32_t> prompt;
      std::int32_t max_tokens;
      std::uint8_t root;
      bool cancelled = false;
    };
    std::map<std::uint64_t, Wanted> wanted;
    std::map<std::uint64_t, Sequence*> live;
    for (int turn = 0; turn < 300; ++turn) {
      if (below(3) == 0 && live.size() < 12) {
        Wanted w;
        // Few beginnings, so that many are alike.
        w.prompt = prompt(1 + below(4 * kBlock), 1000 * below(2));
        w.max_tokens = 1 + below(static_cast<std::uint32_t>(num_blocks * kBlock) -
                                 static_cast<std::uint32_t>(w.prompt.size()));
        w.root = static_cast<std::uint8_t>(below(2));
        Sequence& sequence = model.add(w.prompt, w.max_tokens, w.root);
        wanted[sequence.id] = w;
        live[sequence.id] = &sequence;
      }
      if (below(12) == 0 && !live.empty()) {
        const auto it = std::next(live.begin(), below(static_cast<std::uint32_t>(live.size())));
        wanted[it->first].cancelled = true;
        model.cancel(*it->second);
        live.erase(it);
      }
      // Half of the seeds also park: some sequences fail for a while.
      if (seed % 2 == 1 && below(6) == 0) {
        model.scheduler().unpark_all();
        model.failing().clear();
        for (const auto& [id, sequence] : live) {
          if (below(4) == 0) model.failing().insert(id);
        }
      }
      if (!model.failing().empty() || model.scheduler().num_parked() > 0) {
        model.step();
        ASSERT_FALSE(HasFatalFailure());
        std::erase_if(live, [&](const auto& entry) { return model.has_ended(entry.first); });
        continue;
      }
      if (seed % 2 == 1) {  // who is oldest may wait for others to end
        ASSERT_EQ(model.step(), !live.empty());
        std::erase_if(live, [&](const auto& entry) { return model.has_ended(entry.first); });
        continue;
      }
      const std::uint64_t oldest = live.empty() ? 0 : live.begin()->first;
      ASSERT_EQ(model.step(), oldest != 0);
      ASSERT_FALSE(HasFatalFailure());
      if (oldest == 0) continue;
      const auto rows = model.rows();
      ASSERT_TRUE(std::any_of(rows.begin(), rows.end(),
                              [&](const auto& row) { return row.first == oldest; }))
          << "the oldest, " << oldest << ", has rows in every step";
      std::erase_if(live, [&](const auto& entry) { return model.has_ended(entry.first); });
    }
    model.failing().clear();
    model.scheduler().unpark_all();
    int steps = 0;
    while (model.step()) ASSERT_LT(++steps, 20000) << "no progress";
    std::map<std::uint64_t, std::vector<std::int32_t>> expected;
    for (const auto& [id, w] : wanted) {
      ASSERT_EQ(model.has_ended(id), !w.cancelled);
      if (w.cancelled) continue;
      FakeModel alone(num_blocks, {.prefix_cache = false});
      alone.add(w.prompt, w.max_tokens, w.root);
      while (alone.step()) continue;
      EXPECT_EQ(model.ended(id).tokens, alone.ended(1).tokens);
      EXPECT_EQ(model.ended(id).masked_mass, alone.ended(1).masked_mass);
    }
    EXPECT_EQ(model.scheduler().stats().kv_blocks_used, 0);
    EXPECT_EQ(model.scheduler().num_waiting(), 0u);
  }
}

}  // namespace
}  // namespace moiety
