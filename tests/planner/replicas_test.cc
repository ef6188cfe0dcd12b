#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "planner/place.h"
#include "tests/planner/planner_models.h"

// Copies of experts, and workers that are limited in bytes.
namespace moiety::planner {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Placement placed(const ModelShape& model,
                 const std::vector<Deployment>& deployments,
                 const PlaceOptions& options,
                 const Placement& current = {}) {
  auto result = place_experts(model, deployments, options, current);
  EXPECT_TRUE(result) << result.error().message;
  if (!result) return {};
  EXPECT_EQ(placement_fault(model, deployments, options, *result), "");
  return *result;
}

TEST(Replicas, ASecondSetIsLaidOutLikeTheFirst) {
  const ModelShape model = uniform_model(3, 16);
  std::mt19937 random(1);
  const std::vector<Deployment> deployments = {{"", keep_all(model), false},
                                               {"python", random_kept(model, 4, random), false}};
  PlaceOptions options = options_of(8, 4);
  options.replicas = 2;
  const Placement placement = placed(model, deployments, options);
  EXPECT_EQ(missing_replicas(deployments, placement, 2), 0u);
  EXPECT_EQ(placement.workers().size(), 8u);
  EXPECT_EQ(workers_of(placement, deployments[1].kept).size(), 2u)
      << "one worker for each set of its copies";
  EXPECT_EQ(placed(model, deployments, options, placement), placement);
}

TEST(Replicas, WithoutRoomForAllTheHottestGetOne) {
  const ModelShape model = uniform_model(1, 12);
  const std::vector<Deployment> full = {{"", keep_all(model), false}};
  PlaceOptions options = options_of(4, 4);
  options.replicas = 2;
  options.load = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}};
  const Placement placement = placed(model, full, options);
  EXPECT_EQ(missing_replicas(full, placement, 2), 8u);
  for (std::size_t expert = 0; expert < 12; ++expert) {
    EXPECT_EQ(placement.owners[0][expert].size(), expert >= 8 ? 2u : 1u) << expert;
  }
}

TEST(Replicas, CopiesFollowTheLoadOnlyWhenAsked) {
  for (unsigned seed = 0; seed < 60; ++seed) {
    std::mt19937 random(seed);
    const std::int32_t num_routed = 8 + static_cast<std::int32_t>(random() % 20);
    const ModelShape model = uniform_model(2, num_routed);
    const std::uint32_t num_workers = 3 + random() % 4;
    const std::vector<Deployment> full = {{"", keep_all(model), false}};
    PlaceOptions options =
        options_of(num_workers, num_routed / static_cast<std::int32_t>(num_workers) + 1 +
                                    static_cast<std::int32_t>(random() % 3));
    options.replicas = 2;
    options.load.assign(2, std::vector<double>(static_cast<std::size_t>(num_routed)));
    const auto new_load = [&] {
      for (auto& layer : options.load) {
        for (double& load : layer) load = 1 + static_cast<double>(random() % 100000);
      }
    };
    new_load();
    const Placement first = placed(model, full, options);
    new_load();
    EXPECT_EQ(placed(model, full, options, first), first) << "seed " << seed;
    options.follow_load = true;
    const Placement second = placed(model, full, options, first);
    EXPECT_EQ(placed(model, full, options, second), second) << "seed " << seed;
    std::int64_t added = 0;
    for (std::size_t layer = 0; layer < 2; ++layer) {
      double coldest_with = 1e9;
      double hottest_without = 0;
      for (std::size_t expert = 0; expert < options.load[layer].size(); ++expert) {
        const double load = options.load[layer][expert];
        const bool has = second.owners[layer][expert].size() > 1;
        if (has) coldest_with = std::min(coldest_with, load);
        if (!has) hottest_without = std::max(hottest_without, load);
        added += has && first.owners[layer][expert].size() == 1 ? 1 : 0;
      }
      EXPECT_GE(coldest_with, hottest_without) << "seed " << seed;
    }
    EXPECT_EQ(missing_replicas(full, second, 2), missing_replicas(full, first, 2));
    const MoveCost cost = move_cost(model, first, second);
    EXPECT_GE(cost.experts_loaded, added);
    EXPECT_LE(cost.experts_loaded, 2 * added) << "seed " << seed << ": what stays hot moves too";
  }
}

TEST(Replicas, TheLastFreePlaceBesideItsOwnCopyIsNoDeadEnd) {
  // Exactly as many places as copies: only exchanges fill the last ones.
  for (unsigned seed = 0; seed < 100; ++seed) {
    std::mt19937 random(seed);
    const std::int32_t num_routed = 3 + static_cast<std::int32_t>(random() % 20);
    const ModelShape model = uniform_model(2, num_routed);
    const std::uint32_t num_workers = 2 + random() % 5;
    const std::int32_t capacity = (num_routed * 2 + static_cast<std::int32_t>(num_workers) - 1) /
                                  static_cast<std::int32_t>(num_workers);
    PlaceOptions options = options_of(num_workers, capacity);
    options.replicas = 2;
    const std::vector<Deployment> full = {{"", keep_all(model), false}};
    const Placement placement = placed(model, full, options);
    EXPECT_EQ(missing_replicas(full, placement, 2), 0u) << "seed " << seed;
  }
}

TEST(Replicas, NoMoreCopiesThanWorkers) {
  const ModelShape model = uniform_model(1, 4);
  const std::vector<Deployment> full = {{"", keep_all(model), false}};
  PlaceOptions options = options_of(2, 8);
  options.replicas = 5;
  const Placement placement = placed(model, full, options);
  EXPECT_EQ(missing_replicas(full, placement, 2), 0u);
  EXPECT_EQ(missing_replicas(full, placement, 5), 12u);
  options.replicas = 0;
  EXPECT_EQ(place_experts(model, full, options, {}).error().code, ErrorCode::kInvalidArgument);
}

TEST(Replicas, RandomDeploymentsKeepEveryPromise) {
  for (unsigned seed = 0; seed < 150; ++seed) {
    std::mt19937 random(seed);
    ModelShape model =
        uniform_model(1 + random() % 4, 4 + static_cast<std::int32_t>(random() % 28));
    model.layers.push_back({});
    std::vector<Deployment> deployments;
    Placement current;
    PlaceOptions options = options_of(12, 8);
    options.replicas = 2 + static_cast<std::int32_t>(random() % 2);
    for (int i = 0; i < 3; ++i) {
      deployments.push_back(
          {std::to_string(i),
           random_kept(model, 2 + static_cast<std::int32_t>(random() % 8), random), false});
      current = placed(model, deployments, options, current);
      EXPECT_EQ(missing_replicas(deployments, current, options.replicas), 0u) << "seed " << seed;
      EXPECT_EQ(
          move_cost(model, current, placed(model, deployments, options, current)).bytes_loaded, 0u)
          << "seed " << seed << ": the same again moves something";
    }
    if (HasFailure()) return;
  }
}

// Bytes.

PlaceOptions bytes_of(const std::vector<std::uint64_t>& capacities) {
  PlaceOptions options = options_of(static_cast<std::uint32_t>(capacities.size()), 0);
  options.capacity_bytes = capacities;
  return options;
}

TEST(PlaceByBytes, AQuarterOfTheBytesNeedsAQuarterOfTheWorkers) {
  const ModelShape model = uniform_model(16, 63);  // 1000 bytes each
  for (unsigned seed = 0; seed < 10; ++seed) {
    std::mt19937 random(seed);
    const std::vector<Deployment> domain = {{"python", random_kept(model, 15, random), false}};
    const auto placement = placed(model, domain, bytes_of(std::vector<std::uint64_t>(8, 128000)));
    EXPECT_THAT(placement.workers(), ElementsAre(WorkerId{0}, WorkerId{1})) << seed;
  }
}

TEST(PlaceByBytes, DomainsStayTogetherBesideTheFullModel) {
  const ModelShape model = uniform_model(6, 63);
  for (unsigned seed = 0; seed < 10; ++seed) {
    std::mt19937 random(seed);
    const std::vector<Deployment> all = {{"", keep_all(model), false},
                                         {"python", random_kept(model, 15, random), false}};
    const auto options = bytes_of(std::vector<std::uint64_t>(4, 100000));
    const auto placement = placed(model, all, options);
    EXPECT_EQ(placement.workers().size(), 4u);
    EXPECT_EQ(workers_of(placement, all[1].kept).size(), 1u) << seed;
    EXPECT_EQ(placed(model, all, options, placement), placement) << seed;
    const auto rest = placed(model, {all[1]}, options, placement);
    EXPECT_EQ(rest.workers().size(), 1u);
    EXPECT_EQ(move_cost(model, placement, rest).experts_loaded, 0) << seed;
  }
}

TEST(PlaceByBytes, WorkersMayDiffer) {
  const ModelShape model = uniform_model(4, 30);  // 120 experts of 1000 bytes
  const std::vector<Deployment> full = {{"", keep_all(model), false}};
  const auto placement = placed(model, full, bytes_of({60000, 30000, 20000, 10000}));
  EXPECT_EQ(bytes_on(model, placement, WorkerId{0}), 60000u);
  EXPECT_EQ(bytes_on(model, placement, WorkerId{3}), 10000u);
  // In every layer each has its share.
  for (const auto& layer : placement.owners) {
    std::map<WorkerId, int> load;
    for (const auto& owners : layer) ++load[owners.front()];
    EXPECT_NEAR(load[WorkerId{0}], 15, 1);
    EXPECT_NEAR(load[WorkerId{1}], 7.5, 1);
  }
  // One large worker does what three small ones would.
  EXPECT_THAT(placed(model, full, bytes_of({40000, 40000, 40000, 200000})).workers(),
              ElementsAre(WorkerId{3}));
}

TEST(PlaceByBytes, NamesTheMissingBytes) {
  const ModelShape model = uniform_model(2, 10);
  const std::vector<Deployment> full = {{"", keep_all(model), false}};
  const auto result = place_experts(model, full, bytes_of({9000, 8000}), {});
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, ErrorCode::kResourceExhausted);
  EXPECT_THAT(result.error().message, HasSubstr("3000 bytes are missing"));
}

TEST(PlaceByBytes, RandomDeploymentsKeepEveryPromise) {
  for (unsigned seed = 0; seed < 200; ++seed) {
    std::mt19937 random(seed);
    ModelShape model =
        uniform_model(1 + random() % 5, 4 + static_cast<std::int32_t>(random() % 40));
    for (auto& layer : model.layers) layer.expert_bytes = 300 + random() % 2000;
    model.layers.push_back({});
    std::uint64_t total = 0;
    for (const auto& layer : model.layers)
      total += layer.expert_bytes * static_cast<std::uint64_t>(layer.num_routed);
    std::vector<std::uint64_t> capacities(2 + random() % 6);
    for (std::uint64_t& capacity : capacities) {
      capacity = seed % 2 == 0 ? total / capacities.size() + 2500
                               : total / capacities.size() * (50 + random() % 150) / 100 + 4000;
    }
    PlaceOptions options = bytes_of(capacities);
    if (seed % 5 == 0) options.capacity_per_layer = 44;
    options.replicas = 1 + static_cast<std::int32_t>(seed % 3 == 0);
    std::vector<Deployment> deployments;
    Placement current;
    for (int i = 0; i < 4; ++i) {
      deployments.push_back(
          i == 2
              ? Deployment{"", keep_all(model), false}
              : Deployment{std::to_string(i),
                           random_kept(model, 1 + static_cast<std::int32_t>(random() % 10), random),
                           false});
      const auto next = place_experts(model, deployments, options, current);
      if (!next) {
        EXPECT_EQ(next.error().code, ErrorCode::kResourceExhausted);
        EXPECT_EQ(seed % 2, 1u) << "seed " << seed << ": " << next.error().message;
        break;
      }
      EXPECT_EQ(placement_fault(model, deployments, options, *next), "") << "seed " << seed;
      current = *next;
    }
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace moiety::planner
