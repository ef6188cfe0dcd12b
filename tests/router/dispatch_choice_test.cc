// The small decisions of a dispatch: whom to ask, how long to wait, whether to split the step.

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "fabric/loopback/loopback.h"
#include "router/choose_owners.h"
#include "router/fleet.h"
#include "router/micro_batch_choice.h"
#include "router/reply_times.h"

namespace moiety {
namespace {

using namespace std::chrono_literals;
using Owners = std::vector<WorkerId>;

std::vector<std::uint32_t> choose(const std::vector<Owners>& owners, std::uint64_t hash) {
  std::vector<const Owners*> pointers;
  for (const Owners& each : owners) pointers.push_back(&each);
  std::vector<WorkerId> chosen(owners.size());
  choose_owners(pointers, hash, chosen);
  std::vector<std::uint32_t> ids;
  for (const WorkerId worker : chosen) ids.push_back(worker.value);
  return ids;
}

Owners on(std::initializer_list<std::uint32_t> ids) {
  Owners owners;
  for (const std::uint32_t id : ids) owners.push_back(WorkerId{id});
  return owners;
}

TEST(ChooseOwners, PrefersWorkersThatTheRowNeedsAnyway) {
  for (std::uint64_t hash = 0; hash < 50; ++hash) {
    EXPECT_EQ(choose({on({1, 2}), on({2}), on({2, 3})}, hash),
              (std::vector<std::uint32_t>{2, 2, 2}));
    EXPECT_EQ(choose({on({1, 4}), on({1, 5}), on({1, 6})}, hash),
              (std::vector<std::uint32_t>{1, 1, 1}))
        << "one worker for all three";
  }
}

TEST(ChooseOwners, SpreadsRowsOverEqualOwners) {
  std::map<std::uint32_t, int> rows;
  for (std::int32_t row = 0; row < 3000; ++row) {
    const std::vector<std::int32_t> experts = {row, row * 7 % 64, 5};
    ++rows[choose({on({1, 2, 3}), on({1, 2, 3}), on({1, 2, 3})}, hash_experts(experts))[0]];
  }
  for (const auto& [worker, count] : rows) EXPECT_NEAR(count, 1000, 150) << "worker " << worker;
}

TEST(ChooseOwners, AlwaysAnOwnerAndNeverMoreWorkersThanSlots) {
  std::mt19937 random(1);
  for (int round = 0; round < 500; ++round) {
    std::vector<Owners> owners(1 + random() % 8);
    for (Owners& each : owners) {
      std::set<WorkerId> ids;
      for (std::size_t i = 0; i < 1 + random() % 4; ++i)
        ids.insert(WorkerId{static_cast<std::uint32_t>(random() % 6)});
      each.assign(ids.begin(), ids.end());
    }
    const std::uint64_t hash = random();
    const auto chosen = choose(owners, hash);
    EXPECT_EQ(chosen, choose(owners, hash));
    for (std::size_t slot = 0; slot < owners.size(); ++slot) {
      EXPECT_TRUE(std::count(owners[slot].begin(), owners[slot].end(), WorkerId{chosen[slot]}));
    }
  }
}

constexpr ReplyLimits kLimits{.floor = 10ms, .cap = 1000ms};

TEST(ReplyTimes, NothingKnownIsTheCap) {
  ReplyTimes times;
  EXPECT_EQ(times.allowed(1, kLimits), 1000ms);
  for (int i = 0; i < 3; ++i) times.add(1, 5ms);
  EXPECT_EQ(times.allowed(1, kLimits), 1000ms) << "three are too few";
}

TEST(ReplyTimes, EightTimesTheWorstBetweenFloorAndCap) {
  ReplyTimes times;
  for (int i = 0; i < 63; ++i) times.add(1, 100us);
  EXPECT_EQ(times.allowed(1, kLimits), 10ms) << "the floor";
  times.add(1, 5ms);
  EXPECT_EQ(times.allowed(1, kLimits), 40ms);
  for (int i = 0; i < 64; ++i) times.add(1, 2ms);
  EXPECT_EQ(times.allowed(1, kLimits), 16ms) << "old times are forgotten";
  for (int i = 0; i < 4; ++i) times.add(1, 900ms);
  EXPECT_EQ(times.allowed(1, kLimits), 1000ms) << "the cap";
}

TEST(ReplyTimes, OthersAreAskedAfterTwiceTheUsualTimeAndTheFloor) {
  ReplyLimits limits{.floor = 10ms, .cap = 1000ms, .hedge_floor = 20ms};
  ReplyTimes times, slow, unknown;
  const ReplyTimes* one[] = {&times};
  EXPECT_EQ(hedge_after(one, 1, limits), std::nullopt) << "nothing is known";
  for (int i = 0; i < 4; ++i) times.add(1, 3ms);
  EXPECT_EQ(hedge_after(one, 1, limits), 20ms);
  for (int i = 0; i < 4; ++i) times.add(1, 30ms);
  EXPECT_EQ(hedge_after(one, 1, limits), 60ms);
  for (int i = 0; i < 64; ++i) slow.add(1, 300ms);
  const ReplyTimes* three[] = {&slow, &unknown, &times};
  EXPECT_EQ(hedge_after(three, 1, limits), 60ms) << "one that is slow does not look usual";
  const ReplyTimes* most_are_slow[] = {&slow, &slow, &times};
  EXPECT_EQ(hedge_after(most_are_slow, 1, limits), 600ms);
  limits.hedge_floor = 0ms;
  EXPECT_EQ(hedge_after(one, 1, limits), std::nullopt) << "nobody shall be asked";
}

TEST(Fleet, HowLongIsUsualIsTheMiddleWorkersTimeHoweverLong) {
  fabric::LoopbackNetwork network;
  const auto lane = network.make_router_lane({0, 0, ""});
  const ReplyLimits limits;
  Fleet fleet(100ms, limits, {});
  EXPECT_EQ(fleet.hedge_after(1), std::nullopt) << "nobody is known";
  EpochView view;
  view.placement.epoch = Epoch{1};
  view.placement.owners = {{on({0}), on({1}), on({2})}};
  for (std::uint32_t id = 0; id < 3; ++id)
    view.workers.push_back({WorkerId{id}, 1, "loop:" + std::to_string(id + 1)});
  fleet.apply(*lane, view);
  for (std::uint32_t id = 0; id < 3; ++id) {
    for (int i = 0; i < 64; ++i) fleet.add_time(WorkerId{id}, 1, id == 2 ? 1ms : 40min);
  }
  fleet.begin_step();
  EXPECT_EQ(fleet.hedge_after(1), 80min) << "not the time of the last replies of all together";
  EXPECT_EQ(fleet.hedge_after(1), 80min) << "the same for one step";
}

TEST(Fleet, NobodyElseIsAskedWhereNobodyShallBe) {
  fabric::LoopbackNetwork network;
  const auto lane = network.make_router_lane({0, 0, ""});
  ReplyLimits limits;
  limits.hedge_floor = 0ms;
  Fleet fleet(100ms, limits, {});
  EpochView view;
  view.placement.epoch = Epoch{1};
  view.placement.owners = {{on({0})}};
  view.workers.push_back({WorkerId{0}, 1, "loop:1"});
  fleet.apply(*lane, view);
  for (int i = 0; i < 64; ++i) fleet.add_time(WorkerId{0}, 1, 1ms);
  EXPECT_EQ(fleet.hedge_after(1), std::nullopt);
}

/// Switches between placements of two experts; workers connect when the test says so.
class FleetSwitch : public testing::Test {
 protected:
  void apply(Owners first, Owners second, std::vector<std::uint64_t> incarnations) {
    EpochView view;
    view.placement.epoch = Epoch{++epoch_};
    view.placement.owners = {{std::move(first), std::move(second)}};
    for (std::uint32_t id = 0; id < incarnations.size(); ++id) {
      if (incarnations[id] != 0)
        view.workers.push_back({WorkerId{id}, incarnations[id], "loop:" + std::to_string(id + 1)});
    }
    fleet_.apply(*lane_, view);
  }
  void connect(std::initializer_list<std::uint32_t> ids) {
    for (const std::uint32_t id : ids) fleet_.on_connected(WorkerId{id});
  }

  fabric::LoopbackNetwork network_;
  const std::unique_ptr<fabric::RouterLane> lane_ = network_.make_router_lane({0, 0, ""});
  Fleet fleet_{1h, ReplyLimits(), {}};
  std::uint64_t epoch_ = 0;
};

TEST_F(FleetSwitch, AWorkerThatStartedAgainIsNotAskedForWhatItsPredecessorHeld) {
  apply(on({0}), on({1}), {1, 1});
  connect({0, 1});
  ASSERT_EQ(fleet_.applied(*lane_), Owners());
  apply(on({2}), on({0}), {2, 1, 1});
  EXPECT_EQ(fleet_.owners(0, 1), on({1})) << "an old owner until the new one is connected";
  connect({0});
  EXPECT_EQ(fleet_.owners(0, 0), on({})) << "incarnation 2 never held it";
  EXPECT_EQ(fleet_.owners(0, 1), on({0}));
  connect({2});
  EXPECT_EQ(fleet_.owners(0, 0), on({2}));
  ASSERT_EQ(fleet_.applied(*lane_), Owners());
  // It is an old owner itself now.
  apply(on({2}), on({3}), {2, 1, 1, 1});
  EXPECT_EQ(fleet_.owners(0, 1), on({0}));
}

TEST_F(FleetSwitch, NeitherIsOneThatTheOldEpochNamedAsLost) {
  apply(on({0}), on({1}), {1, 1});
  connect({0, 1});
  ASSERT_EQ(fleet_.applied(*lane_), Owners());
  apply(on({0}), on({1}), {0, 1});
  ASSERT_EQ(fleet_.applied(*lane_), on({0}));
  apply(on({2}), on({0}), {2, 1, 1});
  connect({0});
  EXPECT_EQ(fleet_.owners(0, 0), on({}));
  EXPECT_EQ(fleet_.owners(0, 1), on({0}));
}

TEST(Fleet, AWorkerThatThisRouterCouldNotTryIsNotAccused) {
  fabric::LoopbackNetwork network;
  const auto lane = network.make_router_lane({0, 0, ""});
  std::vector<WorkerId> suspected;
  Fleet fleet(1h, ReplyLimits(),
              [&](WorkerId id, std::uint64_t, const std::string&) { suspected.push_back(id); });
  EpochView view;
  view.placement.epoch = Epoch{1};
  view.placement.owners = {{on({0}), on({1})}};
  view.workers = {{WorkerId{0}, 1, "loop:1"}, {WorkerId{1}, 1, "loop:2"}};
  fleet.apply(*lane, view);
  fleet.on_lost(WorkerId{0}, fail(ErrorCode::kResourceExhausted, "no descriptors"));
  fleet.on_lost(WorkerId{1}, fail(ErrorCode::kUnavailable, "nobody answers"));
  EXPECT_EQ(suspected, on({1}));
  EXPECT_EQ(fleet.applied(*lane), on({1}));
  EXPECT_LE(fleet.next_timer(), Clock::now() + 1s) << "it is tried again";
  fleet.on_connected(WorkerId{0});
  EXPECT_EQ(fleet.owners(0, 0), on({0}));
}

TEST(ReplyTimes, MoreRowsMayTakeMoreTime) {
  ReplyTimes times;
  for (int i = 0; i < 10; ++i) times.add(1, 3ms);
  EXPECT_EQ(times.p99(1), 3ms);
  EXPECT_EQ(times.p99(2), 6ms);
  EXPECT_EQ(times.p99(512), 3ms * 512);
  for (int i = 0; i < 10; ++i) times.add(512, 40ms);
  EXPECT_EQ(times.p99(600), 40ms) << "what was seen counts more than what was reckoned";
  EXPECT_EQ(times.p99(8), 24ms);
  ReplyTimes large;
  for (int i = 0; i < 10; ++i) large.add(512, 40ms);
  EXPECT_EQ(large.p99(1), 40ms);
}

/// Runs steps of 32 rows whose time is given by a function of the number of micro-batches; how many
/// used two.
int steps_with_two(
    MicroBatchChoice& choice, int steps, double one, double two, double blocked_share) {
  int count = 0;
  static std::chrono::nanoseconds blocked{0};
  blocked = 0ns;
  for (int i = 0; i < steps; ++i) {
    const std::int32_t micro_batches = choice.choose(32);
    count += micro_batches == 2 ? 1 : 0;
    const double seconds = micro_batches == 2 ? two : one;
    blocked += std::chrono::nanoseconds(static_cast<std::int64_t>(seconds * blocked_share * 1e9));
    choice.add(32, micro_batches, seconds, blocked);
  }
  return count;
}

TEST(MicroBatchChoice, AutoNeverSplitsWhereThereIsNothingToWaitFor) {
  MicroBatchChoice choice(MicroBatches::kAuto);
  EXPECT_EQ(steps_with_two(choice, 2000, 1e-3, 0.1e-3, 0.05), 0);
}

TEST(MicroBatchChoice, AutoTriesAndKeepsWhatIsFaster) {
  MicroBatchChoice faster(MicroBatches::kAuto);
  EXPECT_GT(steps_with_two(faster, 2560, 1e-3, 0.8e-3, 0.5), 2400);
  MicroBatchChoice slower(MicroBatches::kAuto);
  EXPECT_EQ(steps_with_two(slower, 2560, 1e-3, 1.2e-3, 0.5), 80) << "the trials only";
}

TEST(MicroBatchChoice, GivenIsGiven) {
  EXPECT_EQ(MicroBatchChoice(MicroBatches::kTwo).choose(32), 2);
  EXPECT_EQ(MicroBatchChoice(MicroBatches::kOne).choose(32), 1);
  EXPECT_EQ(MicroBatchChoice(MicroBatches::kAuto).choose(1), 1);
}

}  // namespace
}  // namespace moiety
