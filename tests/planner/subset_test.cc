#include "planner/subset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

namespace moiety::planner {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

/// Layer 0 dense; layer 1: 4 routed + 1 shared, top 2; layer 2: 3 routed + 2 shared, top 5 of 3.
ModelShape mixed_model() {
  ModelShape model;
  model.fingerprint = "abc";
  model.layers = {{0, 0, 0, 0}, {4, 1, 2, 100}, {3, 2, 5, 100}};
  return model;
}

Subset good_subset() {
  return {.checkpoint = "abc",
          .domains = {"python", "a \"quoted\"\nname"},
          .method = "mean_prob",
          .experts_kept_per_layer = {std::nullopt, std::vector<std::int32_t>{1, 3, 4},
                                     std::vector<std::int32_t>{0, 1, 2, 3, 4}}};
}

TEST(Subset, SurvivesJson) {
  const Subset subset = good_subset();
  const std::string text = subset_to_json(subset);
  EXPECT_THAT(text, HasSubstr("\n    null,\n    [1, 3, 4],\n    [0, 1, 2, 3, 4]\n"));
  const auto read = parse_subset(text);
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(read->checkpoint, subset.checkpoint);
  EXPECT_EQ(read->domains, subset.domains);
  EXPECT_EQ(read->method, subset.method);
  EXPECT_EQ(read->experts_kept_per_layer, subset.experts_kept_per_layer);
  EXPECT_EQ(subset_to_json(*read), text);
}

TEST(Subset, ReadsAFileWrittenByHand) {
  const auto read = parse_subset(
      R"({"experts_kept_per_layer": [[]], "note": {"x": 1}, "checkpoint": "abc",
          "denominator": "kept", "format": "moiety.subset/1"})");
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_THAT(read->domains, IsEmpty());
  EXPECT_EQ(read->method, "");
  EXPECT_EQ(read->experts_kept_per_layer.size(), 1u);
}

TEST(Subset, RefusesMalformedFiles) {
  const std::string head = R"({"format": "moiety.subset/1", "checkpoint": "abc", )";
  const std::pair<std::string, std::string> cases[] = {
      {"", "not JSON"},
      {"{", "not JSON"},
      {"{} x", "not JSON"},
      {std::string(100, '['), "not JSON"},
      {"[]", "expected an object"},
      {"{}", "format: missing"},
      {R"({"format": 1})", "format: expected a string, found a number"},
      {R"({"format": "moiety.subset/2"})", "format: \"moiety.subset/2\" is not supported"},
      {R"({"format": "moiety.profile/1"})", "expected \"moiety.subset/1\""},
      {R"({"format": "moiety.subset/1"})", "checkpoint: missing"},
      {head + R"("denominator": "all", "experts_kept_per_layer": []})",
       "denominator: \"all\" is not supported"},
      {head + R"("denominator": null, "experts_kept_per_layer": []})", "denominator: null"},
      {head + R"("domains": "x", "experts_kept_per_layer": []})",
       "domains: expected an array, found a string"},
      {head + R"("domains": ["x", 2], "experts_kept_per_layer": []})",
       "domains[1]: expected a string"},
      {head + R"("method": 2, "experts_kept_per_layer": []})", "method: expected a string"},
      {head + R"("x": 0})", "experts_kept_per_layer: missing"},
      {head + R"("experts_kept_per_layer": {}})", "experts_kept_per_layer: expected an array"},
      {head + R"("experts_kept_per_layer": [[0], 3]})",
       "experts_kept_per_layer[1]: expected an array of expert ids, or null"},
      {head + R"("experts_kept_per_layer": [[0], [1, -2]]})",
       "experts_kept_per_layer[1][1]: expected an expert id, found a negative number"},
      {head + R"("experts_kept_per_layer": [[0.5]]})", "experts_kept_per_layer[0][0]"},
      {head + R"("experts_kept_per_layer": [[4294967296]]})", "experts_kept_per_layer[0][0]"},
      {head + R"("experts_kept_per_layer": [[18446744073709551615]]})",
       "experts_kept_per_layer[0][0]"},
      {head + R"("experts_kept_per_layer": [["1"]]})", "found a string"},
  };
  for (const auto& [text, message] : cases) {
    const auto read = parse_subset(text);
    ASSERT_FALSE(read) << text;
    EXPECT_EQ(read.error().code, ErrorCode::kInvalidArgument) << text;
    EXPECT_THAT(read.error().message, HasSubstr(message)) << text;
  }
}

TEST(ResolveSubset, GivesTheRoutedExperts) {
  const auto kept = resolve_subset(good_subset(), mixed_model());
  ASSERT_TRUE(kept) << kept.error().message;
  EXPECT_FALSE(kept->full);
  EXPECT_THAT(kept->layers, ElementsAre(IsEmpty(), ElementsAre(1, 3), ElementsAre(0, 1, 2)));
}

TEST(ResolveSubset, KnowsTheFullModel) {
  Subset subset = good_subset();
  subset.experts_kept_per_layer[1] = {0, 1, 2, 3, 4};
  const auto kept = resolve_subset(subset, mixed_model());
  ASSERT_TRUE(kept) << kept.error().message;
  EXPECT_EQ(*kept, keep_all(mixed_model()));
  EXPECT_TRUE(kept->full);
}

TEST(ResolveSubset, RefusesWhatDoesNotFit) {
  const std::pair<std::function<void(Subset&)>, std::string> cases[] = {
      {[](Subset& s) { s.checkpoint = "other"; }, "checkpoint: the subset was made for other"},
      {[](Subset& s) { s.experts_kept_per_layer.pop_back(); },
       "experts_kept_per_layer: has 2 layers, the checkpoint has 3"},
      {[](Subset& s) { s.experts_kept_per_layer[0].emplace(); },
       "experts_kept_per_layer[0]: the layer is dense"},
      {[](Subset& s) { s.experts_kept_per_layer[1].reset(); },
       "experts_kept_per_layer[1]: null, but the layer has 5 experts"},
      {[](Subset& s) {
         s.experts_kept_per_layer[1] = {1, 3, 4, 5};
       },
       "experts_kept_per_layer[1][3]: expert 5 does not exist; the layer has experts 0 to 4"},
      {[](Subset& s) {
         s.experts_kept_per_layer[1] = {-1, 3, 4};
       },
       "experts_kept_per_layer[1][0]: expert -1 does not exist"},
      {[](Subset& s) {
         s.experts_kept_per_layer[1] = {3, 1, 4};
       },
       "experts_kept_per_layer[1][1]: expert 1 follows 3"},
      {[](Subset& s) {
         s.experts_kept_per_layer[1] = {1, 1, 4};
       },
       "experts_kept_per_layer[1][1]: expert 1 follows 1"},
      {[](Subset& s) {
         s.experts_kept_per_layer[1] = {1, 3};
       },
       "experts_kept_per_layer[1]: shared expert 4 is missing"},
      {[](Subset& s) {
         s.experts_kept_per_layer[2] = {0, 1, 2, 3};
       },
       "experts_kept_per_layer[2]: shared expert 4 is missing"},
      {[](Subset& s) {
         s.experts_kept_per_layer[1] = {1, 4};
       },
       "experts_kept_per_layer[1]: keeps 1 routed experts, but a token selects 2"},
      {[](Subset& s) {
         s.experts_kept_per_layer[2] = {0, 1, 3, 4};
       },
       "experts_kept_per_layer[2]: keeps 2 routed experts, but a token selects 3"},
  };
  for (const auto& [damage, message] : cases) {
    Subset subset = good_subset();
    damage(subset);
    const auto kept = resolve_subset(subset, mixed_model());
    ASSERT_FALSE(kept) << message;
    EXPECT_EQ(kept.error().code, ErrorCode::kInvalidArgument) << message;
    EXPECT_THAT(kept.error().message, HasSubstr(message));
  }
}

}  // namespace
}  // namespace moiety::planner
