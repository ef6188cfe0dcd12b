#include "planner/moves.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/planner/planner_models.h"

namespace moiety::planner {
namespace {

using testing::HasSubstr;

std::uint64_t union_bytes(const ModelShape& model,
                          const Placement& a,
                          const Placement& b,
                          WorkerId worker) {
  std::uint64_t bytes = 0;
  for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
    for (std::size_t expert = 0; expert < b.owners[layer].size(); ++expert) {
      const auto on = [&](const Placement& placement) {
        if (placement.owners.empty()) return false;
        const auto& owners = placement.owners[layer][expert];
        return std::find(owners.begin(), owners.end(), worker) != owners.end();
      };
      if (on(a) || on(b)) bytes += model.layers[layer].expert_bytes;
    }
  }
  return bytes;
}

/// What is wrong with the steps from `from` to `to`, or nothing.
std::string steps_fault(const ModelShape& model,
                        const Placement& from,
                        const Placement& to,
                        const std::map<WorkerId, std::uint64_t>& limits,
                        const std::vector<Placement>& steps) {
  if (steps.empty() || steps.back().owners != to.owners) return "does not end where it should";
  const Placement* before = &from;
  for (std::size_t step = 0; step < steps.size(); ++step) {
    const std::string where = "step " + std::to_string(step);
    for (const auto& [worker, limit] : limits) {
      const std::uint64_t held = union_bytes(model, *before, steps[step], worker);
      // Who is over the limit already must at least not grow.
      const std::uint64_t had = bytes_on(model, *before, worker);
      if (held > std::max(limit, had)) {
        return where + ": worker " + std::to_string(worker.value) + " holds " +
               std::to_string(held) + " of " + std::to_string(limit);
      }
    }
    for (std::size_t layer = 0; layer < to.owners.size(); ++layer) {
      for (std::size_t expert = 0; expert < to.owners[layer].size(); ++expert) {
        const std::size_t had = from.owners.empty() ? 0 : from.owners[layer][expert].size();
        const std::size_t least = std::min(had, to.owners[layer][expert].size());
        const auto& owners = steps[step].owners[layer][expert];
        if (owners.size() < least) return where + ": an expert lost a copy on the way";
        if (!std::is_sorted(owners.begin(), owners.end())) return where + ": owners out of order";
        if (std::adjacent_find(owners.begin(), owners.end()) != owners.end())
          return where + ": an owner twice";
      }
    }
    before = &steps[step];
  }
  return "";
}

std::map<WorkerId, std::uint64_t> limits_of(std::uint32_t num_workers,
                                            std::uint64_t capacity,
                                            double headroom) {
  std::map<WorkerId, std::uint64_t> limits;
  for (std::uint32_t id = 0; id < num_workers; ++id)
    limits[{id}] = static_cast<std::uint64_t>(static_cast<double>(capacity) * (1 + headroom));
  return limits;
}

/// All experts of one layer, expert e on worker owners[e].
Placement one_layer(const std::vector<std::uint32_t>& owners) {
  Placement placement;
  placement.owners.resize(1);
  for (std::uint32_t owner : owners) placement.owners[0].push_back({{owner}});
  return placement;
}

TEST(SplitMove, WhatFitsAtOnceIsOneStep) {
  const ModelShape model = uniform_model(1, 4);
  const Placement from = one_layer({0, 0, 1, 1});
  const Placement to = one_layer({0, 1, 0, 1});
  const auto steps = split_move(model, from, to, limits_of(2, 3000, 0));
  ASSERT_TRUE(steps) << steps.error().message;
  EXPECT_EQ(*steps, std::vector<Placement>{to});
  const auto unlimited = split_move(model, {}, to, {});
  ASSERT_TRUE(unlimited);
  EXPECT_EQ(*unlimited, std::vector<Placement>{to});
}

TEST(SplitMove, AnExchangeNeedsAsManySteps) {
  // Two workers exchange all of their four experts with room for one more each.
  const ModelShape model = uniform_model(1, 8);
  const Placement from = one_layer({0, 0, 0, 0, 1, 1, 1, 1});
  const Placement to = one_layer({1, 1, 1, 1, 0, 0, 0, 0});
  const auto limits = limits_of(2, 4000, 0.25);
  const auto steps = split_move(model, from, to, limits);
  ASSERT_TRUE(steps) << steps.error().message;
  EXPECT_EQ(steps_fault(model, from, to, limits, *steps), "");
  EXPECT_EQ(steps->size(), 4u);
}

TEST(SplitMove, WithoutAnyRoomItNamesTheBytes) {
  const ModelShape model = uniform_model(1, 4);
  const auto steps =
      split_move(model, one_layer({0, 0, 1, 1}), one_layer({1, 1, 0, 0}), limits_of(2, 2000, 0.25));
  ASSERT_FALSE(steps);
  EXPECT_EQ(steps.error().code, ErrorCode::kResourceExhausted);
  EXPECT_THAT(steps.error().message, HasSubstr("lacks 500 bytes"));
}

TEST(SplitMove, UsesAThirdWorkerWhenTwoAreFull) {
  const ModelShape model = uniform_model(1, 5);
  const Placement from = one_layer({0, 0, 1, 1, 2});
  const Placement to = one_layer({1, 1, 0, 0, 2});
  const auto limits = limits_of(3, 2000, 0);
  const auto steps = split_move(model, from, to, limits);
  ASSERT_TRUE(steps) << steps.error().message;
  EXPECT_EQ(steps_fault(model, from, to, limits, *steps), "");
}

TEST(SplitMove, WhatIsColdGoesFirstWhenRoomIsShort) {
  const ModelShape model = uniform_model(1, 4);
  Placement from = one_layer({0, 0, 0, 0});
  Placement to = from;
  to.owners[0][0] = {};
  to.owners[0][1] = {};
  from.owners[0][2] = {};
  from.owners[0][3] = {};
  const auto limits = limits_of(1, 2000, 0.25);
  const auto steps = split_move(model, from, to, limits);
  ASSERT_TRUE(steps) << steps.error().message;
  EXPECT_EQ(steps_fault(model, from, to, limits, *steps), "");
  EXPECT_EQ(steps->size(), 2u);
}

TEST(SplitMove, RandomMovesStayWithinTheirBounds) {
  int several = 0;
  for (unsigned seed = 0; seed < 400; ++seed) {
    std::mt19937 random(seed);
    ModelShape model =
        uniform_model(2 + random() % 4, 8 + static_cast<std::int32_t>(random() % 24));
    for (auto& layer : model.layers) layer.expert_bytes = 500 + random() % 1000;
    const std::uint32_t num_workers = 2 + random() % 6;
    // Both ends are within the capacity; where experts are is arbitrary.
    std::vector<std::uint64_t> used[2];
    Placement ends[2];
    std::uint64_t total = 0;
    for (const auto& layer : model.layers)
      total += layer.expert_bytes * static_cast<std::uint64_t>(layer.num_routed);
    const unsigned replicas = seed % 3 == 0 ? 2 : 1;
    const std::uint64_t capacity = total * replicas / num_workers + 3000;
    for (int end = 0; end < 2; ++end) {
      used[end].assign(num_workers, 0);
      for (const auto& layer : model.layers) {
        auto& owners = ends[end].owners.emplace_back();
        for (std::int32_t expert = 0; expert < layer.num_routed; ++expert) {
          auto& mine = owners.emplace_back();
          if (random() % 8 == 0) continue;  // cold on this side
          for (unsigned copy = 0; copy < replicas; ++copy) {
            const std::uint32_t first = random() % num_workers;
            for (std::uint32_t i = 0; i < num_workers; ++i) {
              const WorkerId worker{(first + i) % num_workers};
              if (std::find(mine.begin(), mine.end(), worker) != mine.end()) continue;
              if (used[end][worker.value] + layer.expert_bytes > capacity) continue;
              used[end][worker.value] += layer.expert_bytes;
              mine.push_back(worker);
              break;
            }
          }
          std::sort(mine.begin(), mine.end());
        }
      }
    }
    const auto limits = limits_of(num_workers, capacity, 0.25);
    const auto steps = split_move(model, ends[0], ends[1], limits);
    ASSERT_TRUE(steps) << "seed " << seed << ": " << steps.error().message;
    ASSERT_EQ(steps_fault(model, ends[0], ends[1], limits, *steps), "") << "seed " << seed;
    several += steps->size() > 1 ? 1 : 0;
    EXPECT_LE(steps->size(), 16u) << "seed " << seed;
  }
  EXPECT_GT(several, 200) << "the bounds were not tight";
}

}  // namespace
}  // namespace moiety::planner
